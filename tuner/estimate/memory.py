"""Bytes of a model, by counting tensors: in training, in inference, and of its cache."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from tuner.estimate.operations import attention_layers
from tuner.hardware import device_type
from tuner.ops.chunked_loss import slice_rows

# The libraries themselves.
LIBRARIES = 500 * 2**20


def state_bytes(model: nn.Module, size: int, mixed: bool) -> dict[str, int]:
    """What a training run holds for each parameter, whatever the batch.

    Float32 weights, gradients and AdamW's two moments are 16 bytes a parameter, and mixed precision adds a copy of 2;
    bfloat16 weights with `SplitAdamW` take 8.

    Args:
        size: bytes of a weight: 4, or 2 for bfloat16.
        mixed: mixed precision over float32 weights.
    """
    parameters = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        "weights": size * parameters,
        "half-precision copy": 2 * parameters if mixed else 0,
        "gradients": size * trainable,
        "optimizer": (4 if size == 2 else 8) * trainable,
    }


def training_bytes(
    model: PreTrainedModel, tokens: int, supervised: int, mixed: bool, checkpointing: bool
) -> dict[str, int]:
    """Estimated memory of one training step, by what holds it: `state_bytes`, and what depends on the batch.

    Activations are counted as what a block keeps for its backward pass: about `16 * hidden + 4 * intermediate` numbers
    a token; with activation checkpointing one `hidden` a block, and all of one block.

    Args:
        tokens: tokens in one forward pass, padding included.
        supervised: tokens with a label in it.
        mixed: mixed precision over float32 weights.
        checkpointing: activation checkpointing.
    """
    config = model.config.get_text_config()
    size = model.dtype.itemsize
    number = 2 if mixed else size
    intermediate = getattr(config, "intermediate_size", 4 * config.hidden_size)
    block = tokens * number * (16 * config.hidden_size + 4 * intermediate)
    layers = config.num_hidden_layers
    residual = size * tokens * config.hidden_size
    part = supervised * min(config.vocab_size, slice_rows(supervised, device_type()))
    return {
        **state_bytes(model, size, mixed),
        "activations": block + layers * residual if checkpointing else block * layers,
        "logits (a slice)": 6 * part,
        "libraries": LIBRARIES,
    }


def inference_bytes(model: nn.Module, context: int, size: int) -> int:
    """Weights of `size` bytes each, and one sequence's cache in bfloat16."""
    return size * sum(p.numel() for p in model.parameters()) + cache_bytes(model, context)


def cache_bytes(model: nn.Module, context: int) -> int:
    """Keys and values that a sequence of `context` tokens leaves in a decoder's cache, in bytes of bfloat16.

    A sliding layer keeps its window. Of a pair counts what the decoder writes, and what it keeps of as long a source.
    """
    held = [layer for layer in attention_layers(model) if layer.causal or layer.cross]
    return sum(2 * 2 * layer.key_width * min(context, layer.window or context) for layer in held)
