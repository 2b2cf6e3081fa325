"""The run around the updates: callbacks, log, evaluation, checkpoints, signals, and the sums over all processes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerControl, TrainerState
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback

from tuner.config.ppo import PPOArguments
from tuner.errors import ArgumentError, CheckpointError, survive
from tuner.hardware import release_unused_memory
from tuner.hub.push import HubRepository
from tuner.rl.actor import ActorCritic
from tuner.rl.card import write_card
from tuner.rl.evaluation import evaluate_policy
from tuner.rl.losses import KLController, RunningScale
from tuner.rl.measures import log_line, over_updates
from tuner.rl.state import load_checkpoint, save_checkpoint, save_policy
from tuner.rl.trl_ppo import PPOConfig, TRLTrainer
from tuner.train.callbacks import Guarded, StepSeed, StopOnRequest
from tuner.train.run import Run, locked, report_stop, say


class UpdateLoop(TRLTrainer):
    """A run of updates; what an update is, a subclass says."""

    args: PPOConfig
    processing_class: PreTrainedTokenizerBase
    accelerator: Accelerator
    actor: ActorCritic
    eval_dataset: Dataset | None
    optimizer: Any
    lr_scheduler: Any
    kl: KLController
    scale: RunningScale
    is_deepspeed_enabled = is_fsdp_enabled = False  # transformers' loading asks

    def start_loop(self, callbacks: Any, run: Run[PPOArguments] | None) -> None:
        """Make what the loop is made of, once models and optimizer are there."""
        self.run = run
        pushes = run is not None and run.args.push_to_hub and self.args.should_save
        self.hub = HubRepository(run.args) if run is not None and pushes else None
        self.first_evaluation: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        self.norms: list[float] = []
        self.unlogged: list[dict[str, float]] = []  # of the updates since the last line of the log
        self.stop = StopOnRequest(run.args.max_minutes if run else None)
        trackers = [Guarded(callback()) for callback in get_reporting_integration_callbacks(self.args.report_to)]
        every = [DefaultFlowCallback(), StepSeed(), *trackers, self.stop, *(callbacks or [])]
        parts = (self.actor.policy, self.processing_class, self.optimizer, self.lr_scheduler)
        self.callback_handler = CallbackHandler(every, *parts)
        self.state, self.control, self.passes = TrainerState(), TrainerControl(), -1
        self.call("on_init_end")

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(str(self.args.output_dir))

    @property
    def passes_of_an_update(self) -> float:
        """What share of all prompts an update has."""
        return (self.args.batch_size or 1) / (len(self.train_dataset) * (self.args.num_generations or 1))

    def train(self, resume_from_checkpoint: str | Path | None = None) -> None:
        """Train, or continue from a checkpoint to the same bits.

        Raises:
            Interrupted: a signal came; the state is saved. NonFiniteError: a gradient was NaN or infinite.
            CheckpointError: a checkpoint could not be written or read, or another process trains in the folder.
            DataError: a reward that cannot be used.
        """
        args = self.args
        if resume_from_checkpoint is not None:
            load_checkpoint(self, Path(resume_from_checkpoint))
        state = self.state
        state.max_steps = args.num_total_batches or 0
        state.num_train_epochs = math.ceil(round(state.max_steps * self.passes_of_an_update, 9))
        state.is_world_process_zero, state.is_local_process_zero = (
            args.process_index == 0,
            args.local_process_index == 0,
        )
        state.compute_steps(args, state.max_steps)
        self.folder.mkdir(parents=True, exist_ok=True)
        release_unused_memory()
        self.optimizer.zero_grad(set_to_none=True)
        self.call("on_train_begin")
        try:
            with locked(self.folder) if args.should_save else nullcontext():
                if args.eval_on_start and not state.global_step and self.eval_dataset is not None:
                    self.evaluate()
                while state.global_step < state.max_steps and not self.control.should_training_stop:
                    self._update()
                if self.unlogged and state.global_step >= state.max_steps:
                    self._log_updates()
                self.call("on_train_end")
        finally:
            self.stop.restore_handlers()
        report_stop(self.stop, self.folder, state.global_step, state.max_steps, "update")

    def _update(self) -> None:
        args, state = self.args, self.state
        passes = int(state.epoch or 0)
        if passes > self.passes:
            self.call("on_epoch_begin")
        self.passes = passes
        self.call("on_step_begin")
        self.seconds, self.norms = {}, []
        logged = self.one_update(state.global_step)
        if args.logging_strategy != "no":
            self.unlogged.append(logged)
        self.lr_scheduler.step()
        state.global_step += 1
        state.epoch = state.global_step * self.passes_of_an_update
        if args.world_size > 1:  # all stop at the same update
            wanted = self.stop.wanted().to(self.accelerator.device)
            self.stop.agreed = self.accelerator.gather(wanted[None]).amax(dim=0).cpu()
        self.call("on_step_end")
        if int(state.epoch) > passes:
            self.call("on_epoch_end")
        if args.max_kl is not None and logged["objective/kl"] > args.max_kl:
            say(f"Stopped: the divergence {logged['objective/kl']:.3g} is beyond --max_kl {args.max_kl:g}.")
            self.control.should_training_stop = self.control.should_log = True
            self.unlogged = self.unlogged or [logged]
        if self.control.should_log and self.unlogged:
            self._log_updates()
        if self.control.should_evaluate and self.eval_dataset is not None:
            self.evaluate()
        if self.control.should_save:
            save_checkpoint(self)
            self.call("on_save")

    def _log_updates(self) -> None:
        found, self.unlogged = over_updates(self.unlogged), []
        self.log(found)

    def one_update(self, update: int) -> dict[str, float]:
        """The phases of an update, and what is to be logged."""
        raise NotImplementedError

    def call(self, event: str, *given: Any) -> None:
        """Tell the callbacks of an event; what they ask for is in `control`."""
        self.control = getattr(self.callback_handler, event)(self.args, self.state, self.control, *given)

    # ---- of all processes ----

    def add_up(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor, summed over all processes."""
        if self.args.world_size == 1:
            return tensor
        found: torch.Tensor = self.accelerator.reduce(tensor, "sum")
        return found

    def everyone(self, values: torch.Tensor) -> torch.Tensor:
        """A value for each completion, of all processes in the batch's order, on the CPU."""
        return torch.tensor(gather_object(values.tolist()))

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add what it takes to the seconds of a phase."""
        start = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start

    # ---- what transformers' Trainer has too ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """A line of the log: into `state.log_history`, and to the trackers."""
        entry = {**logs, "epoch": round(self.state.epoch or 0, 4), "step": self.state.global_step}
        self.state.log_history.append(entry)
        say(log_line(entry, self.state.max_steps))
        self.call("on_log", logs)

    def evaluate(self, *given: Any, **others: Any) -> dict[str, float]:
        """Sample the validation prompts and measure: reward, divergence, length, perplexity (`tuner.rl.evaluation`)."""
        if given or others:
            raise ArgumentError("evaluate: the prompts are those of eval_dataset, so that evaluations compare.")
        if self.eval_dataset is None:
            raise ArgumentError("There are no validation prompts (eval_dataset).")
        metrics = evaluate_policy(self)
        self.log(metrics)
        self.call("on_evaluate", metrics)
        return metrics

    def generate_completions(self, sampling: bool = True) -> None:
        """TRL's name of `evaluate`, which samples and writes every completion to `completions.jsonl`."""
        if not sampling:
            raise ArgumentError("generate_completions: validation prompts are sampled, with the same random numbers.")
        self.evaluate()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the policy and its tokenizer: a model, or an adapter; and in `value` a value model of its own, which
        another run may begin with (`--value_model_path`)."""
        if self.args.should_save:
            folder = Path(output_dir or self.folder)
            save_policy(self, folder)
            if isinstance(self.actor.value, PreTrainedModel):
                self.actor.value.save_pretrained(folder / "value")
                self.processing_class.save_pretrained(folder / "value")
            if self.run is not None and self.run.args.merge:
                survive(self._merge, "The merged model")
        self.accelerator.wait_for_everyone()

    def _merge(self) -> None:
        from tuner.loading.adapters import save_merged  # peft takes seconds to import

        found = save_merged(self.folder, bool(self.run and self.run.args.trust_remote_code))
        say(f"Merged in {self.folder / 'merged'}; its logits differ by at most {found:.1e} of the greatest.")

    def push_to_hub(self, message: str = "End of training", **_: Any) -> None:
        """Push what was saved, in one commit; an `ArgumentError` where the Hub does not take it, or no recipe made the
        trainer: `save_model` and huggingface_hub's `upload_folder` do it there."""
        if self.run is None:
            raise ArgumentError("push_to_hub: pushed is what a recipe's run wrote. Take save_model and upload_folder.")
        if self.hub is not None:
            write_card(self, self.hub.repo_id)
            say(f"Pushed to {self.hub.push(self.folder, message)}")

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        tied = getattr(self.actor.bare, "_tied_weights_keys", None) or {}
        wrong = [name for name in load_result.missing_keys if name not in tied] + load_result.unexpected_keys
        if wrong:
            raise CheckpointError(f"The checkpoint is another model's: {', '.join(wrong[:5])}.")
