"""The part of the trainer that keeps its state: checkpoints that are whole or absent, and a resume to the same bits."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from torch import nn
from transformers import TrainerCallback, TrainerState
from transformers.trainer_utils import TrainOutput, rotate_checkpoints

from tuner.train.checkpoint import commit, discard_staging, reporting_failures, staging_folder
from tuner.train.run import say

PROGRESS = "progress.json"


class Stateful(Protocol):
    """What has a state that a checkpoint keeps as JSON."""

    def state(self) -> dict[str, Any]:
        """The state, as JSON keeps it exactly."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave."""
        ...


class SavingTrainer(transformers.Trainer):
    """transformers' `Trainer` with our checkpoints.

    Attributes:
        stateful: what is kept beside transformers' own state, by the name of its file.
    """

    model: Any

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.stateful: dict[str, Stateful] = {PROGRESS: _Progress(self)}
        self._checkpoint: Path | None = None
        self._staging: Path | None = None
        self.add_callback(_Restore(self))

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(str(self.args.output_dir))

    def saved_part(self) -> nn.Module:
        """The model that outlives the training."""
        bare: nn.Module = self.accelerator.unwrap_model(self.model)
        return bare

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if _internal_call:  # a part of a checkpoint, which reports for itself
            return super().save_model(output_dir, _internal_call)
        whole, part = self.model, self.saved_part()
        if part is not self.accelerator.unwrap_model(whole):
            self.model = part
        try:
            with reporting_failures(self.folder, "The model"):
                super().save_model(output_dir)
        finally:
            self.model = whole
        return None

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging is not None else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        name = f"checkpoint-{self.state.global_step}"
        # Progress on every process, because it gathers; the rest is the main one's.
        kept = {file: kept for file, kept in self.stateful.items() if self.args.should_save or file == PROGRESS}
        states = {file: kept.state() for file, kept in kept.items()}
        if self.args.should_save:
            discard_staging(self.folder)
        self.accelerator.wait_for_everyone()
        self._staging = staging_folder(self.folder)
        staged, final = self._staging / name, self.folder / name
        try:
            with reporting_failures(self.folder, name):
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if self.state.best_model_checkpoint == str(staged):
                    self.state.best_model_checkpoint = str(final)
                if self.args.should_save:
                    self._write_states(staged, states)
                    commit(staged, final)
                    discard_staging(self.folder)
                    rotate_checkpoints(str(self.folder), self.args.save_total_limit, self.state.best_model_checkpoint)
        finally:
            self._staging = None
        self.accelerator.wait_for_everyone()

    def _write_states(self, staged: Path, states: dict[str, dict[str, Any]]) -> None:
        best = self.state.best_model_checkpoint
        states[PROGRESS]["best"] = best and Path(best).name  # a path in it would not survive a move of the folder
        self.state.best_model_checkpoint = None
        self.state.save_to_json(str(staged / "trainer_state.json"))
        self.state.best_model_checkpoint = best
        for file, state in states.items():
            (staged / file).write_text(json.dumps(state), encoding="utf-8")

    def restore_states(self) -> None:
        """Put back what was kept beside transformers' own state when the checkpoint was written."""
        for file, kept in self.stateful.items():
            if self._checkpoint is not None and (self._checkpoint / file).is_file():
                kept.restore(json.loads((self._checkpoint / file).read_text(encoding="utf-8")))

    def _is_finished(self, checkpoint: Path) -> bool:
        """Whether a checkpoint is at the last step. transformers' `Trainer` would take one step more."""
        planned = self.set_initial_training_values(self.args, self.get_train_dataloader())[-1]
        return TrainerState.load_from_json(str(checkpoint / "trainer_state.json")).global_step >= planned

    def _load_finished(self, checkpoint: Path) -> TrainOutput:
        """The model that a finished run ended with: the best one where that was asked for."""
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        self._tr_loss = torch.zeros((), device=self.args.device)
        self.restore_states()
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint:
            self._load_best_model()
        return TrainOutput(self.state.global_step, self.mean_loss(), {})

    def mean_loss(self) -> float:
        """Mean of the steps' losses over the whole run, the part before a resume included."""
        return (self._total_loss_scalar + float(self._tr_loss)) / max(self.state.global_step, 1)

    def saved_step(self) -> int:
        """The step whose weights the trained model has: the last, or the best where that was loaded."""
        best = self.args.load_best_model_at_end and self.state.best_model_checkpoint
        return int(Path(best).name.rpartition("-")[2]) if best else self.state.global_step

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # A tied weight is saved once and is there: it is not missing.
        tied = getattr(self.model, "_tied_weights_keys", None) or {}
        load_result.missing_keys[:] = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result)


class _Progress:
    """What the next log line averages over, the best checkpoint, and how many processes trained."""

    def __init__(self, trainer: SavingTrainer):
        self._trainer: Any = trainer

    def state(self) -> dict[str, Any]:
        trainer = self._trainer
        return {
            "running_loss": trainer.accelerator.gather(trainer._tr_loss.reshape(1)).tolist(),
            "total_loss": trainer._total_loss_scalar,
            "last_logged": trainer._globalstep_last_logged,
            "processes": trainer.args.world_size,
        }

    def restore(self, state: dict[str, Any]) -> None:
        trainer, losses = self._trainer, state["running_loss"]
        rank = trainer.args.process_index
        trainer._tr_loss.fill_(losses[rank] if rank < len(losses) else sum(losses) / len(losses))
        trainer._total_loss_scalar = state["total_loss"]
        trainer._globalstep_last_logged = state["last_logged"]
        best = trainer.folder / (state.get("best") or "")
        trainer.state.best_model_checkpoint = str(best) if state.get("best") and os.path.isdir(best) else None
        before, now = state["processes"], trainer.args.world_size
        if before != now:
            say(
                f"The run was begun by {before} process{'es' if before > 1 else ''} and is continued by {now}: the "
                "result will not equal an uninterrupted run's."
            )


class _Restore(TrainerCallback):
    """Restores after transformers' `Trainer` has set its sums to zero and before the first step."""

    def __init__(self, trainer: SavingTrainer):
        self._trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._trainer.restore_states()
