"""Parameters, operations and bytes of a model, by counting. Nothing is computed: the meta device will do."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tuner.hardware import device_type
from tuner.ops.chunked_loss import slice_rows

# What marks a component in a parameter's name; of several marks the last one decides: `self_attn.q_norm` is a norm.
COMPONENTS = {
    "embedding": r"embed|\b(wte|wpe|shared|position_bias|relative_attention_bias)\b",
    "attention q": r"\b(q|q_proj|q_lin|query)\b",
    "attention k": r"\b(k|k_proj|k_lin|key)\b",
    "attention v": r"\b(v|v_proj|v_lin|value)\b",
    "attention o": r"\b(o|o_proj|out_proj|out_lin)\b|attention\.output|attn\.c_proj",
    "attention, other": r"attn|attention",
    "feed-forward": r"mlp|ffn|feed_forward|DenseReluDense|\bfc\d|intermediate|layer\.\d+\.output|experts",
    "router": r"\b(router|mlp\.gate|moe\.gate)\b",
    "norm": r"norm|Norm|\bln_",
    "head": r"lm_head|prediction|score|classifier|pooler|seq_relationship|qa_outputs|\bcls\b",
}
# What an attention's projections are called in transformers: of queries and keys, or of all three in one.
QUERIES, KEYS = ("q_proj", "query", "q", "q_lin"), ("k_proj", "key", "k", "k_lin")
FUSED = ("c_attn", "query_key_value", "qkv_proj", "Wqkv", "in_proj")
# What belongs to the decoder of a pair, by the names of its modules; which of its attentions look at the encoder's
# output, and which of their weights that output meets.
DECODER, CROSS = r"\bdecoder\.(block|layers?)\.", r"cross|encoder_attn|EncDecAttention"
ENCODED = rf"({CROSS}).*\.(k|v|k_proj|v_proj|key|value)$"
# Bytes of the libraries themselves.
LIBRARIES = 500 * 2**20


def parameters_by_component(model: nn.Module) -> dict[str, int]:
    """Parameters of each component; a tied head counts once, with the embedding."""
    sizes = dict.fromkeys([*COMPONENTS, "other"], 0)
    for name, parameter in model.named_parameters():
        ends = {c: [found.end() for found in re.finditer(mark, name)][-1:] for c, mark in COMPONENTS.items()}
        sizes[max((end[0], c) for c, end in {**ends, "other": [0]}.items() if end)[1]] += _numbers(parameter)
    return {name: count for name, count in sizes.items() if count}


def _numbers(parameter: torch.Tensor) -> int:
    """Numbers in a parameter; of 4 bits, two are in a byte (bitsandbytes)."""
    return parameter.numel() * (2 if parameter.dtype == torch.uint8 else 1)


@dataclass(frozen=True)
class AttentionLayer:
    """One attention.

    Attributes:
        width: of all query heads; `key_width`: of all key heads.
        decodes: it belongs to the decoder of a pair; `cross`: and looks at the encoder's output.
        window: tokens that it sees at most.
        fixed: operations a token of attention that is linear in time, whatever the sequence; None for softmax.
    """

    width: int
    key_width: int
    decodes: bool
    cross: bool
    causal: bool = False
    window: int = sys.maxsize
    fixed: int | None = None

    def operations(self, tokens: float, labels: float, pairs: float) -> float:
        """Two products a pair of query and key, each of two operations a dimension; see `Operations.forward`."""
        queries, share = (labels, labels / tokens if tokens else 0.0) if self.decodes else (tokens, 1.0)
        if self.fixed is not None:
            return queries * self.fixed
        seen = pairs * share * (1 if self.cross else share) / (2 if self.causal else 1)
        return 4 * self.width * min(seen, queries * self.window)


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
    def of(cls, model: PreTrainedModel) -> Operations:
        """Count a model's, which is ours or of transformers."""
        heads = {id(part.get_output_embeddings()) for part in model.modules() if isinstance(part, PreTrainedModel)}
        met: Counter[str] = Counter()
        layers: list[AttentionLayer] = []
        for name, module, config in _modules(model):
            decodes = model.config.is_encoder_decoder and re.search(DECODER, name) is not None
            part = "decoder" if decodes and not re.search(ENCODED, name) else "weights"
            met["head" if id(module) in heads else part] += _met(module, config)
            layers += _attention(module, config, decodes, re.search(CROSS, name) is not None)
        return cls(met["weights"], met["decoder"], met["head"], tuple(layers))

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


def _modules(module: nn.Module, config: Any = None, name: str = "") -> Iterator[tuple[str, nn.Module, Any]]:
    """Every module with its name and the configuration of the innermost model that it is in."""
    config = getattr(module, "config", config)
    yield name, module, config
    for child, part in module.named_children():
        yield from _modules(part, config, f"{name}.{child}")


def _met(module: nn.Module, config: Any) -> int:
    """Weights of a module itself that a token meets in products."""
    if isinstance(module, nn.Linear | Conv1D):
        return _numbers(module.weight)
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    if not experts or isinstance(module, nn.Embedding):
        return 0
    own = [p for p in module.parameters(recurse=False) if p.dim() > 1 and len(p) == experts]
    chosen = config.num_experts_per_tok
    # Experts lie in one tensor of three dimensions; a router gives each token a number for each expert.
    return sum(p.numel() * chosen // experts if p.dim() == 3 else p.numel() for p in own)


def _attention(module: Any, config: Any, decodes: bool, cross: bool) -> list[AttentionLayer]:
    """A module's own attention, if it is one: it then has projections of queries and keys."""
    parts = dict(module.named_children())
    named = [parts[name] for name in (*QUERIES, *KEYS) if name in parts]
    widths = [getattr(p, "out_features", 0) or len(p.weight) for p in named if hasattr(p, "weight")]
    heads = getattr(config, "num_attention_heads", None)  # none where states take the place of attention
    if heads and any(name in parts for name in FUSED):
        head = getattr(config, "head_dim", None) or config.hidden_size // heads
        widths = [head * heads] * 2
    if len(widths) != 2:
        return []
    width, key_width = widths
    if cross:
        return [AttentionLayer(width, key_width, decodes, cross)]
    window = getattr(module, "sliding_window", getattr(config, "sliding_window", None)) or sys.maxsize
    fixed, kind = None, getattr(config, "attention_type", "softmax")
    if kind == "linformer":  # scores and mixture over so many keys, after keys and values are mixed into those
        fixed = 4 * config.linformer_k * (width + key_width)
    elif kind == "performer":  # features of queries and keys, their products with the values, and with the mixture
        fixed = 8 * config.performer_features * width
    return [AttentionLayer(width, key_width, decodes, cross, getattr(module, "is_causal", False), window, fixed)]


def state_bytes(model: PreTrainedModel, size: int, mixed: bool) -> dict[str, int]:
    """What a training run holds for each parameter, whatever the batch.

    Float32 weights, gradients and AdamW's two moments are 16 bytes a parameter, and mixed precision adds a copy of 2;
    bfloat16 weights with `SplitAdamW` take 8.

    Args:
        size: bytes of a weight: 4, or 2 for bfloat16.
        mixed: mixed precision over float32 weights.
    """
    parameters, trainable = model.num_parameters(), model.num_parameters(only_trainable=True)
    packed = sum(parameter.numel() for parameter in model.parameters() if parameter.dtype == torch.uint8)
    return {
        "weights": size * (parameters - 2 * packed) + packed,
        "half-precision copy": 2 * parameters if mixed else 0,
        "gradients": size * trainable,
        "optimizer": (4 if size == 2 else 8) * trainable,
    }


def training_bytes(
    model: PreTrainedModel, tokens: int, supervised: int, mixed: bool, checkpointing: bool
) -> dict[str, int]:
    """Estimated memory of one training step, by what holds it: `state_bytes`, and what depends on the batch.

    A block keeps about `16 * hidden + 4 * intermediate` numbers a token for its backward pass; with activation
    checkpointing one `hidden` a block, and all of one block.

    Args:
        tokens: in one forward pass, padding included; `supervised`: those with a label.
        checkpointing: activation checkpointing.
    """
    config: Any = model.config.get_text_config()
    size, layers = model.dtype.itemsize, config.num_hidden_layers
    intermediate = getattr(config, "intermediate_size", 4 * config.hidden_size)
    block = tokens * (2 if mixed else size) * (16 * config.hidden_size + 4 * intermediate)
    residual = size * tokens * config.hidden_size
    return {
        **state_bytes(model, size, mixed),
        "activations": block + layers * residual if checkpointing else block * layers,
        "logits (a slice)": 6 * supervised * min(config.vocab_size, slice_rows(supervised, device_type())),
        "libraries": LIBRARIES,
    }


def cache_bytes(operations: Operations, context: int) -> int:
    """Keys and values that a sequence of `context` tokens leaves in a decoder's cache, in bytes of bfloat16.

    A sliding layer keeps its window. Of a pair counts what the decoder writes, and what it keeps of as long a source.
    """
    held = (layer for layer in operations.layers if layer.causal or layer.cross)
    return sum(2 * 2 * layer.key_width * min(context, layer.window) for layer in held)
