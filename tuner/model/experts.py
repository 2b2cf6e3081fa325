"""A mixture of experts: each token is sent to a few of many feed-forwards (Shazeer et al. 2017,
https://arxiv.org/abs/1701.06538), chosen and weighed as in Mixtral (Jiang et al. 2024, https://arxiv.org/abs/2401.04088).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.integrations.moe import use_experts_implementation

from .components import TunerConfig


class TunerRouter(nn.Module):
    """Logits over the experts, and the best few with weights that sum to 1."""

    def __init__(self, config: TunerConfig):
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.weight = nn.Parameter(torch.empty(config.num_local_experts, config.hidden_size))

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`(tokens, hidden_size)` to logits `(tokens, experts)`, weights and indices `(tokens, top_k)`."""
        logits = F.linear(hidden_states, self.weight)
        weights, indices = logits.float().softmax(dim=-1).topk(self.top_k, dim=-1)
        return logits, weights / weights.sum(dim=-1, keepdim=True), indices


@use_experts_implementation
class TunerExperts(nn.Module):
    """Gated feed-forwards in two tensors. Tokens are grouped by expert, so that the cost follows the active ones;
    transformers' `experts_implementation` chooses how (`grouped_mm` by default, `batched_mm`, or `eager`, below)."""

    def __init__(self, config: TunerConfig):
        super().__init__()
        self.num_experts = config.num_local_experts
        sizes = config.num_local_experts, config.intermediate_size, config.hidden_size
        self.gate_up_proj = nn.Parameter(torch.empty(sizes[0], 2 * sizes[1], sizes[2]))
        self.down_proj = nn.Parameter(torch.empty(sizes[0], sizes[2], sizes[1]))
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """`(tokens, hidden_size)` in and out; `indices` and `weights` `(tokens, top_k)`."""
        output = torch.zeros_like(hidden_states)
        for expert in range(self.num_experts):
            tokens, choice = (indices == expert).nonzero(as_tuple=True)
            gate, up = F.linear(hidden_states[tokens], self.gate_up_proj[expert]).chunk(2, dim=-1)
            found = F.linear(self.act_fn(gate) * up, self.down_proj[expert]) * weights[tokens, choice, None]
            output.index_add_(0, tokens, found.to(output.dtype))
        return output


class TunerMixtureOfExperts(nn.Module):
    """Router and experts. `(batch, time, hidden_size)` in and out."""

    def __init__(self, config: TunerConfig):
        super().__init__()
        self.router = TunerRouter(config)
        self.experts = TunerExperts(config)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        _, weights, indices = self.router(tokens)
        return self.experts(tokens, indices, weights).view_as(hidden_states)


def load_balancing_loss(
    router_logits: tuple[torch.Tensor, ...], top_k: int, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """1 or more times `top_k`, the less even the routing the more (Fedus et al. 2021, https://arxiv.org/abs/2101.03961,
    equation 4, summed over the `top_k` choices as in Mixtral).

    Args:
        router_logits: of each layer, `(tokens, experts)`.
        attention_mask: `(batch, time)`; padding does not count.
    """
    logits = torch.cat([layer.float() for layer in router_logits])
    odds = logits.softmax(dim=-1)
    chosen = F.one_hot(odds.topk(top_k, dim=-1).indices, logits.shape[-1]).float()
    if attention_mask is None:
        weight = logits.new_full((len(logits), 1), 1 / len(logits))
    else:
        real = attention_mask.reshape(-1).to(logits).repeat(len(router_logits))
        weight = (real / real.sum())[:, None]
    return logits.shape[-1] * ((chosen * weight[:, None]).sum(dim=0) * (odds * weight).sum(dim=0)).sum()
