"""Self-attention and cross-attention with grouped key/value heads.

The product itself (eager, SDPA, flash, flex) is transformers' job: this module projects, normalises, rotates, keeps the
cache and hands over. `**kwargs` travels to the bottom untouched, which is what lets an inference server put its own
kernel in.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .components import TunerConfig
from .linear import LINEAR_ATTENTION
from .norm import build_norm
from .recompute import rotate


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    position_bias: torch.Tensor | None = None,
    **_: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(q kᵀ · scaling + bias + mask) v (Vaswani et al. 2017): the reference, and the one with weights.

    Args:
        query: `(batch, heads, time, head_dim)`.
        key, value: `(batch, key_value_heads, key_time, head_dim)`.
        attention_mask: additive, broadcastable to `(batch, heads, time, key_time)`.
        position_bias: `(1, heads, time, key_time)`.

    Returns:
        The mixed values `(batch, time, heads, head_dim)` and the weights `(batch, heads, time, key_time)`.
    """
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)
    scores = query @ key.transpose(2, 3) * scaling
    for term in (position_bias, attention_mask):
        if term is not None:
            scores = scores + term
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def own_cache(cache: Cache | None) -> Cache | None:
    """What self-attention keeps: of a pair's two caches, the decoder's own."""
    return cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache


class TunerAttention(nn.Module):
    """Multi-head, grouped-query or multi-query attention, by `num_key_value_heads`; softmax or linear in time.

    Cross-attention is the same with keys and values from another sequence, and knows no positions.
    """

    recompute = True

    def __init__(self, config: TunerConfig, layer_idx: int, is_causal: bool, is_cross: bool = False):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        self.attention_dropout = config.attention_dropout
        self.is_causal = is_causal and not is_cross
        self.is_cross = is_cross
        sliding = config.layer_types[layer_idx] == "sliding_attention"
        self.sliding_window = config.sliding_window if sliding and not is_cross else None

        query_size, key_value_size = (
            n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads)
        )
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, key_value_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, key_value_size, bias=config.attention_bias)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=config.attention_out_bias)
        if config.use_qk_norm:
            self.q_norm = build_norm(config, config.head_dim)
            self.k_norm = build_norm(config, config.head_dim)
        linear = None if is_cross else LINEAR_ATTENTION.get(config.attention_type)
        self.linear = None if linear is None else linear(config, layer_idx, is_causal)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        key_value_states: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Mix `hidden_states` `(batch, time, hidden_size)`; returns the same shape, and the weights where eager."""
        batch_and_time = hidden_states.shape[:-1]
        query = self.q_proj(hidden_states).view(*batch_and_time, -1, self.head_dim)
        if self.config.use_qk_norm:
            query = self.q_norm(query)
        query = query.transpose(1, 2)
        if self.is_cross:
            key, value = self._encoded(key_value_states, past_key_values)
        else:
            key, value = self._keys_and_values(hidden_states)
            if position_embeddings is not None:
                cos, sin = (table.unsqueeze(1) for table in position_embeddings)
                query, key = (rotate(heads, cos, sin, self.recompute) for heads in (query, key))
            if self.linear is None:  # what a norm or float32 tables widen under autocast: attention takes one type
                query, key = query.to(value.dtype), key.to(value.dtype)
            cache = own_cache(past_key_values)
            if cache is not None:
                key, value = cache.update(key, value, self.layer_idx)
        if self.linear is not None:
            mixed = self.linear(query, key, value, attention_mask, self.scaling)
            return self.o_proj(mixed.reshape(*batch_and_time, -1)), None
        if position_bias is not None:
            heads = query.shape[1]
            if heads != position_bias.shape[1]:  # tensor parallel: this device has some of the heads
                shard: Any = self.q_proj.weight
                first = shard.device_mesh.get_local_rank("tp") * heads
                position_bias = position_bias[:, first : first + heads]
            if self.config._attn_implementation == "flex_attention":  # it indexes the rows of the batch
                position_bias = position_bias.expand(len(query), -1, -1, -1)
            kwargs["position_bias"] = position_bias.to(query.dtype)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        mixed, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            **kwargs,
        )
        return self.o_proj(mixed.reshape(*batch_and_time, -1)), weights

    def _keys_and_values(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        key, value = self.k_proj(hidden_states).view(heads), self.v_proj(hidden_states).view(heads)
        if self.config.use_qk_norm:
            key = self.k_norm(key)
        return key.transpose(1, 2), value.transpose(1, 2)

    def _encoded(self, states: torch.Tensor | None, cache: Cache | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the encoder's output, made once for all steps of a generation."""
        if not isinstance(cache, EncoderDecoderCache):
            return self._keys_and_values(states)
        if cache.is_updated.get(self.layer_idx):
            layer = cache.cross_attention_cache.layers[self.layer_idx]
            return layer.keys, layer.values
        key, value = cache.cross_attention_cache.update(*self._keys_and_values(states), self.layer_idx)
        cache.is_updated[self.layer_idx] = True
        return key, value
