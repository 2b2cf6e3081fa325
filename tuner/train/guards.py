"""What watches a long run: steps whose gradient norm is a spike."""

from __future__ import annotations

from collections import deque
from statistics import fmean, pstdev
from typing import Any

# Steps that a leap is measured against, and how many there must be before any is called one.
WINDOW = 128
SIGMA = 6.0


class SpikeGuard:
    """Says which steps to leave out: those whose gradient norm is more than `SIGMA` standard deviations above the mean
    of the last `WINDOW` norms (OLMo 2, 2024, https://arxiv.org/abs/2501.00656, and its trainer's `SkipStepOptimizer`).

    A norm that is left out counts among them too: a rise that lasts is learnt from in the end.

    Attributes:
        skipped: how many steps were left out.
    """

    def __init__(self, window: int = WINDOW, sigma: float = SIGMA):
        self.norms: deque[float] = deque(maxlen=window)
        self.window, self.sigma = window, sigma
        self.skipped = 0

    def is_spike(self, norm: float) -> bool:
        """Whether this step is to be left out."""
        leapt = len(self.norms) == self.window and norm > fmean(self.norms) + self.sigma * pstdev(self.norms)
        self.skipped += leapt
        self.norms.append(norm)
        return leapt

    def state(self) -> dict[str, Any]:
        """For a checkpoint, as JSON keeps it exactly."""
        return {"norms": list(self.norms), "skipped": self.skipped}

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave."""
        self.norms = deque(state["norms"], maxlen=self.window)
        self.skipped = state["skipped"]
