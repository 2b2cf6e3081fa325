"""Where a token stands: rotary position embeddings.

The rotation follows Su et al. 2021 (https://arxiv.org/abs/2104.09864) in the half-split layout of Llama: dimension `i`
turns together with dimension `i + head_dim / 2`. The frequencies, and every scaling of them for long contexts, come
from transformers' own table, so that a `rope_type` means here what it means there.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update

from .configuration import TunerDecoderConfig


class TunerRotaryEmbedding(nn.Module):
    """Position ids `(batch, time)` to cosines and sines `(batch, time, head_dim)` in the dtype of `hidden_states`."""

    inv_freq: torch.Tensor
    original_inv_freq: torch.Tensor

    def __init__(self, config: TunerDecoderConfig):
        super().__init__()
        self.config = config
        self.max_seq_len_cached = config.max_position_embeddings
        self.original_max_seq_len = config.max_position_embeddings
        self.rope_type = config.rope_parameters["rope_type"]
        init_function = ROPE_INIT_FUNCTIONS.get(self.rope_type, self.compute_default_rope_parameters)
        inv_freq, self.attention_scaling = init_function(config)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(config: TunerDecoderConfig, **_: object) -> tuple[torch.Tensor, float]:
        """`theta ** (-2i / head_dim)` for each pair `i`, and the factor 1 on cosine and sine.

        transformers calls this by its name when weights are initialised after loading on the meta device.
        """
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float) / config.head_dim
        return 1.0 / config.rope_parameters["rope_theta"] ** exponents, 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # Angles in float32 whatever the model's dtype: a position above 256 is not exact in bfloat16.
        angles = position_ids[..., None].float() * self.inv_freq.float()
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return cos.to(hidden_states.dtype), sin.to(hidden_states.dtype)
