"""Attention by blocks is SDPA's attention: values, gradients, masks, other families; and it never makes a square."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.model.helpers import SHAPE, greatest_difference, scramble, tiny_decoder, token_ids
from tuner.model import TunerEncoderConfig, TunerEncoderModel
from tuner.ops import block_attention as blocked
from tuner.ops import block_plan as blocks
from tuner.ops.block_attention import BLOCK_ATTENTION, block_attention_forward, block_mask, can_use_block_attention
from tuner.ops.block_plan import BlockPlan, plan_blocks, plan_time

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0,
}  # fmt: skip
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL, head_dim=8)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=5)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**SMALL)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
}


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "QUERIES", 4)
    monkeypatch.setattr(blocks, "STEP", 3)


def causal(time: int) -> torch.Tensor:
    return torch.ones(time, time, dtype=torch.bool).tril()


def packed(lengths: list[int]) -> torch.Tensor:
    document = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])
    return (document[:, None] == document) & causal(len(document))


def attend(mask: torch.Tensor, plan: BlockPlan, heads: int, key_value_heads: int, seed: int) -> None:
    """Values and gradients of both, in float64."""
    batch, _, time, _ = mask.shape
    torch.manual_seed(seed)
    query, key, value = (
        torch.randn(batch, n, time, 6, dtype=torch.float64, requires_grad=True)
        for n in (heads, key_value_heads, key_value_heads)
    )
    wide_key, wide_value = (t.repeat_interleave(heads // key_value_heads, dim=1) for t in (key, value))
    expected = F.scaled_dot_product_attention(query, wide_key, wide_value, attn_mask=mask).transpose(1, 2)
    found, weights = block_attention_forward(torch.nn.Module(), query, key, value, plan)
    assert weights is None
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    grad = torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad(found, (query, key, value), grad),
        torch.autograd.grad(expected, (query, key, value), grad),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=3),
    window=st.integers(1, 12),
    size=st.integers(1, 7),
    step=st.integers(1, 5),
    groups=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_any_mask(rows, window, size, step, groups, seed):
    """Packed rows, each cut differently, under a sliding window."""
    time = max(sum(row) for row in rows)
    masks = [packed([*row, time - sum(row)] if sum(row) < time else row).triu(1 - window) for row in rows]
    mask = torch.stack(masks)[:, None]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "QUERIES", size)
        patch.setattr(blocks, "STEP", step)
        attend(mask, plan_blocks(mask), 2 * groups, 2, seed)


@pytest.mark.parametrize("time", [1, 4, 11])
@pytest.mark.parametrize("batch", [1, 3])
def test_all_see_all(small_blocks, time, batch):
    attend(torch.ones(batch, 1, time, time, dtype=torch.bool), plan_time(time, causal=False), 6, 3, 0)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_encoders(small_blocks, padded, compiled, monkeypatch):
    """Both ways of seeing nothing more: with every row full, and with rows of their own lengths."""
    calls = []
    monkeypatch.setattr(blocked, "_attend", lambda *a, attend=blocked._attend: calls.append(1) or attend(*a))
    config = TunerEncoderConfig(**SHAPE)
    model, ids = scramble(TunerEncoderModel._from_config(config, attn_implementation="sdpa")), token_ids(3, 14)
    mask = (torch.arange(14) < torch.tensor([14, 9, 1])[:, None]).long() if padded else torch.ones_like(ids)
    expected = model(input_ids=ids, attention_mask=mask).last_hidden_state
    model.set_attn_implementation(BLOCK_ATTENTION)
    run = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
    actual = run(input_ids=ids, attention_mask=mask).last_hidden_state
    assert calls
    assert greatest_difference(actual[mask.bool()], expected[mask.bool()]) <= 1e-5


@pytest.mark.parametrize("time", [1, 4, 11])
@pytest.mark.parametrize("batch", [1, 3])
def test_causal(small_blocks, time, batch):
    mask = causal(time).expand(batch, 1, time, time)
    attend(mask, plan_time(time, causal=True), 6, 3, 0)


def test_blocks_hold_one_conversation_each(small_blocks):
    plan = plan_blocks(packed([3, 9, 1])[None, None])
    own = [(b.queries.start, b.queries.start + b.count) for b in plan.blocks]
    assert own == [(0, 3), (3, 7), (7, 11), (11, 12), (12, 13)]
    keys = [(b.keys.start, b.keys.stop - b.keys.start) for b in plan.blocks]
    assert keys == [(0, 3), (3, 6), (3, 9), (3, 9), (12, 3)], "as many as seen, rounded up"
    assert all((b.queries.stop - b.queries.start) % 3 == 0 for b in plan.blocks)


def test_few_sizes_are_computed_whatever_the_lengths():
    """Kernels are compiled for each size: conversations of 300 different lengths must not make 300 of them."""
    sizes = {
        (b.queries.stop - b.queries.start, b.keys.stop - b.keys.start)
        for n in range(1, 300)
        for b in plan_time(n, causal=True).blocks
    }
    assert len(sizes) <= 3 * 5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", ["plain", "packed", "padded left", "padded right"])
def test_other_families(small_blocks, family, case):
    """Another's model gives the same logits and gradients, whatever the mask; Mistral's has a sliding window."""
    torch.manual_seed(0)
    model = scramble(FAMILIES[family]()).train()
    model.config.attn_pdrop = model.config.resid_pdrop = 0.0
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    assert can_use_block_attention(model)
    ids = token_ids(2, 14) % 64
    inputs: dict[str, Any] = {"input_ids": ids, "use_cache": False}
    real = torch.ones_like(ids)
    if case == "packed":
        inputs["position_ids"] = torch.cat([torch.arange(n) for n in (5, 1, 8)])[None].expand(2, -1)
    elif case != "plain":
        real[1, slice(0, 3) if case.endswith("left") else slice(-3, None)] = 0
        inputs["attention_mask"] = real
    results = []
    for name in ("sdpa", BLOCK_ATTENTION):
        model.set_attn_implementation(name)
        logits = model(**inputs).logits[real.bool()]
        gradients = torch.autograd.grad(logits.square().mean(), list(model.parameters()))
        results.append((logits, gradients))
    assert greatest_difference(results[0][0], results[1][0]) <= 1e-5
    for one, other in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("strategy", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_generation_is_sdpas(small_blocks, strategy):
    """The prompt goes by blocks, each new token by SDPA over the cache."""
    ids = token_ids(2, 9)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    answers = [
        tiny_decoder(name).generate(
            ids, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0, **strategy
        )
        for name in ("sdpa", BLOCK_ATTENTION)
    ]
    assert torch.equal(*answers)


def test_dropout_is_left_to_sdpa():
    """With the plan's own mask: what is hidden stays hidden."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 10, 4) for _ in range(3))
    plan = plan_blocks(packed([4, 6])[None, None])

    def attended(values: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        return block_attention_forward(torch.nn.Module(), query, key, values, plan, dropout=0.5)[0]

    changed = value.clone()
    changed[:, :, :4] += 100
    one, other = attended(value), attended(changed)
    assert torch.equal(one[:, 4:], other[:, 4:]) and not torch.equal(one[:, :4], other[:, :4])
    assert (one == 0).any(), "something was dropped"


def test_one_token_and_a_cache_get_sdpas_mask():
    assert isinstance(block_mask(batch_size=1, q_length=8, kv_length=8), BlockPlan)
    assert not isinstance(block_mask(batch_size=1, q_length=1, kv_length=1), BlockPlan)
    assert not isinstance(block_mask(batch_size=1, q_length=3, kv_length=8, q_offset=5), BlockPlan)


def test_no_square_is_made():
    """The largest tensor that plain causal attention makes, forwards and backwards, grows with the length alone."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    time, heads = 2000, 2
    query, key, value = (torch.randn(1, heads, time, 8, requires_grad=True) for _ in range(3))
    with Watch():
        plan = block_mask(batch_size=1, q_length=time, kv_length=time)
        block_attention_forward(torch.nn.Module(), query, key, value, plan)[0].sum().backward()
    assert 0 < largest <= heads * blocks.QUERIES * time < heads * time * time / 10


@pytest.mark.slow
@pytest.mark.parametrize("groups", [1, 2], ids=["all heads", "grouped"])
@pytest.mark.parametrize("time", [2, 14])
@pytest.mark.parametrize("sees", ["before", "all", "masked"])
def test_the_compilers_operation(small_blocks, time, groups, sees):
    torch.manual_seed(0)
    shapes = [(2, 4, time, 8), (2, 4 // groups, time, 8), (2, 4 // groups, time, 8)]
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    mask = torch.stack([packed([time]), packed([1, time - 1])])[:, None] if sees == "masked" else None
    arguments = (*inputs, mask, sees == "before", 0.3)
    torch.library.opcheck(torch.ops.tuner.block_attention, arguments)
    ours = torch.ops.tuner.block_attention(*arguments)
    exact = F.scaled_dot_product_attention(*inputs, mask, is_causal=sees == "before", scale=0.3, enable_gqa=True)
    torch.testing.assert_close(ours, exact)
    weights = torch.randn_like(exact)
    gradients = (torch.autograd.grad((out * weights).sum(), inputs) for out in (ours, exact))
    torch.testing.assert_close(*gradients)


@pytest.mark.slow
@pytest.mark.parametrize("rows", ["plain", "packed", "padded", "one token"])
def test_compiled_it_computes_the_same(small_blocks, rows, monkeypatch):
    """All but a token by itself by blocks."""
    calls = []
    monkeypatch.setattr(blocked, "_attend", lambda *a, attend=blocked._attend: calls.append(1) or attend(*a))
    model, ids = tiny_decoder(BLOCK_ATTENTION), token_ids(2, 14)
    inputs: dict[str, Any] = {"input_ids": ids[:, :1] if rows == "one token" else ids, "use_cache": False}
    if rows == "packed":
        inputs["position_ids"] = torch.cat([torch.arange(n) for n in (5, 1, 8)])[None].expand(2, -1)
    elif rows == "padded":
        inputs["attention_mask"] = torch.ones_like(ids).index_fill_(1, torch.arange(3), 0)
    model.set_attn_implementation("sdpa")
    expected = model(**inputs).logits
    model.set_attn_implementation(BLOCK_ATTENTION)
    calls.clear()
    actual = torch.compile(model, backend="aot_eager", fullgraph=True)(**inputs).logits
    assert bool(calls) == (rows != "one token")
    start = 3 if rows == "padded" else 0
    assert greatest_difference(actual[:, start:], expected[:, start:]) <= 1e-5


def test_a_second_derivative_is_refused():
    model, ids = tiny_decoder(BLOCK_ATTENTION), token_ids(1, 6)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(model(ids, labels=ids).loss, list(model.parameters()), create_graph=True)
