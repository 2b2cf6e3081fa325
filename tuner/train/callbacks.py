"""What happens around a step: random numbers, signals, speed, and trackers that may fail.

The random numbers of a step are a function of (seed, step, process). Nothing about them has to be saved or put back: a
resumed run draws at step n what an uninterrupted one draws there, whatever was drawn in between by an evaluation, a
sample or a data loader.
"""

from __future__ import annotations

import os
import signal
import time
import types
import warnings
from collections.abc import Callable
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from tuner.estimate.model import Operations
from tuner.hardware import measure_peak


class StepSeed(TrainerCallback):
    """Seeds every generator at the start of each optimizer step."""

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # An odd multiplier spreads neighbouring seeds apart; torch mixes the bits further.
        step_and_process = state.global_step * args.world_size + args.process_index
        set_seed((args.seed * 0x9E3779B1 + step_and_process) % 2**32)


class StopOnRequest(TrainerCallback):
    """SIGTERM, Ctrl-C and `--max_minutes`: finish the step, save, stop. A second signal stops at once.

    A run under `accelerate launch` that loses its launcher does the same, for the launcher passes no SIGTERM on. The
    clock starts with the first step of this process: neither preparing the data nor an earlier part of the run counts.

    Args:
        minutes: how long to train, or None.

    Attributes:
        received: the signal that stopped the run, or None; `out_of_time`: whether the clock did.
        agreed: with several processes, what any of them wants, `(2,)`: set by the trainer once a step, so that all
            stop at the same one.
    """

    def __init__(self, minutes: float | None = None) -> None:
        self.minutes, self.received, self.out_of_time = minutes or 0.0, None, False
        self.agreed: torch.Tensor | None = None
        self._before: dict[int, Any] = {}
        self._started: float | None = None
        self._launcher = os.getppid() if "ACCELERATE_MIXED_PRECISION" in os.environ else None

    received: int | None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._remember)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.restore_handlers()

    def restore_handlers(self) -> None:
        """Give the signals back to who had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._started is None:
            self._started = time.monotonic()

    def wanted(self) -> torch.Tensor:
        """What this process wants: a signal's number or 0, and 1 when the time is over."""
        if self._launcher is not None and os.getppid() != self._launcher and self.received is None:
            self.received = int(signal.SIGTERM)
        over = self.minutes and self._started is not None and time.monotonic() - self._started >= 60 * self.minutes
        return torch.tensor([self.received or 0, int(bool(over))])

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


def count_batch(inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Tokens of a batch without padding, those with a label, and the pairs of tokens in one sequence."""
    lengths, positions = inputs["tokens"], inputs.get("position_ids")
    # A token at position p makes 2 p + 1 pairs with itself and with those before it.
    pairs = (lengths**2).sum() if positions is None else 2 * positions.sum() + lengths.sum()
    return [lengths.sum(), (inputs["labels"] != -100).sum(), pairs]


class Throughput(TrainerCallback):
    """Tokens a second, and the share of the machine's measured peak that the model's products reach.

    The clock runs from step to step, without evaluations and saves.

    Args:
        operations: of the model; those that a pass cannot do without are counted.
        dtype: of the products, to measure the peak in.
    """

    def __init__(self, operations: Operations, dtype: torch.dtype):
        self.operations, self.dtype, self.peak = operations, dtype, 0.0
        self._reset()
        self._started = 0.0

    def _reset(self) -> None:
        self._counted: list[torch.Tensor] = []
        self.steps, self.seconds = 0, 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.peak = measure_peak(self.dtype)
        self._started = time.perf_counter()

    def count(self, inputs: dict[str, torch.Tensor]) -> None:
        """Count a batch of `labels` and, maybe, `position_ids` `(batch, time)`; padding is no token. The numbers are
        looked at when a line is logged: on an accelerator each look waits for it."""
        self._counted.append(torch.stack(count_batch(inputs)))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        now = time.perf_counter()
        self.seconds += now - self._started
        self.steps += 1
        self._started = now

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._started = time.perf_counter()

    on_save = on_evaluate

    def rates(self) -> dict[str, float]:
        """The rates of this process since the last call, times the number of processes."""
        if not self.seconds or not self.peak or not self._counted:
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
        self._reset()
        return rates


class Guarded(TrainerCallback):
    """A tracker that, when it fails, is switched off with a warning instead of ending the run."""

    def __init__(self, inner: TrainerCallback):
        self.inner = inner
        self._works = True

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("on_"):
            return super().__getattribute__(name)
        handler: Callable[..., Any] = getattr(self.inner, name)

        def guarded(*args: Any, **kwargs: Any) -> None:
            if self._works:
                try:
                    handler(*args, **kwargs)
                except Exception as error:  # whatever a tracker raises
                    self._works = False
                    name = type(self.inner).__name__
                    warnings.warn(f"{name} failed and is switched off: {type(error).__name__}: {error}", stacklevel=2)

        return guarded
