"""Norm, gate and rotation that keep little give what autograd gives, and keep little."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tests.model.helpers import tiny_decoder
from tuner.model.recompute import rms_norm, rotate, silu_product


def plain_rotate(heads, cos, sin):
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat((-second, first), dim=-1) * sin


def angles(time: int, size: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    angle = torch.randn(time, size // 2, dtype=torch.float64)
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos().to(dtype), angle.sin().to(dtype)


FUNCTIONS = {
    "rms_norm": (
        lambda x, w: rms_norm(x, w, 1e-5, x.dtype),
        lambda x, w: F.rms_norm(x, w.shape, w, 1e-5),
        ((2, 5, 8), (8,)),
    ),
    "silu_product": (silu_product, lambda gate, up: F.silu(gate) * up, ((2, 5, 8), (2, 5, 8))),
    "rotate": (
        lambda x: rotate(x, *(torch.manual_seed(3), angles(5, 8, x.dtype))[1]),
        lambda x: plain_rotate(x, *(torch.manual_seed(3), angles(5, 8, x.dtype))[1]),
        ((2, 3, 5, 8),),
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)]
)
def test_value_and_gradients(name, dtype, tolerance):
    ours, plain, shapes = FUNCTIONS[name]
    torch.manual_seed(0)
    inputs = [torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]
    found, expected = ours(*inputs), plain(*inputs)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    grad = torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad(found, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True
    ):
        assert one.dtype == dtype
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
    with torch.no_grad():
        assert torch.equal(ours(*inputs), found), "the same bits with and without gradients"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_of_gradients(name):
    ours, plain, shapes = FUNCTIONS[name]
    torch.manual_seed(0)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    second = []
    for function in (ours, plain):
        first = torch.autograd.grad(function(*inputs).pow(3).sum(), inputs, create_graph=True)
        second.append(torch.autograd.grad(sum(grad.square().sum() for grad in first), inputs))
    for found, expected in zip(*second, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_a_layer_remembers_little():
    """Bytes that one layer keeps a token, beside its weights: inputs of its products and no more."""
    model = tiny_decoder("block_attention", use_qk_norm=False).train()
    layer, config = model.model.layers[0], model.config
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    time = 64
    hidden = torch.randn(1, time, config.hidden_size, requires_grad=True)
    tables = model.model.rotary_emb(hidden, torch.arange(time)[None])
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = layer(hidden, position_embeddings=tables)
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    numbers = 4 * config.hidden_size + 2 * queries + 2 * keys + 3 * config.intermediate_size
    small = 2 * config.head_dim + 2 + config.num_attention_heads  # the rotary tables, two norms' scales, SDPA's sums
    assert out.requires_grad and sum(kept.values()) <= 4 * time * (numbers + small)
