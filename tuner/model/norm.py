"""Normalisation: RMSNorm (Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467)."""

from __future__ import annotations

import torch
from torch import nn

from .lean import rms_norm


class TunerRMSNorm(nn.Module):
    """`x / sqrt(mean(x²) + eps) * weight` over the last dimension, computed in float32 or better.

    Under autocast the result comes in the autocast dtype: the products that read it (three in attention, two in the
    feed-forward) would otherwise each cast it for themselves.
    """

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        device = hidden_states.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_states.dtype
        return rms_norm(hidden_states, self.weight, self.eps, dtype)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.eps}"
