"""Probabilities that mean what they say: a temperature, and a threshold for each class, fitted on held-out rows.

What is fitted on rows looks better on them than elsewhere. `crossed` therefore gives what each half of the rows says of
the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tuner.errors import from_extra

MULTI = "multi_label_classification"


def probabilities(logits: np.ndarray, problem: str) -> np.ndarray:
    """Of logits `(rows, classes)` the probabilities: each class's own where several hold, else of all together."""
    special: Any = from_extra("scipy.special", "eval")
    return np.asarray(special.expit(logits) if problem == MULTI else special.softmax(logits, axis=-1))


def log_loss(logits: np.ndarray, targets: np.ndarray, problem: str) -> float:
    """Nats a row: of targets `(rows,)` by number, or `(rows, classes)` of zeros and ones."""
    if problem == MULTI:
        return float((np.logaddexp(0, logits) - targets * logits).sum(axis=1).mean())
    special: Any = from_extra("scipy.special", "eval")
    return float(-special.log_softmax(logits, axis=-1)[np.arange(len(targets)), targets].mean())


def fit_temperature(logits: np.ndarray, targets: np.ndarray, problem: str) -> float:
    """What to divide the logits by so that the targets are most likely (Guo et al. 2017,
    https://arxiv.org/abs/1706.04599, section 4.2), between 1/20 and 20."""
    optimize: Any = from_extra("scipy.optimize", "eval")
    bounds = (-np.log(20), np.log(20))
    logits = logits.astype(np.float64)
    return float(
        np.exp(
            optimize.minimize_scalar(
                lambda x: log_loss(logits / np.exp(x), targets, problem), bounds=bounds, method="bounded"
            ).x
        )
    )


def fit_thresholds(chances: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Of each class the probability from which it is said, so that its F1 is highest; 0.5 for one without a row (Lipton
    et al. 2014, https://arxiv.org/abs/1402.1892)."""
    found = np.full(chances.shape[1], 0.5)
    for number, (chance, target) in enumerate(zip(chances.T, targets.T, strict=True)):
        if target.any():
            order = np.argsort(-chance, kind="stable")
            hits = np.cumsum(target[order])
            best = int(np.argmax(2 * hits / (np.arange(1, len(order) + 1) + target.sum())))
            below = chance[order][best + 1] if best + 1 < len(order) else 0.0
            found[number] = (chance[order][best] + below) / 2
    return found


def crossed(fit: Callable[[np.ndarray], Any], apply: Callable[[np.ndarray, Any], np.ndarray], rows: int) -> np.ndarray:
    """What each half of the rows, every other one, gets by what `fit` finds on the other half: `fit(numbers)`,
    `apply(numbers, found)`, both of row numbers; in the order of the rows."""
    halves = [np.arange(start, rows, 2) for start in (0, 1)]
    found = [apply(mine, fit(other)) for mine, other in (halves, halves[::-1])]
    out = np.empty((rows, *found[0].shape[1:]), found[0].dtype)
    for half, values in zip(halves, found, strict=True):
        out[half] = values
    return out
