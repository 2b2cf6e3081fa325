"""How large a model is: parameters by component, operations, and bytes. Shapes only; nothing is computed."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from tuner.hardware import device_type
from tuner.model.experts import TunerExperts
from tuner.ops.chunked_loss import slice_rows

COMPONENTS = {
    "embedding": ("embed", "wte", "wpe"),
    "attention": ("attn", "attention"),
    "feed-forward": ("mlp", "feed_forward", "ffn"),
    "norm": ("norm", "ln_"),
    "head": ("lm_head", "score", "classifier"),
}


def parameters_by_component(model: nn.Module, components: dict[str, tuple[str, ...]] = COMPONENTS) -> dict[str, int]:
    """Parameters of each component; a tied head counts once, with the embedding.

    Args:
        components: what marks a name in a parameter's path as a component's.
    """
    sizes = dict.fromkeys([*components, "other"], 0)
    for name, parameter in model.named_parameters():
        # The innermost known name decides: `self_attn.q_norm` is a norm, `self_attn.q_proj` attention.
        parts = list(reversed(name.lower().split(".")))
        found = next((c for part in parts for c, marks in components.items() if any(m in part for m in marks)), "other")
        sizes[found] += parameter.numel()
    return {name: count for name, count in sizes.items() if count}


def active_weights(model: nn.Module) -> int:
    """Weights that a token meets in products, the head's included: of our experts those that it is sent to."""
    linear = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    for experts in (module for module in model.modules() if isinstance(module, TunerExperts)):
        chosen: Any = experts.config
        stored = sum(parameter.numel() for parameter in experts.parameters())
        linear += stored * chosen.num_experts_per_tok // experts.num_experts
    return linear


def linear_sizes(model: PreTrainedModel) -> tuple[int, int, int]:
    """What `Throughput` counts with: weights of the linear layers in the blocks, weights of the head, and operations a
    token and position of context costs in the attention scores (two products, forward and twice backward)."""
    head = model.get_output_embeddings()
    head_size = head.weight.numel() if head is not None else 0
    config = model.config.get_text_config()
    width = config.num_attention_heads * getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    return active_weights(model) - head_size, head_size, 12 * config.num_hidden_layers * width


def training_bytes(
    model: PreTrainedModel, tokens: int, supervised: int, mixed: bool, checkpointing: bool
) -> dict[str, int]:
    """Estimated memory of one training step, by what holds it.

    Float32 weights, gradients and AdamW's two moments are 16 bytes a parameter, and mixed precision adds a copy of 2;
    bfloat16 weights with `SplitAdamW` take 8. Activations are counted as what a block keeps for its backward pass:
    about `16 * hidden + 4 * intermediate` numbers a token; with activation checkpointing one `hidden` a block, and all
    of one block.

    Args:
        tokens: tokens in one forward pass, padding included.
        supervised: tokens with a label in it.
        mixed: mixed precision over float32 weights.
        checkpointing: activation checkpointing.
    """
    config = model.config.get_text_config()
    parameters = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    size = model.dtype.itemsize
    number = 2 if mixed else size
    intermediate = getattr(config, "intermediate_size", 4 * config.hidden_size)
    block = tokens * number * (16 * config.hidden_size + 4 * intermediate)
    layers = config.num_hidden_layers
    residual = size * tokens * config.hidden_size
    part = supervised * min(config.vocab_size, slice_rows(supervised, device_type()))
    return {
        "weights": size * parameters,
        "half-precision copy": 2 * parameters if mixed else 0,
        "gradients": size * trainable,
        "optimizer": (4 if size == 2 else 8) * trainable,
        "activations": block + layers * residual if checkpointing else block * layers,
        "logits (a slice)": 6 * part,
        "libraries": 500 * 2**20,
    }
