"""Causal self-attention with grouped key/value heads.

The product itself (eager, SDPA, flash, flex) is transformers' job: this module projects, normalises, rotates, keeps the
cache and hands over. `**kwargs` travels to the bottom untouched, which is what lets an inference server put its own
kernel in.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration import TunerDecoderConfig
from .lean import rotate
from .norm import TunerRMSNorm


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(q kᵀ · scaling + mask) v (Vaswani et al. 2017), written out: the reference, and the one with weights.

    Args:
        query: `(batch, heads, time, head_dim)`.
        key, value: `(batch, key_value_heads, key_time, head_dim)`.
        attention_mask: additive, broadcastable to `(batch, heads, time, key_time)`.

    Returns:
        The mixed values `(batch, time, heads, head_dim)` and the weights `(batch, heads, time, key_time)`.
    """
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class TunerAttention(nn.Module):
    """Multi-head, grouped-query or multi-query attention, by `num_key_value_heads`."""

    def __init__(self, config: TunerDecoderConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True

        query_size, key_value_size = (
            n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads)
        )
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, key_value_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, key_value_size, bias=config.attention_bias)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=config.attention_bias)
        if config.use_qk_norm:
            self.q_norm = TunerRMSNorm(config.head_dim, config.rms_norm_eps)
            self.k_norm = TunerRMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Mix `hidden_states` `(batch, time, hidden_size)`; returns the same shape, and the weights where eager."""
        batch_and_time = hidden_states.shape[:-1]
        heads = (*batch_and_time, -1, self.head_dim)
        query = self.q_proj(hidden_states).view(heads)
        key = self.k_proj(hidden_states).view(heads)
        value = self.v_proj(hidden_states).view(heads).transpose(1, 2)
        if self.config.use_qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        cos, sin = (table.unsqueeze(1) for table in position_embeddings)
        query = rotate(query.transpose(1, 2), cos, sin)
        key = rotate(key.transpose(1, 2), cos, sin)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)

        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        mixed, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(mixed.reshape(*batch_and_time, -1)), weights
