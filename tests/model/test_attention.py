"""Attention: one result whatever computes it, whatever pads it, whatever is packed beside it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tests.model.helpers import VOCAB_SIZE, greatest_difference, tiny_config, tiny_decoder, token_ids
from tuner.model import TunerDecoderForCausalLM
from tuner.model.norm import TunerRMSNorm
from tuner.model.positions import TunerRotaryEmbedding
from tuner.model.recompute import rotate

TOLERANCE = 1e-5
FLEX_TOLERANCE = 1e-4
TIME = 13
LENGTHS = (4, 1, 6, 2)  # of the sequences in one packed row; they sum to TIME
EVERY_KERNEL = pytest.mark.parametrize("attn_implementation", ["eager", "sdpa", "block_attention"])


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():  # which FlexAttention cannot compute on the CPU
        yield


def padding_mask(side: str, batch: int = 3, time: int = TIME) -> torch.Tensor:
    """Row `i` has `3 i` tokens of padding."""
    mask = torch.ones(batch, time, dtype=torch.long)
    for row in range(1, batch):
        mask[row, slice(0, 3 * row) if side == "left" else slice(-3 * row, None)] = 0
    return mask


def packed_positions() -> torch.Tensor:
    return torch.cat([torch.arange(length) for length in LENGTHS])[None]


def assert_packed_is_unpacked(model: TunerDecoderForCausalLM, tolerance: float, use_cache: bool) -> None:
    ids = token_ids(2, TIME)
    positions = packed_positions().expand(2, -1)
    packed = model(ids, position_ids=positions, use_cache=use_cache).logits
    for one, alone in zip(packed.split(LENGTHS, dim=1), ids.split(LENGTHS, dim=1), strict=True):
        assert greatest_difference(one, model(alone).logits) <= tolerance


@pytest.mark.parametrize(
    "overrides",
    [{}, {"num_key_value_heads": 1}, {"num_key_value_heads": 4}, {"head_dim": 6}, {"use_qk_norm": False}],
    ids=["grouped", "multi-query", "multi-head", "narrow heads", "no query/key norm"],
)
@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_eager_is_sdpa(overrides: dict, side: str) -> None:
    ids = token_ids(3, TIME)
    mask = None if side == "none" else padding_mask(side)
    real = torch.ones_like(ids).bool() if mask is None else mask.bool()
    eager, sdpa = (tiny_decoder(name, **overrides)(ids, attention_mask=mask).logits for name in ("eager", "sdpa"))
    assert greatest_difference(eager[real], sdpa[real]) <= TOLERANCE


@pytest.mark.long
def test_flex_attention() -> None:
    """Compiled by torch for the CPU, which takes most of this test's time."""
    flex, sdpa, ids = tiny_decoder("flex_attention"), tiny_decoder("sdpa"), token_ids(3, TIME)
    assert greatest_difference(flex(ids).logits, sdpa(ids).logits) <= FLEX_TOLERANCE
    for side in ("left", "right"):
        mask = padding_mask(side)
        logits = [model(ids, attention_mask=mask).logits[mask.bool()] for model in (flex, sdpa)]
        assert greatest_difference(*logits) <= FLEX_TOLERANCE
    assert_packed_is_unpacked(flex, FLEX_TOLERANCE, use_cache=False)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("positions_given", [False, True], ids=["counted", "positions given"])
@EVERY_KERNEL
def test_padding_changes_nothing(attn_implementation: str, side: str, positions_given: bool) -> None:
    """Left padding shifts the positions unless they are given; the rotation only knows distances."""
    model, mask, ids = tiny_decoder(attn_implementation), padding_mask(side), token_ids(3, TIME)
    positions = (mask.cumsum(-1) - 1).clamp(min=0) if positions_given else None
    logits = model(ids, attention_mask=mask, position_ids=positions).logits
    assert logits.isfinite().all()  # on padding too: a NaN there would reach the loss as 0 * NaN
    for row, kept, out in zip(ids, mask.bool(), logits, strict=True):
        assert greatest_difference(out[kept], model(row[kept][None]).logits[0]) <= TOLERANCE
    other_padding = ids.where(mask.bool(), (ids + 1) % VOCAB_SIZE)
    logits_of_other = model(other_padding, attention_mask=mask, position_ids=positions).logits
    assert torch.equal(logits[mask.bool()], logits_of_other[mask.bool()])


@pytest.mark.parametrize("use_cache", [False, True], ids=["uncached", "cached"])
@EVERY_KERNEL
def test_packed_is_unpacked(attn_implementation: str, use_cache: bool) -> None:
    """With a cache too: `use_cache` is on by default, and must not let one sequence see another."""
    assert_packed_is_unpacked(tiny_decoder(attn_implementation), TOLERANCE, use_cache)


@EVERY_KERNEL
def test_packed_neighbours_are_invisible(attn_implementation: str) -> None:
    """Bit for bit: other neighbours, same logits. And without restarting positions they are visible."""
    model, ids = tiny_decoder(attn_implementation), token_ids(1, TIME)
    other = ids.clone()
    other[:, : LENGTHS[0]] = (other[:, : LENGTHS[0]] + 1) % VOCAB_SIZE
    first, second = (model(row, position_ids=packed_positions()).logits[:, LENGTHS[0] :] for row in (ids, other))
    assert torch.equal(first, second)
    first, second = (model(row).logits[:, LENGTHS[0] :] for row in (ids, other))
    assert greatest_difference(first, second) > 1e-2


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    changed=st.integers(0, TIME - 1),
    shift=st.integers(1, VOCAB_SIZE - 1),
    name=st.sampled_from(["eager", "sdpa", "block_attention"]),
)
def test_the_future_is_invisible(changed: int, shift: int, name: str) -> None:
    with torch.no_grad():
        model, ids = tiny_decoder(name), token_ids(2, TIME)
        other = ids.clone()
        other[:, changed] = (other[:, changed] + shift) % VOCAB_SIZE
        before, after = model(ids).logits, model(other).logits
    assert torch.equal(before[:, :changed], after[:, :changed])
    # Every position from there on sees it.
    assert ((before - after)[:, changed:].abs().amax(-1) > 0).all()


def test_another_kernel_can_be_put_in() -> None:
    """As an inference server does: a registered function is called by each layer and gets what `forward` got."""
    seen = []

    def kernel(module, *args, **kwargs):
        seen.append((module.layer_idx, kwargs["of_the_server"], kwargs["position_ids"].shape))
        return sdpa_attention_forward(module, *args, **kwargs)

    AttentionInterface.register("of_the_server", kernel)
    AttentionMaskInterface.register("of_the_server", sdpa_mask)
    ids, mask = token_ids(3, TIME), padding_mask("left")
    logits = tiny_decoder("of_the_server")(ids, attention_mask=mask, of_the_server="block table").logits
    assert seen == [(layer, "block table", (1, TIME)) for layer in range(2)]
    assert torch.equal(logits, tiny_decoder("sdpa")(ids, attention_mask=mask).logits)


@EVERY_KERNEL
def test_a_row_does_not_depend_on_its_batch(attn_implementation: str) -> None:
    model, ids = tiny_decoder(attn_implementation), token_ids(4, TIME)
    together = model(ids).logits
    for row in range(4):
        assert greatest_difference(together[row], model(ids[row : row + 1]).logits[0]) <= TOLERANCE


def test_only_distances_count_and_order_matters() -> None:
    model, ids = tiny_decoder(), token_ids(1, TIME)
    positions, logits = torch.arange(TIME)[None], model(ids).logits
    assert greatest_difference(model(ids, position_ids=positions + 50).logits, logits) <= TOLERANCE
    assert greatest_difference(model(ids, position_ids=positions * 2).logits, logits) > 1e-2
    swapped = ids[:, [1, 0, *range(2, TIME)]]
    assert greatest_difference(model(swapped).logits[:, -1], logits[:, -1]) > 1e-3


def test_rotation_is_the_formula() -> None:
    """Pairs `(i, i + head_dim / 2)` as complex numbers, turned by `position * theta ** (-2i / head_dim)`."""
    config = tiny_config(head_dim=10)
    heads = torch.randn(2, 3, 7, 10, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[0, 1, 2, 5, 9, 100, 1000]])
    turned = rotate(heads, *TunerRotaryEmbedding(config)(heads, positions))
    angles = positions[0, :, None].double() * 10000.0 ** (-torch.arange(5).double() / 5)
    as_complex = torch.complex(heads[..., :5].double(), heads[..., 5:].double())
    expected = as_complex * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(turned.double(), torch.cat((expected.real, expected.imag), -1), rtol=0, atol=2e-4)
    assert torch.equal(turned[:, :, 0], heads[:, :, 0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_positions_stay_exact_in_half_precision(dtype: torch.dtype) -> None:
    """Above 256 two neighbouring positions are one number in bfloat16: the angles must be computed in float32."""
    table = TunerDecoderForCausalLM._from_config(tiny_config(), dtype=dtype).model.rotary_emb
    positions = torch.arange(1000, 1010)[None]
    expected = TunerRotaryEmbedding(tiny_config())(torch.zeros(1), positions)
    for ours, exact in zip(table(torch.zeros(1, dtype=dtype), positions), expected, strict=True):
        assert torch.equal(ours, exact.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rms_norm_is_the_formula(dtype: torch.dtype) -> None:
    """The mean of squares in float32: 1000² alone is more than float16 holds."""
    norm = TunerRMSNorm(32, eps=1e-3)
    norm.weight.copy_(torch.linspace(-1, 2, 32))
    hidden = (torch.randn(5, 32, generator=torch.Generator().manual_seed(0)) * 1000).to(dtype)
    exact = hidden.double()
    expected = exact / (exact.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt() * norm.to(dtype).weight.double()
    assert norm(hidden).dtype == dtype
    torch.testing.assert_close(norm(hidden).double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_rms_norm_under_autocast() -> None:
    """Computed in float32, handed on in bfloat16 once, whether the residual stream or a head comes in."""
    norm, hidden = TunerRMSNorm(32, eps=1e-6), torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    for given_ in (hidden, hidden.bfloat16()):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            normed = norm(given_)
        assert normed.dtype == torch.bfloat16
        assert torch.equal(normed, norm(given_.float()).bfloat16())


def test_epsilon_counts() -> None:
    norm = TunerRMSNorm(4, eps=1.0)
    assert torch.equal(norm(torch.zeros(2, 4)), torch.zeros(2, 4))
    torch.testing.assert_close(norm(torch.ones(2, 4)), torch.full((2, 4), 0.5**0.5))
