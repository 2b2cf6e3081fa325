"""Attention whose time and memory grow with the sequence and not with its square: Linformer and Performer.

Both take queries `(batch, heads, time, head_dim)`, keys and values `(batch, key_value_heads, key_time, head_dim)`, and
`attention_mask` `(batch, key_time)`, true for a real token, or none. They return `(batch, time, heads, head_dim)`.
"""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import nn

from .components import TunerConfig

# Queries and keys that a causal Performer compares directly; all before them are met as one running sum.
CHUNK = 128
# Added to every feature, so that a query all of whose features are tiny averages instead of dividing by zero.
STABILIZER = 1e-10


def _grouped(states: torch.Tensor, groups: int) -> torch.Tensor:
    return states.repeat_interleave(groups, dim=1) if groups > 1 else states


class TunerLinformer(nn.Module):
    """softmax(q (E k)ᵀ) F v: keys and values in `linformer_k` learned mixtures of positions (Wang et al. 2020,
    https://arxiv.org/abs/2006.04768). Not causal: every mixture holds the whole sequence."""

    def __init__(self, config: TunerConfig, layer_idx: int, is_causal: bool):
        super().__init__()
        self.groups = config.num_attention_heads // config.num_key_value_heads
        self.dropout = nn.Dropout(config.attention_dropout)
        shape = (config.linformer_k, config.max_position_embeddings)
        self.key_mixture, self.value_mixture = nn.Parameter(torch.empty(shape)), nn.Parameter(torch.empty(shape))

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float,
    ) -> torch.Tensor:
        """Raises ValueError for a sequence longer than `max_position_embeddings`."""
        time, longest = key.shape[2], self.key_mixture.shape[1]
        if time > longest:
            raise ValueError(f"Linformer mixes at most max_position_embeddings ({longest}) positions, not {time}.")
        if attention_mask is not None:
            real = attention_mask[:, None, :, None].to(key.dtype)
            key, value = key * real, value * real
        key = _grouped(self.key_mixture[:, :time].to(key.dtype) @ key, self.groups)
        value = _grouped(self.value_mixture[:, :time].to(value.dtype) @ value, self.groups)
        weights = (query @ key.transpose(2, 3) * scaling).softmax(dim=-1, dtype=torch.float32).to(value.dtype)
        return (self.dropout(weights) @ value).transpose(1, 2)


class TunerPerformer(nn.Module):
    """FAVOR+ (Choromanski et al. 2020, https://arxiv.org/abs/2009.14794): softmax attention in expectation.

    `exp(q·k) = E[φ(q)·φ(k)]` with `φ(x) = exp(ωᵀx - |x|²/2)` over normal ω, here orthogonal in blocks, which lowers the
    variance. Then `φ(q) (φ(k)ᵀ v)` never forms a matrix of queries by keys.
    """

    features: torch.Tensor

    def __init__(self, config: TunerConfig, layer_idx: int, is_causal: bool):
        super().__init__()
        self.groups = config.num_attention_heads // config.num_key_value_heads
        self.is_causal = is_causal
        self.seed = config.performer_seed + layer_idx
        self.register_buffer("features", torch.empty(config.performer_features, config.head_dim), persistent=False)

    def draw_features(self) -> torch.Tensor:
        """ω `(performer_features, head_dim)`, the same for a seed: blocks of orthogonal rows with normal lengths."""
        count, size = self.features.shape
        generator = torch.Generator().manual_seed(self.seed)
        rows = []
        for _ in range(-(-count // size)):
            normal = torch.randn(size, size, generator=generator)
            lengths = torch.randn(size, size, generator=generator).norm(dim=1, keepdim=True)
            basis, triangle = torch.linalg.qr(normal)
            # Without the signs the directions are not uniform, and no number of features makes up for it.
            rows.append((basis * triangle.diagonal().sign()).T * lengths)
        return torch.cat(rows)[:count]

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float,
    ) -> torch.Tensor:
        dtype = value.dtype
        key, value = _grouped(key, self.groups).float(), _grouped(value, self.groups).float()
        # Whatever is subtracted in the exponent, a number per query and one for all keys, cancels in the quotient.
        query_features = self._exponents(query.float() * scaling**0.5)
        query_features = (query_features - query_features.amax(dim=-1, keepdim=True)).exp() + STABILIZER
        key_features = self._exponents(key * scaling**0.5)
        if attention_mask is not None:
            key_features = key_features.masked_fill(~attention_mask[:, None, :, None].bool(), -torch.inf)
        key_features = (key_features - key_features.amax(dim=(-1, -2), keepdim=True)).exp() + STABILIZER
        if attention_mask is not None:
            key_features = key_features * attention_mask[:, None, :, None]
        value = nn.functional.pad(value, (0, 1), value=1.0)  # the last column sums the weights
        mix = _mix_causal if self.is_causal and query.shape[2] > 1 else _mix
        mixed = mix(query_features, key_features, value)
        return (mixed[..., :-1] / mixed[..., -1:].clamp(min=1e-30)).to(dtype).transpose(1, 2)

    def _exponents(self, states: torch.Tensor) -> torch.Tensor:
        return states @ self.features.float().T - states.square().sum(dim=-1, keepdim=True) / 2


def _mix(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return query @ (key.transpose(2, 3) @ value)


def _mix_causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """As `_mix` over what is not ahead; queries are the last ones of the keys' sequence."""
    time, past = query.shape[2], key.shape[2] - query.shape[2]
    before = (key[:, :, :past].transpose(2, 3) @ value[:, :, :past]).unsqueeze(2)
    missing = -time % CHUNK
    chunks = [
        nn.functional.pad(t, (0, 0, 0, missing)).unflatten(2, (-1, CHUNK))
        for t in (query, key[:, :, past:], value[:, :, past:])
    ]
    query, key, value = chunks
    sums = key.transpose(3, 4) @ value
    before = before + _cumulated(sums) - sums
    within = (query @ key.transpose(3, 4)).tril() @ value
    return (within + query @ before).flatten(2, 3)[:, :, :time]


def _cumulated(sums: torch.Tensor) -> torch.Tensor:
    """`sums.cumsum(dim=2)`, which CUDA does in no fixed order, and refuses where one is asked for."""
    if torch.are_deterministic_algorithms_enabled():
        return torch.stack(list(accumulate(sums.unbind(dim=2))), dim=2)
    return sums.cumsum(dim=2)


LINEAR_ATTENTION = {"linformer": TunerLinformer, "performer": TunerPerformer}
