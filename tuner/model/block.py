"""One block of every stack: self-attention, cross-attention where there is an encoder, and a feed-forward."""

from __future__ import annotations

from functools import partial

import torch
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .attention import TunerAttention
from .components import TunerConfig
from .feedforward import build_feed_forward
from .norm import TunerResidual


class TunerLayer(GradientCheckpointingLayer):
    """Sublayers, each inside a residual connection with its norm."""

    def __init__(self, config: TunerConfig, layer_idx: int, is_causal: bool, has_cross_attention: bool = False):
        super().__init__()
        self.attention_type = config.layer_types[layer_idx]
        self.self_attn = TunerAttention(config, layer_idx, is_causal)
        self.self_attn_residual = TunerResidual(config)
        self.cross_attn = TunerAttention(config, layer_idx, is_causal, is_cross=True) if has_cross_attention else None
        self.cross_attn_residual = TunerResidual(config) if has_cross_attention else None
        self.mlp = build_feed_forward(config)
        self.mlp_residual = TunerResidual(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_bias: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        past_key_values: Cache | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """`(batch, time, hidden_size)` in and out; `encoder_hidden_states` `(batch, source time, hidden_size)`."""
        attend = partial(
            self.self_attn,
            position_embeddings=position_embeddings,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_bias=position_bias,
            **kwargs,
        )
        hidden_states = self.self_attn_residual(hidden_states, lambda states: attend(states)[0])
        if self.cross_attn is not None and self.cross_attn_residual is not None and encoder_hidden_states is not None:
            attend_across = partial(
                self.cross_attn,
                attention_mask=encoder_attention_mask,
                past_key_values=past_key_values,
                key_value_states=encoder_hidden_states,
                **kwargs,
            )
            hidden_states = self.cross_attn_residual(hidden_states, lambda states: attend_across(states)[0])
        # A function and not the module: accelerate moves every argument that can be moved.
        return self.mlp_residual(hidden_states, lambda states: self.mlp(states))
