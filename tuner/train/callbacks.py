"""What happens around a step: random numbers, signals, speed, spikes, and trackers that may fail."""

from __future__ import annotations

import math
import os
import signal
import time
import types
import warnings
from collections import deque
from collections.abc import Callable
from statistics import fmean, pstdev
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from tuner.estimate.model import Operations
from tuner.hardware import measure_peak

# Norms that a spike is measured against, and how many standard deviations it is above their mean.
WINDOW, SIGMA = 128, 6.0


class StepSeed(TrainerCallback):
    """Seeds every generator at the start of each step with a function of (seed, step, process). A resumed run draws
    what an uninterrupted one draws there, whatever an evaluation, a sample or a data loader drew in between."""

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # An odd multiplier spreads neighbouring seeds apart; torch mixes the bits further.
        step_and_process = state.global_step * args.world_size + args.process_index
        set_seed((args.seed * 0x9E3779B1 + step_and_process) % 2**32)


class StopOnRequest(TrainerCallback):
    """SIGTERM, Ctrl-C and `--max_minutes`: finish the step, save, stop. A second signal stops at once.

    A run under `accelerate launch` that loses its launcher does the same, for the launcher passes no SIGTERM on. The
    clock starts with the first step of this process.
    """

    def __init__(self, minutes: float | None = None) -> None:
        self.minutes, self.out_of_time = minutes or math.inf, False
        self.received: int | None = None  # the signal
        # With several processes, what any of them wants: set by the trainer once a step, so that all stop at the same.
        self.agreed: torch.Tensor | None = None
        self._before: dict[int, Any] = {}
        self._started = math.inf
        self._launcher = os.getppid() if "ACCELERATE_MIXED_PRECISION" in os.environ else None

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._before = {number: signal.signal(number, self._remember) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore_handlers(self) -> None:
        """Give the signals back to who had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._started = min(self._started, time.monotonic())

    def wanted(self) -> torch.Tensor:
        """What this process wants: a signal's number or 0, and 1 when the time is over."""
        orphaned = self._launcher not in (None, os.getppid())
        over = time.monotonic() - self._started >= 60 * self.minutes
        return torch.tensor([self.received or signal.SIGTERM * orphaned, int(over)])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        number, over = (self.wanted() if self.agreed is None else self.agreed).tolist()
        self.received, self.out_of_time = number or None, bool(over)
        if number or over:
            control.should_save = args.save_strategy != "no"
            control.should_training_stop = True

    def _remember(self, number: int, frame: types.FrameType | None) -> None:
        if self.received is not None:
            self.restore_handlers()
            os.kill(os.getpid(), number)
        self.received = number


class SpikeGuard:
    """Says which steps to leave out: those whose gradient norm is more than `SIGMA` standard deviations above the mean
    of the last `WINDOW` norms (OLMo 2, 2024, https://arxiv.org/abs/2501.00656, and its trainer's `SkipStepOptimizer`).

    A norm that is left out counts among them too: a rise that lasts is learnt from in the end.
    """

    def __init__(self, window: int = WINDOW, sigma: float = SIGMA):
        self.norms: deque[float] = deque(maxlen=window)
        self.window, self.sigma, self.skipped = window, sigma, 0  # steps left out

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
        self.norms, self.skipped = deque(state["norms"], maxlen=self.window), state["skipped"]


def count_batch(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Tokens of a batch without padding, those with a label, and the pairs of tokens in one sequence: `(3,)`."""
    lengths, positions = inputs["tokens"], inputs.get("position_ids")
    # A token at position p makes 2 p + 1 pairs with itself and with those before it.
    pairs = (lengths**2).sum() if positions is None else 2 * positions.sum() + lengths.sum()
    return torch.stack([lengths.sum(), (inputs["labels"] != -100).sum(), pairs])


class Throughput(TrainerCallback):
    """Tokens a second, and the share of the machine's measured peak in `dtype` that the model's products reach. The
    clock runs from step to step, without evaluations and saves."""

    def __init__(self, operations: Operations, dtype: torch.dtype):
        self.operations, self.dtype = operations, dtype
        self._counted: list[torch.Tensor] = []
        self.steps, self.seconds = 0, 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.peak = measure_peak(self.dtype)
        self._started = time.perf_counter()

    def count(self, inputs: dict[str, torch.Tensor]) -> None:
        """Count a batch. The numbers are looked at when a line is logged: on an accelerator each look waits for it."""
        self._counted.append(count_batch(inputs))

    def on_step_end(self, *_: Any, **__: Any) -> None:
        now = time.perf_counter()
        self.steps, self.seconds, self._started = self.steps + 1, self.seconds + now - self._started, now

    def on_evaluate(self, *_: Any, **__: Any) -> None:
        self._started = time.perf_counter()

    on_save = on_evaluate

    def rates(self) -> dict[str, float]:
        """The rates of this process since the last call, times the number of processes."""
        if not self.steps:
            return {}
        scale = PartialState().num_processes / self.seconds
        tokens, labels, pairs = torch.stack(self._counted).sum(dim=0).tolist()
        operations = self.operations.training(tokens, labels, pairs)
        rates = {
            "tokens_per_second": round(tokens * scale, 1),
            "supervised_tokens_per_second": round(labels * scale, 1),
            "step_seconds": round(self.seconds / self.steps, 4),
            "peak_share": round(operations / self.seconds / self.peak, 3),
        }
        self._counted, self.steps, self.seconds = [], 0, 0.0
        return rates


class Guarded:
    """A tracker that, when it fails, is switched off with a warning instead of ending the run."""

    def __init__(self, tracker: TrainerCallback):
        self.tracker, self.works = tracker, True

    def __getattr__(self, event: str) -> Callable[..., None]:
        def call(*args: Any, **kwargs: Any) -> None:
            try:
                if self.works:
                    getattr(self.tracker, event)(*args, **kwargs)
            except Exception as error:  # whatever a tracker raises
                self.works = False
                name = type(self.tracker).__name__
                warnings.warn(f"{name} failed and is switched off: {type(error).__name__}: {error}", stacklevel=2)

        return call
