"""A learning rate that falls with depth: the layers near the input hold what is general, and change least."""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any

import torch
from torch import nn

from tuner.errors import ModelError

LAYER = re.compile(r"\.(?:layers?|h|blocks?)\.(\d+)\.")


def decay_by_layer(optimizer: torch.optim.Optimizer, model: nn.Module, decay: float) -> None:
    """Multiply the rates of an optimizer that has not stepped: a layer's by `decay` for each layer above it, and that
    of what comes before the first by one more; what follows the layers keeps its own (Howard & Ruder 2018,
    https://arxiv.org/abs/1801.06146, section 3.2; Clark et al. 2020, https://arxiv.org/abs/2003.10555, appendix A).

    Raises:
        ModelError: a model whose parameters' names tell no layers.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    numbers = {name: int(found[1]) for name in names.values() if (found := LAYER.search(name))}
    if not numbers:
        raise ModelError(f"--layerwise_lr_decay: the parameters of {type(model).__name__} are in no numbered layers.")
    top, reached = max(numbers.values()) + 1, False
    depth: dict[Any, int] = {}  # in the order of the model: before the layers, in them, after them
    for parameter, name in names.items():
        reached = reached or name in numbers
        depth[parameter] = top - numbers[name] if name in numbers else 0 if reached else top + 1

    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        ranked = sorted(group["params"], key=depth.__getitem__)
        for below, parameters in groupby(ranked, depth.__getitem__):
            groups.append({**group, "params": list(parameters), "lr": group["lr"] * decay**below})
    optimizer.param_groups[:] = groups
