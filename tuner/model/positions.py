"""Where a token stands: rotary embeddings, sinusoidal ones, and biases on the scores.

The rotation follows Su et al. 2021 (https://arxiv.org/abs/2104.09864) in the half-split layout of Llama: dimension `i`
turns together with dimension `i + head_dim / 2`. The frequencies, and every scaling of them for long contexts, come
from transformers' own table, so that a `rope_type` means here what it means there.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update

from .components import TunerConfig


class TunerRotaryEmbedding(nn.Module):
    """Position ids `(batch, time)` to cosines and sines `(batch, time, head_dim)` in the dtype of `hidden_states`."""

    inv_freq: torch.Tensor
    original_inv_freq: torch.Tensor

    def __init__(self, config: TunerConfig):
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
    def compute_default_rope_parameters(config: TunerConfig, **_: object) -> tuple[torch.Tensor, float]:
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


class TunerSinusoidalEmbedding(nn.Module):
    """Position ids `(batch, time)` to `(batch, time, size)`: sines, then cosines, of wavelengths 2π to 20,000π (Vaswani
    et al. 2017, section 3.5), computed where they are needed, so that no sequence is too long."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, position_ids: torch.Tensor) -> torch.Tensor:
        exponents = torch.arange(0, self.size, 2, device=position_ids.device, dtype=torch.float) / self.size
        angles = position_ids[..., None].float() * 10_000.0**-exponents
        return torch.cat((angles.sin(), angles.cos()), dim=-1)


class TunerAlibiBias(nn.Module):
    """`-slope · |distance|` for each head (Press et al. 2021, https://arxiv.org/abs/2108.12409), `(1, heads, q, k)`.

    The slopes are a geometric sequence from `2^(-8 / heads)` to `2^-8`.
    """

    def __init__(self, config: TunerConfig, bidirectional: bool):
        super().__init__()
        self.heads = config.num_attention_heads

    def forward(self, distance: torch.Tensor) -> torch.Tensor:
        steps = torch.arange(1, self.heads + 1, device=distance.device, dtype=torch.float) / self.heads
        return (2.0 ** (-8 * steps))[:, None, None] * -distance.abs().float()


class TunerRelativeBias(nn.Module):
    """A learned number for each head and bucket of distances (Raffel et al. 2019, https://arxiv.org/abs/1910.10683),
    `(1, heads, q, k)`.

    Half of a direction's buckets are single distances, the other half grow to `max_distance`, logarithmically.
    """

    def __init__(self, config: TunerConfig, bidirectional: bool):
        super().__init__()
        self.bidirectional = bidirectional
        self.num_buckets = config.relative_attention_num_buckets
        self.max_distance = config.relative_attention_max_distance
        self.bias = nn.Embedding(self.num_buckets, config.num_attention_heads)

    def forward(self, distance: torch.Tensor) -> torch.Tensor:
        return self.bias(self.bucket(distance)).movedim(-1, -3)

    def bucket(self, distance: torch.Tensor) -> torch.Tensor:
        """The bucket of key position minus query position. A causal bias has none for what lies ahead."""
        buckets, first = self.num_buckets, torch.zeros_like(distance)
        if self.bidirectional:
            buckets //= 2
            first = (distance > 0).long() * buckets
            distance = distance.abs()
        else:
            distance = (-distance).clamp(min=0)
        exact = buckets // 2
        growth = torch.log(distance.float() / exact) / math.log(self.max_distance / exact)
        far = (exact + (growth * (buckets - exact)).long()).clamp(max=buckets - 1)
        return first + torch.where(distance < exact, distance, far)


BIAS_CLASSES = {"alibi": TunerAlibiBias, "relative": TunerRelativeBias}
