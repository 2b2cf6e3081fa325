"""What watches a long run: steps whose gradient leaps, and the clock."""

from __future__ import annotations

import time
from collections import deque
from statistics import fmean, pstdev
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

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


class TimeLimit(TrainerCallback):
    """Ends training after so many minutes, with a checkpoint to continue from unless none are wanted.

    Counted from the first step of this process: preparing the data does not count, an earlier part of the run neither.

    Attributes:
        reached: whether it did.
    """

    def __init__(self, minutes: float):
        self.minutes, self.reached = minutes, False
        self._started: float | None = None

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._started is None:
            self._started = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        reached = self._started is not None and time.monotonic() - self._started >= 60 * self.minutes
        if args.world_size > 1:
            reached = _anywhere(reached, args)
        if reached:
            self.reached = True
            control.should_save = args.save_strategy != "no"
            control.should_training_stop = True


def _anywhere(reached: bool, args: TrainingArguments) -> bool:
    """Whether it is so on any process: they must all stop at the same step."""
    import torch.distributed

    flag = torch.tensor(int(reached), device=args.device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag)
