"""Numbers in fewer bits are near what they stand for, and right in the mean."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.optim.split_adamw import compress, expand, join, round_stochastically, split

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False, max_value=2.0**127, min_value=-(2.0**127))


@settings(deadline=None)
@given(st.lists(FLOATS, min_size=1))
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


def one_byte(values, blocks, seed=0):
    noise = torch.randint(2**16, values.shape, dtype=torch.int32, generator=torch.Generator().manual_seed(seed))
    codes, scales = torch.empty_like(values, dtype=torch.int8), torch.empty(blocks, 1)
    compress(values, codes, scales, noise)
    return expand(codes, scales)


@settings(deadline=None)
@given(st.lists(FLOATS.map(lambda value: value if abs(value) > 1e-30 else 0.0), min_size=1), st.integers(0, 99))
def test_one_byte_is_a_neighbour_of_the_number(values, seed):
    values = torch.tensor(values)
    largest = values.abs().max().clamp(min=1e-30).double()
    found, wanted = one_byte(values, 1, seed).double() / largest, values.double() / largest
    roots = wanted.abs().sqrt() * 127
    assert ((found.abs().sqrt() * 127 - roots).abs() < 1.001).all()
    assert (found * wanted >= 0).all(), "the sign stays"
    assert found.abs().max() == pytest.approx(float(wanted.abs().max()), rel=1e-5), "the largest is exact"


def test_one_byte_is_right_in_the_mean():
    values = torch.tensor([1.0, 0.3, 0.01, -0.001, 0.0]).repeat(100_000)
    means = one_byte(values, 1).view(-1, 5).double().mean(dim=0)
    torch.testing.assert_close(means, torch.tensor([1.0, 0.3, 0.01, -0.001, 0.0]).double(), rtol=2e-3, atol=2e-5)


def test_every_block_has_its_own_scale():
    values = torch.cat([torch.full((64,), 1e-12), torch.full((64,), 1e6), torch.zeros(64)])
    torch.testing.assert_close(one_byte(values, 3), values, rtol=1e-6, atol=0)
