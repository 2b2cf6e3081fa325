"""A checkpoint's weights put where they belong in another model."""

from __future__ import annotations

from typing import Any

import torch


def take_weights(target: Any, checkpoint: Any) -> list[str]:
    """Put a checkpoint's weights where they belong: the encoder's, and a head's where it is the same.

    Returns:
        The parts of `target` that it lacks.
    """
    prefix = ""
    if not isinstance(checkpoint, type(target)) and not isinstance(target, type(checkpoint)):
        checkpoint, prefix = getattr(checkpoint, "model", checkpoint), "model." if hasattr(target, "model") else ""
    state, new = {prefix + name: value for name, value in checkpoint.state_dict().items()}, []
    for name, own in target.state_dict().items():
        if name in state and own.dim() == 2 and len(state[name]) < len(own):  # a table with too few rows: those it has
            new.append(f"{len(own) - len(state[name])} of {name.removeprefix('model.').removesuffix('.weight')}")
            state[name] = torch.cat([state[name], own[len(state[name]) :]])
    missing, _ = target.load_state_dict(state, strict=False)
    return new + [name.removeprefix("model.").split(".")[0] for name in missing]
