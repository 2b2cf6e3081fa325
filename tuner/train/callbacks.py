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

from tuner.hardware import measure_peak


class StepSeed(TrainerCallback):
    """Seeds every generator at the start of each optimizer step."""

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # An odd multiplier spreads neighbouring seeds apart; torch mixes the bits further.
        step_and_process = state.global_step * args.world_size + args.process_index
        set_seed((args.seed * 0x9E3779B1 + step_and_process) % 2**32)


class StopOnSignal(TrainerCallback):
    """SIGTERM and Ctrl-C: finish the step, save, stop. A second one stops at once.

    A run under `accelerate launch` that loses its launcher does the same, for the launcher passes no SIGTERM on.

    Attributes:
        received: the signal that stopped the run, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}
        self._launcher = os.getppid() if "ACCELERATE_MIXED_PRECISION" in os.environ else None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._remember)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.restore()

    def restore(self) -> None:
        """Give the signals back to who had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._launcher is not None and os.getppid() != self._launcher and self.received is None:
            self.received = int(signal.SIGTERM)
        if args.world_size > 1:  # processes hear of a signal at different steps: all stop at the first one's
            heard = torch.tensor(self.received or 0, device=args.device)
            torch.distributed.all_reduce(heard, op=torch.distributed.ReduceOp.MAX)
            self.received = int(heard) or None
        if self.received is not None:
            control.should_save = args.save_strategy != "no"
            control.should_training_stop = True

    def _remember(self, number: int, frame: types.FrameType | None) -> None:
        if self.received is not None:
            self.restore()
            os.kill(os.getpid(), number)
        self.received = number


class Throughput(TrainerCallback):
    """Tokens a second, and the share of the machine's measured peak that the model's products reach.

    Counted are the products a forward and backward pass cannot do without: 6 operations a token for each weight of a
    linear layer in the blocks, 6 for the head where there is a label, and the attention scores (Chowdhery et al. 2022,
    appendix B, https://arxiv.org/abs/2204.02311). The clock runs from step to step, without evaluations and saves.

    Args:
        weights: parameters of the linear layers in the blocks.
        head: parameters of the output head.
        attention: operations a token and a position of context costs in the scores, forward and backward.
        dtype: of the products, to measure the peak in.
    """

    def __init__(self, weights: int, head: int, attention: int, dtype: torch.dtype):
        self.weights, self.head, self.attention = weights, head, attention
        self.dtype, self.peak = dtype, 0.0
        self._reset()
        self._started = 0.0

    def _reset(self) -> None:
        self.tokens = self.supervised = self.operations = self.steps = 0
        self.seconds = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.peak = measure_peak(self.dtype)
        self._started = time.perf_counter()

    def count(self, inputs: dict[str, torch.Tensor]) -> None:
        """Count a batch of `labels` and, maybe, `position_ids` `(batch, time)`; padding is no token."""
        labels = int((inputs["labels"] != -100).sum())
        tokens = int(inputs["tokens"].sum())
        # The keys that tokens see before them: as many as their positions say, the rest is masked.
        positions = inputs.get("position_ids")
        seen = int(positions.sum()) if positions is not None else int((inputs["tokens"] ** 2).sum()) // 2
        self.tokens += tokens
        self.supervised += labels
        self.operations += 6 * (tokens * self.weights + labels * self.head) + seen * self.attention

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
        if not self.seconds or not self.peak:
            return {}
        scale = PartialState().num_processes / self.seconds
        rates = {
            "tokens_per_second": round(self.tokens * scale, 1),
            "supervised_tokens_per_second": round(self.supervised * scale, 1),
            "step_seconds": round(self.seconds / self.steps, 4),
            "peak_share": round(self.operations / self.seconds / self.peak, 3),
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
