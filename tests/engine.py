"""The engine's pieces as a test needs them: an objective without a run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tuner.config.arguments import RecipeArguments
from tuner.objectives.base import use_objective
from tuner.objectives.causal_lm import SFT
from tuner.objectives.records import Layout


def use_chunked_loss(model: Any, pad_token_id: int = 0) -> Any:
    """Give a causal model the loss of supervised fine-tuning, in chunks; it is in training mode then.

    Returns:
        The model.
    """
    tokenizer: Any = SimpleNamespace(pad_token_id=pad_token_id)
    use_objective(model, SFT(RecipeArguments(), tokenizer, Layout(chunked_loss=True)))
    return model.train()
