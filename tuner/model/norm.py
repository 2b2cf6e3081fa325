"""Normalisation: RMSNorm (Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467), LayerNorm, and where they stand."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from .components import TunerConfig
from .recompute import rms_norm


class TunerRMSNorm(nn.Module):
    """`x / sqrt(mean(x²) + eps) * weight` over the last dimension, computed in float32 or better.

    Under autocast the result comes in the autocast dtype: the products that read it (three in attention, two in the
    feed-forward) would otherwise each cast it for themselves.
    """

    recompute = True

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        device = hidden_states.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_states.dtype
        return rms_norm(hidden_states, self.weight, self.eps, dtype, self.recompute)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.eps}"


def build_norm(config: TunerConfig, size: int | None = None) -> nn.Module:
    """The configuration's norm over the last `size` dimensions, `hidden_size` by default."""
    size = config.hidden_size if size is None else size
    kind = TunerRMSNorm if config.norm_type == "rmsnorm" else nn.LayerNorm
    return kind(size, config.norm_eps)


class TunerResidual(nn.Module):
    """The residual connection around a sublayer, with the norm before it, after the sum, or on both its sides.

    `pre`: `x + f(norm(x))`. `post`: `norm(x + f(x))`. `both`: `x + output_norm(f(norm(x)))`.
    """

    def __init__(self, config: TunerConfig):
        super().__init__()
        self.is_post = config.norm_position == "post"
        self.norm = build_norm(config)
        self.output_norm = build_norm(config) if config.norm_position == "both" else None
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden_states: torch.Tensor, sublayer: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """`(batch, time, hidden_size)` in and out."""
        if self.is_post:
            return self.norm(hidden_states + self.dropout(sublayer(hidden_states)))
        output = sublayer(self.norm(hidden_states))
        if self.output_norm is not None:
            output = self.output_norm(output)
        return hidden_states + self.dropout(output)
