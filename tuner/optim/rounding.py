"""Numbers in fewer bits: two halves of a float32, bfloat16 rounded at random, and one byte with a scale.

`noise` is always integers uniform in [0, 2^16): with it a number becomes one of its two neighbours, with odds that make
the mean right.
"""

from __future__ import annotations

import torch


def join(high: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    """The float32 that `high` (bfloat16) and `low` (int8, in units of 1/256 of its last bit) stand for together."""
    return ((high.view(torch.int16).int() << 16) + (low.int() << 8)).view(torch.float32)


def split(weight: torch.Tensor, high: torch.Tensor, low: torch.Tensor, noise: torch.Tensor | None = None) -> None:
    """Write a float32 `weight` as its nearest bfloat16 `high` and what is left, `low` (int8).

    The 8 bits below those are rounded to nearest, or with `noise`, integers uniform in [0, 2^16), stochastically.
    """
    bits = weight.view(torch.int32) + (0x80 if noise is None else noise & 0xFF)
    upper = (bits + 0x8000) >> 16
    high.view(torch.int16).copy_(upper)
    low.copy_((bits - (upper << 16)) >> 8)


def round_stochastically(value: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """A bfloat16 above or below `value`, with the odds that make the mean right; `noise` is uniform in [0, 2^16)."""
    return ((value.view(torch.int32) + noise) >> 16).to(torch.int16).view(torch.bfloat16)


def compress(values: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, noise: torch.Tensor) -> None:
    """Write float32 `values` as `codes` (int8) in units of their block's largest, `scales` `(blocks, 1)`.

    A code is the square root, so that small numbers beside a large one keep more digits: steps are 1.6 % of the largest
    near it, 0.16 % at a hundredth of it. Roots are rounded stochastically; this is right in the mean to 2e-5 of the
    largest.
    """
    blocks = values.view(len(scales), -1)
    roots = blocks.abs()
    scales.copy_(roots.amax(dim=1, keepdim=True))
    roots.div_(scales.clamp(min=torch.finfo(torch.float32).tiny)).sqrt_().mul_(127)
    roots.view(-1).add_(noise, alpha=2**-16)
    codes.copy_(roots.floor_().copysign_(blocks).view(-1))


def expand(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The float32 numbers that `compress` wrote, as a vector."""
    roots = codes.float()
    return roots.mul_(roots.abs()).view(len(scales), -1).mul_(scales / 127**2).view(-1)
