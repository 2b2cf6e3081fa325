"""One block of the stack: attention and feed-forward, each normalised before and added to the residual stream."""

from __future__ import annotations

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .attention import TunerAttention
from .configuration import TunerDecoderConfig
from .feedforward import TunerGatedMLP
from .norm import TunerRMSNorm


class TunerDecoderLayer(GradientCheckpointingLayer):
    """Pre-norm block: `x + dropout(attention(norm(x)))`, then `x + dropout(mlp(norm(x)))`."""

    def __init__(self, config: TunerDecoderConfig, layer_idx: int):
        super().__init__()
        self.self_attn = TunerAttention(config, layer_idx)
        self.mlp = TunerGatedMLP(config)
        self.input_layernorm = TunerRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = TunerRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """`(batch, time, hidden_size)` in and out."""
        attended, _ = self.self_attn(
            self.input_layernorm(hidden_states),
            position_embeddings=position_embeddings,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            **kwargs,
        )
        hidden_states = hidden_states + self.dropout(attended)
        return hidden_states + self.dropout(self.mlp(self.post_attention_layernorm(hidden_states)))
