"""Small decoders whose weights matter: every parameter is drawn wide, norms and biases too.

A model as initialised has norms of ones, biases of zero and logits near zero: many a fault leaves its output alone.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

import tuner.ops.block_attention  # noqa: F401  (registers its attention)
from tuner.loading.checkpoints import new_model
from tuner.loading.shapes import new_shape
from tuner.model import TunerDecoderConfig, TunerDecoderForCausalLM

VOCAB_SIZE = 101
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


def scramble(model: nn.Module, seed: int = 0) -> nn.Module:
    """Add noise of standard deviation 0.2 to every parameter, and switch dropout off."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def tiny_config(**overrides: Any) -> TunerDecoderConfig:
    return TunerDecoderConfig(**{**SHAPE, **overrides})


def tiny_decoder(attn_implementation: str = "sdpa", seed: int = 0, **overrides: Any) -> TunerDecoderForCausalLM:
    """The same weights for the same seed and shape, whatever the attention."""
    torch.manual_seed(seed)
    model = TunerDecoderForCausalLM._from_config(tiny_config(**overrides), attn_implementation=attn_implementation)
    return scramble(model, seed)


def token_ids(batch: int, time: int, seed: int = 0, vocab_size: int = VOCAB_SIZE) -> torch.Tensor:
    """Random ids `(batch, time)` from 3 up: 0 to 2 are left for padding, beginning and end."""
    return torch.randint(3, vocab_size, (batch, time), generator=torch.Generator().manual_seed(seed))


def greatest_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one.float() - other.float()).abs().max().item()


def new_decoder(preset: str, tokenizer: Any, max_length: int, **options: Any) -> TunerDecoderForCausalLM:
    """A new decoder of a preset's shape over a tokenizer's vocabulary."""
    given = {"preset": preset, "max_length": max_length, "model_config": None, "config_overrides": None, "dropout": 0.0}
    shape = new_shape(SimpleNamespace(**(given | options)), tokenizer)
    return new_model(TunerDecoderForCausalLM, TunerDecoderConfig, shape)
