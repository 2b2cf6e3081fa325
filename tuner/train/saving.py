"""The part of the trainer that keeps its state: checkpoints that are whole or absent, and a resume to the same bits."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import transformers
from torch import nn
from transformers import TrainerCallback, TrainerState
from transformers.trainer_utils import rotate_checkpoints

from tuner.objectives.base import Objective
from tuner.train.checkpoint import STAGING, commit, discard_staging, reporting_failures
from tuner.train.run import say

PROGRESS, STATE = "progress.json", "trainer_state.json"


class SavingTrainer(transformers.Trainer):
    """transformers' `Trainer` with our checkpoints. Each holds `progress()` beside transformers' own state."""

    model: Any
    train_dataset: Any
    objective: Objective[Any]

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.kept: dict[str, Any] = {}  # `progress` of the checkpoint that is continued from
        self._staging: Path | None = None
        self.add_callback(_Restore(self))

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(str(self.args.output_dir))

    def progress(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON keeps it exactly: the sums of the next log line, the best checkpoint, and
        how many processes trained. It gathers, so every process calls it."""
        best = self.state.best_model_checkpoint
        return {
            "running_loss": self.accelerator.gather(self._tr_loss.reshape(1)).tolist(),
            "total_loss": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
            "processes": self.args.world_size,
            "best": best and Path(best).name,  # a path would not survive a move of the folder
        }

    def restore(self, progress: dict[str, Any]) -> None:
        """Put back what `progress` gave."""
        losses, before, now = progress["running_loss"], progress["processes"], self.args.world_size
        self._tr_loss.fill_(losses[self.args.process_index] if before == now else fmean(losses))
        self._total_loss_scalar, self._globalstep_last_logged = progress["total_loss"], progress["last_logged"]
        best = progress["best"] and str(self.folder / progress["best"])
        self.state.best_model_checkpoint = best if best and os.path.isdir(best) else None
        if before != now:
            say(f"Processes: {before} when the run began, {now} now. The result will not equal an uninterrupted run's.")

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the part of the model that outlives the training."""
        if _internal_call:  # a part of a checkpoint, which reports for itself
            return super().save_model(output_dir, _internal_call)
        whole, bare = self.model, self.accelerator.unwrap_model(self.model)
        part = self.objective.saved_part(bare)
        try:
            self.model = whole if part is bare else part
            with reporting_failures(self.folder, "The model"):
                super().save_model(output_dir)
        finally:
            self.model = whole
        return None

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        name = f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            discard_staging(self.folder)
        self.accelerator.wait_for_everyone()
        self._staging = self.folder / STAGING
        staged, final = self._staging / name, self.folder / name
        try:
            with reporting_failures(self.folder, name):
                super()._save_checkpoint(model, trial)
                if self.state.best_model_checkpoint == str(staged):
                    self.state.best_model_checkpoint = str(final)
                progress = self.progress()
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    replace(self.state, best_model_checkpoint=None).save_to_json(str(staged / STATE))
                    (staged / PROGRESS).write_text(json.dumps(progress), encoding="utf-8")
                    commit(staged, final)
                    discard_staging(self.folder)
                    rotate_checkpoints(str(self.folder), self.args.save_total_limit, self.state.best_model_checkpoint)
        finally:
            self._staging = None
        self.accelerator.wait_for_everyone()

    def _open_checkpoint(self, checkpoint: Path, steps: int) -> bool:
        """Read what is restored at the first step. At the last one, and where a run stopped early, there is none
        (transformers' `Trainer` would take one more): then load the model that the run ended with, the best where that
        was asked for, and return True."""
        self.kept = json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8"))
        state = TrainerState.load_from_json(str(checkpoint / STATE))
        early = state.stateful_callbacks.get("EarlyStoppingCallback", {})
        waited = early.get("attributes", {}).get("early_stopping_patience_counter", 0)
        if state.global_step < steps and not (early and waited >= early["args"]["early_stopping_patience"]):
            return False
        self._load_from_checkpoint(str(checkpoint))
        self.state, self._tr_loss = state, torch.zeros((), device=self.args.device)
        self.restore(self.kept)
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint:
            self._load_best_model()
        return True

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


class _Restore(TrainerCallback):
    """Restores after transformers' `Trainer` has set its sums to zero and before the first step."""

    def __init__(self, trainer: SavingTrainer):
        self._trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        if self._trainer.kept:
            self._trainer.restore(self._trainer.kept)
