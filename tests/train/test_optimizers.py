"""bfloat16 weights with their next bits in the optimizer learn like float32 weights."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.recipes import equal
from tuner.train.optimizers import SplitAdamW, halve_parameters, join, round_stochastically, split


@settings(deadline=None)
@given(
    st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False, max_value=2.0**127, min_value=-(2.0**127)),
        min_size=1,
    )
)
def test_sixteen_bits_are_kept_and_the_upper_half_is_nearest(values):
    weight = torch.tensor(values, dtype=torch.float32)
    high, low = torch.empty_like(weight, dtype=torch.bfloat16), torch.empty_like(weight, dtype=torch.int8)
    split(weight, high, low)
    kept = join(high, low).double()
    smallest = 2.0**-126
    assert ((kept - weight.double()).abs() <= 2.0**-16 * weight.double().abs().clamp(min=smallest)).all()
    nearest = (kept.float().bfloat16().double() - kept).abs()
    assert ((high.double() - kept).abs() <= nearest).all()


def test_what_is_below_the_kept_bits_counts_in_the_mean():
    generator = torch.Generator().manual_seed(0)
    weight = torch.full((400_000,), 1.0 + 2.0**-18)
    high, low = torch.empty_like(weight, dtype=torch.bfloat16), torch.empty_like(weight, dtype=torch.int8)
    split(weight, high, low, torch.randint(2**16, weight.shape, dtype=torch.int32, generator=generator))
    kept = join(high, low).double()
    assert kept.unique().tolist() == [1.0, 1.0 + 2.0**-15]
    assert float(kept.mean() - 1) == pytest.approx(2.0**-18, rel=0.02)


def test_stochastic_rounding_is_right_on_average():
    generator = torch.Generator().manual_seed(0)
    value = torch.full((400_000,), 1.00123)
    rounded = round_stochastically(value, torch.randint(2**16, value.shape, dtype=torch.int32, generator=generator))
    assert len(rounded.unique()) == 2, "the bfloat16 above and the one below"
    assert rounded.double().mean() == pytest.approx(1.00123, abs=3e-5)


def train(optimizer, parameter, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        gradient = (
            torch.randn(parameter.shape, generator=generator) * 0.1 + parameter.detach().float() * 0.3
        ).bfloat16()
        parameter.grad = gradient.to(parameter.dtype)
        optimizer.step()


def test_it_follows_adamw_in_float32():
    torch.manual_seed(0)
    start = torch.randn(2000).bfloat16()
    plain, halved, naive = (
        torch.nn.Parameter(start.to(t).clone()) for t in (torch.float32, torch.bfloat16, torch.bfloat16)
    )
    settings = {"lr": 1e-4, "weight_decay": 0.1}
    one, other = torch.optim.AdamW([plain], **settings), SplitAdamW([halved], **settings)
    train(one, plain, 300)
    train(other, halved, 300)
    master = join(halved.data, other.state[halved]["low"])
    moved, lost = (plain - start.float()).abs().mean(), (master - plain).abs().mean()
    assert lost < 0.02 * moved
    train(torch.optim.AdamW([naive], **settings), naive, 300)
    assert (naive - plain).abs().mean() > 10 * lost, "bfloat16 alone cannot show most of these steps"


def test_its_state_survives_saving_bit_for_bit(tmp_path):
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(500).bfloat16())
    optimizer = SplitAdamW([parameter], lr=1e-3)
    train(optimizer, parameter, 5)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    again = torch.nn.Parameter(parameter.detach().clone())
    restored = SplitAdamW([again], lr=1e-3)
    restored.load_state_dict(torch.load(tmp_path / "optimizer.pt"))
    assert equal(optimizer.state_dict(), restored.state_dict())
    for one, which in ((optimizer, parameter), (restored, again)):
        torch.manual_seed(7)
        train(one, which, 3, seed=1)
    assert torch.equal(parameter, again) and equal(optimizer.state_dict(), restored.state_dict())


def test_large_and_small_parameters_and_groups():
    torch.manual_seed(0)
    large, small = (torch.nn.Parameter(torch.randn(shape).bfloat16()) for shape in ((1100, 1000), (3,)))
    frozen = torch.nn.Parameter(torch.ones(2).bfloat16())
    optimizer = SplitAdamW([{"params": [large], "weight_decay": 0.5}, {"params": [small, frozen], "weight_decay": 0.0}])
    before = copy.deepcopy((large.data, small.data))
    large.grad, small.grad = torch.randn_like(large), torch.randn_like(small)
    optimizer.step()
    for parameter, old in zip((large, small), before, strict=True):
        assert (join(parameter.data, optimizer.state[parameter]["low"]) != old.float()).float().mean() > 0.99
    assert torch.equal(frozen.data, torch.ones(2).bfloat16()), "no gradient, no step"


def test_a_first_small_step_shows_as_it_would_in_float32():
    """Weights begin with the bits that bfloat16 leaves out: a tiny step moves the right share of them."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(300, 300, bias=False)
    start = layer.weight.detach().clone()
    halve_parameters(layer)
    layer.weight.grad = -torch.ones_like(layer.weight)
    SplitAdamW(layer.parameters(), lr=1e-5, weight_decay=0.0).step()
    seen = (layer.weight.detach().double() - start.bfloat16().double()).mean()
    assert float(seen) == pytest.approx(1e-5, rel=0.05)


def test_other_dtypes_are_refused():
    with pytest.raises(ValueError, match=r"torch\.float32"):
        SplitAdamW([torch.nn.Parameter(torch.ones(2))])
