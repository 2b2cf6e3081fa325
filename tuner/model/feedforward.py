"""Feed-forward: plain, gated (Shazeer 2020, https://arxiv.org/abs/2002.05202), or a mixture of gated experts."""

from __future__ import annotations

import torch
from torch import nn
from transformers.activations import ACT2FN

from .components import TunerConfig
from .experts import TunerMixtureOfExperts
from .recompute import silu_product


class TunerGatedMLP(nn.Module):
    """`down(act(gate(x)) * up(x))`; SwiGLU with `hidden_act="silu"`. `(batch, time, hidden_size)` in and out."""

    recompute = True

    def __init__(self, config: TunerConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.act_fn = ACT2FN[config.hidden_act]
        self.is_silu = config.hidden_act in ("silu", "swish")

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_proj(hidden_states), self.up_proj(hidden_states)
        return self.down_proj(silu_product(gate, up, self.recompute) if self.is_silu else self.act_fn(gate) * up)


class TunerMLP(nn.Module):
    """`down(act(up(x)))` (Vaswani et al. 2017, section 3.3). `(batch, time, hidden_size)` in and out."""

    def __init__(self, config: TunerConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.up_proj(hidden_states)))


def build_feed_forward(config: TunerConfig) -> nn.Module:
    """The configuration's feed-forward."""
    if config.num_local_experts:
        return TunerMixtureOfExperts(config)
    return TunerGatedMLP(config) if config.mlp_type == "gated" else TunerMLP(config)
