"""The former names of `tuner.estimate`, for callers that still use them."""

from __future__ import annotations

from transformers import PreTrainedModel

from tuner.estimate.memory import training_bytes
from tuner.estimate.operations import Operations
from tuner.estimate.parameters import parameters_by_component

__all__ = ["linear_sizes", "parameters_by_component", "training_bytes"]


def linear_sizes(model: PreTrainedModel) -> tuple[int, int, int]:
    """Weights of the blocks, weights of the head, and operations of the scores a token and position of context."""
    found = Operations.of(model)
    return found.weights + found.decoder, found.head, round(3 * sum(4 * layer.width for layer in found.layers))
