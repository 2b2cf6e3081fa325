"""Floating-point operations of a model, counted from its shape. Nothing is computed: the meta device will do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

# What an attention's projections are called in transformers: of queries and keys, or of all three in one.
QUERIES, KEYS = ("q_proj", "query", "q", "q_lin"), ("k_proj", "key", "k", "k_lin")
FUSED = ("c_attn", "query_key_value", "qkv_proj", "Wqkv", "in_proj")
# What belongs to the decoder of a pair, by the names of its modules; which of its attentions look at the encoder's
# output, and which of their weights that output meets.
DECODER, CROSS = r"\bdecoder\.(block|layers?)\.", r"cross|encoder_attn|EncDecAttention"
ENCODED = rf"({CROSS}).*\.(k|v|k_proj|v_proj|key|value)$"


@dataclass(frozen=True)
class AttentionLayer:
    """One attention.

    Attributes:
        width: of all query heads; `key_width`: of all key heads.
        window: tokens that a sliding layer sees at most.
        fixed: operations a token of attention that is linear in time, whatever the sequence; None for softmax.
        decodes: it belongs to the decoder of a pair; `cross`: and looks at the encoder's output.
    """

    width: int
    key_width: int
    causal: bool
    window: int | None = None
    fixed: int | None = None
    decodes: bool = False
    cross: bool = False

    def operations(self, tokens: float, labels: float, pairs: float) -> float:
        """Two products a pair of query and key, each of two operations a dimension; see `Operations.forward`."""
        queries, share = (labels, labels / tokens if tokens else 0.0) if self.decodes else (tokens, 1.0)
        if self.fixed is not None:
            return queries * self.fixed
        seen = pairs * share * (1 if self.cross else share)
        seen = seen / 2 if self.causal else seen
        return 4 * self.width * (seen if self.window is None else min(seen, queries * self.window))


@dataclass(frozen=True)
class Operations:
    """Operations of the products that a pass cannot do without: 2 a token for each weight that it meets, and those of
    the attention scores (Kaplan et al. 2020, https://arxiv.org/abs/2001.08361, section 2.1; Chowdhery et al. 2022,
    https://arxiv.org/abs/2204.02311, appendix B).

    Attributes:
        weights: that each token meets outside of the head; of experts those that it is sent to.
        decoder: that each label meets in the decoder of a pair; 0 for a single stack.
        head: that each label meets in what gives the logits.
        layers: every attention.
    """

    weights: int
    decoder: int
    head: int
    layers: tuple[AttentionLayer, ...]

    @classmethod
    def of(cls, model: nn.Module) -> Operations:
        """Count a model's."""
        parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
        heads = {id(part.get_output_embeddings()) for part in parts}
        paired = any(part.config.is_encoder_decoder for part in parts)
        met = {"weights": 0, "decoder": 0, "head": 0}
        for name, module in model.named_modules():
            decodes = paired and re.search(DECODER, name) and not re.search(ENCODED, name)
            part = "head" if id(module) in heads else "decoder" if decodes else "weights"
            met[part] += _met(module, _config(model, name))
        return cls(**met, layers=tuple(attention_layers(model)))

    def products(self, tokens: float, labels: float) -> float:
        """A forward pass's operations with weights."""
        return 2 * (tokens * self.weights + labels * (self.decoder + self.head))

    def attention(self, tokens: float, labels: float, pairs: float) -> float:
        """A forward pass's operations between queries and keys."""
        return sum(layer.operations(tokens, labels, pairs) for layer in self.layers)

    def forward(self, tokens: float, labels: float, pairs: float) -> float:
        """A forward pass's operations.

        Args:
            tokens: that are read, padding left out.
            labels: tokens that the head sees; of a pair, the tokens that the decoder reads.
            pairs: of two tokens in one sequence, which is the sum of the squared lengths of the sequences. A causal
                layer sees half of them.
        """
        return self.products(tokens, labels) + self.attention(tokens, labels, pairs)

    def training(self, tokens: float, labels: float, pairs: float) -> float:
        """Those of a forward and a backward pass, which costs twice the forward pass; see `forward`."""
        return 3 * self.forward(tokens, labels, pairs)


def _config(model: Any, name: str) -> Any:
    """The configuration of the innermost model that a module is in."""
    found = model.config
    for part in name.split(".") if name else ():
        model = getattr(model, part)
        found = model.config if isinstance(model, PreTrainedModel) else found
    return found


def _met(module: nn.Module, config: Any) -> int:
    """Weights of a module itself that a token meets in products."""
    if isinstance(module, nn.Linear | Conv1D):
        return module.weight.numel()
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    if not experts or isinstance(module, nn.Embedding):
        return 0
    own = [p for p in module.parameters(recurse=False) if p.dim() > 1 and len(p) == experts]
    chosen = config.num_experts_per_tok
    # Experts lie in one tensor of three dimensions; a router gives each token a number for each expert.
    return sum(p.numel() * chosen // experts if p.dim() == 3 else p.numel() for p in own)


def attention_layers(model: nn.Module) -> Iterator[AttentionLayer]:
    """Every attention of a model of ours or of transformers."""
    paired = any(part.config.is_encoder_decoder for part in model.modules() if isinstance(part, PreTrainedModel))
    for name, module in model.named_modules():
        children = dict(module.named_children())
        config = _config(model, name)
        if any(child in children for child in FUSED):
            head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
            width = key_width = head * config.num_attention_heads
        elif any(child in children for child in QUERIES):
            width, key_width = (
                next(children[name].weight.shape[0] for name in side if name in children) for side in (QUERIES, KEYS)
            )
        else:
            continue
        cross = bool(re.search(CROSS, name))
        yield AttentionLayer(
            width,
            key_width,
            causal=bool(getattr(module, "is_causal", False)) and not cross,
            window=None if cross else _window(module, config),
            fixed=None if cross else _fixed(config, width, key_width),
            decodes=paired and bool(re.search(DECODER, name)),
            cross=cross,
        )


def _window(module: Any, config: Any) -> int | None:
    kinds = None if hasattr(module, "sliding_window") else getattr(config, "layer_types", None)
    window = getattr(module, "sliding_window", getattr(config, "sliding_window", None))
    return window if kinds is None or kinds[module.layer_idx] == "sliding_attention" else None


def _fixed(config: Any, width: int, key_width: int) -> int | None:
    """A token's operations in attention that is linear in time."""
    kind = getattr(config, "attention_type", "softmax")
    if kind == "linformer":  # scores and mixture over so many keys, after keys and values are mixed into those
        return 4 * config.linformer_k * (width + key_width)
    if kind == "performer":  # features of queries and keys, their products with the values, and with the mixture
        return 8 * config.performer_features * width
    return None
