"""The trainer: transformers' `Trainer` with what every run of ours promises.

Built over transformers' `Trainer` and not TRL's `SFTTrainer`, because the latter adds just what is already done here
before a trainer exists (templates, tokenizing, packing) and patches the loss that `losses.py` computes. What is left of
it for us is `Trainer`. Arguments keep TRL's names.

`ExactTrainerMixin` holds the promises and works over any `Trainer`: the order of the data is a function of (seed,
epoch), random numbers of (seed, step, process), checkpoints are whole or absent, what a log line averages over survives
a resume, and nothing that is not finite reaches a weight.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from torch import nn
from torch.utils.data import Sampler
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_utils import TrainOutput, rotate_checkpoints

from tuner.data.collate import CausalCollator
from tuner.errors import ArgumentError, Interrupted, NonFiniteError
from tuner.estimate.sizes import linear_sizes
from tuner.hardware import release_unused_memory
from tuner.ops.chunked_loss import use_chunked_loss
from tuner.optim.split_adamw import own_optimizer
from tuner.train.callbacks import Guarded, StepSeed, StopOnSignal, Throughput
from tuner.train.checkpoint import commit, discard_staging, last_checkpoint, reporting_failures, staging_folder
from tuner.train.order import EpochOrder
from tuner.train.run import Run, joins_rows, product_dtype, say

PROGRESS = "progress.json"


class ExactTrainerMixin(Trainer):
    """Put before a `Trainer` class. Batches carry `labels`, `tokens` `(batch,)` and `rows`, the source rows."""

    unit = "rows"  # what they are, in messages

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._stop = StopOnSignal()
        self._throughput = Throughput(*linear_sizes(self.model), product_dtype(self.args, self.model))
        trackers = tuple(INTEGRATION_TO_CALLBACK.values())
        handler = self.callback_handler
        handler.callbacks = [Guarded(c) if isinstance(c, trackers) else c for c in handler.callbacks]
        for callback in (StepSeed(), _Restore(self), self._throughput, self._stop):
            self.add_callback(callback)
        self._checkpoint: Path | None = None
        self._staging: Path | None = None
        self._step: list[tuple[torch.Tensor, torch.Tensor]] = []  # of each micro-batch: source rows, loss
        self._eval_sums = torch.zeros(2, dtype=torch.float64)

    # ---- order of the data ----

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int]:
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        return EpochOrder(
            dataset,
            strategy=self.args.train_sampling_strategy,
            batch_size=self.args.train_batch_size,
            seed=self.args.data_seed if self.args.data_seed is not None else self.args.seed,
            epoch=lambda: int(self.state.epoch or 0),
        )

    # ---- training ----

    @staticmethod
    def get_optimizer_cls_and_kwargs(
        args: TrainingArguments, model: PreTrainedModel | None = None
    ) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
        return own_optimizer(args, model) or Trainer.get_optimizer_cls_and_kwargs(args, model)

    def train(self, resume_from_checkpoint: str | Path | None = None, **kwargs: Any) -> Any:
        """Train, or continue from a checkpoint to the same bits.

        Raises:
            Interrupted: a signal came; the state is saved.
            NonFiniteError: a loss or gradient was NaN or infinite.
            CheckpointError: a checkpoint could not be written.
        """
        self._checkpoint = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        if self._checkpoint is not None:
            self.args.eval_on_start = False  # the run had its start
            if self._is_finished(self._checkpoint):
                say(f"{self._checkpoint} is the end of this run: nothing is left to train.")
                return self._load_finished(self._checkpoint)
        release_unused_memory()
        try:
            result = super().train(resume_from_checkpoint=str(self._checkpoint) if self._checkpoint else None, **kwargs)
        finally:
            self._stop.restore()
        release_unused_memory()
        if self._stop.received is not None:
            where = last_checkpoint(Path(self.args.output_dir))
            saved = f"Saved {where}." if where else "Nothing was saved (--save_strategy no)."
            raise Interrupted(
                f"Stopped by a signal at step {self.state.global_step}. {saved} The same command with "
                "--resume_from_checkpoint true continues.",
                self._stop.received,
            )
        return result

    def _is_finished(self, checkpoint: Path) -> bool:
        """Whether a checkpoint is at the last step. The Trainer would take one step more."""
        planned = self.set_initial_training_values(self.args, self.get_train_dataloader())[-1]
        return TrainerState.load_from_json(str(checkpoint / "trainer_state.json")).global_step >= planned

    def _load_finished(self, checkpoint: Path) -> TrainOutput:
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        self._tr_loss = torch.zeros((), device=self.args.device)
        self.restore_progress()
        return TrainOutput(self.state.global_step, self.mean_loss(), {})

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        self._throughput.count(inputs)
        rows = inputs["rows"]
        inputs = {k: v for k, v in inputs.items() if k not in ("rows", "tokens")}
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._step.append((rows, loss))
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Called once a step between the backward passes and the optimizer: the last moment to stop. One look at the
        numbers a step, because on an accelerator each look waits for it."""
        norm = super()._get_grad_norm(model, grad_norm)
        step, self._step = self._step, []
        losses = torch.stack([loss for _, loss in step])
        if not torch.isfinite(losses).all():
            bad = (~torch.isfinite(losses)).nonzero().flatten().tolist()
            raise NonFiniteError(self._blame(f"The loss is {float(losses[bad[0]])}", [step[i][0] for i in bad]))
        if norm is not None and not torch.isfinite(torch.as_tensor(norm)):
            raise NonFiniteError(self._blame(f"The gradient norm is {float(norm)}", [rows for rows, _ in step]))
        return norm

    def _blame(self, what: str, rows: list[torch.Tensor]) -> str:
        known = sorted({int(row) for batch in rows for row in batch.flatten() if row >= 0})
        where = last_checkpoint(Path(self.args.output_dir))
        return (
            f"{what} at step {self.state.global_step + 1}, before the optimizer stepped. The batch was training "
            f"{self.unit} {', '.join(map(str, known))} (counted from 0). A lower --learning_rate is the usual cure. "
            f"{f'The last whole checkpoint is {where}.' if where else 'No checkpoint was saved yet.'}"
        )

    def mean_loss(self) -> float:
        """Mean of the steps' losses over the whole run, the part before a resume included."""
        return (self._total_loss_scalar + float(self._tr_loss)) / max(self.state.global_step, 1)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self._throughput.rates()
        super().log(logs, start_time)

    # ---- evaluation: the mean over tokens, not over batches ----

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        dataset = eval_dataset if eval_dataset is not None else self.eval_dataset
        if isinstance(dataset, Dataset) and self.args.world_size > 1:
            missing = -len(dataset) % (self.args.eval_batch_size * self.args.world_size)
            if missing:  # the last batches must not repeat rows: fill them with rows that have no label
                blank = {**dataset[0], "labels": [-100] * len(dataset[0]["labels"])}
                filler = Dataset.from_list([blank] * missing, features=dataset.features)
                dataset = concatenate_datasets([dataset, filler])
        return super().get_eval_dataloader(dataset)

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        self._eval_sums.zero_()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        total, count = self.accelerator.reduce(self._eval_sums.to(self.args.device), "sum").tolist()
        output.metrics[f"{metric_key_prefix}_loss"] = total / max(count, 1)
        return output

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *_: Any, **__: Any) -> Any:
        inputs = self._prepare_inputs({k: v for k, v in inputs.items() if k not in ("rows", "tokens")})
        count = int((inputs["labels"][:, 1:] != -100).sum())
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = model(**inputs).loss.detach()
        self._eval_sums += torch.tensor([float(loss) * count, count], dtype=torch.float64)
        return loss, None, None

    # ---- checkpoints ----

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if _internal_call:  # a part of a checkpoint, which reports for itself
            super().save_model(output_dir, _internal_call)
        else:
            with reporting_failures(Path(self.args.output_dir), "The model"):
                super().save_model(output_dir)

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().init_hf_repo(*args, **kwargs)
        except Exception as error:  # the Hub client's exception types are many and private
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ArgumentError(f"--push_to_hub: the repository cannot be made ready: {reason}") from error

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging is not None else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self.args.output_dir)
        name = f"checkpoint-{self.state.global_step}"
        losses = self.accelerator.gather(self._tr_loss.reshape(1)).tolist()
        if self.args.should_save:
            discard_staging(folder)
        self.accelerator.wait_for_everyone()
        self._staging = staging_folder(folder)
        staged, final = self._staging / name, folder / name
        try:
            with reporting_failures(folder, name):
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    if self.state.best_model_checkpoint == str(staged):
                        self.state.best_model_checkpoint = str(final)
                        self.state.save_to_json(str(staged / "trainer_state.json"))
                    progress = {
                        "running_loss": losses,
                        "total_loss": self._total_loss_scalar,
                        "last_logged": self._globalstep_last_logged,
                    }
                    (staged / PROGRESS).write_text(json.dumps(progress), encoding="utf-8")
                    commit(staged, final)
                    discard_staging(folder)
                    rotate_checkpoints(str(folder), self.args.save_total_limit, self.state.best_model_checkpoint)
        finally:
            self._staging = None
        self.accelerator.wait_for_everyone()

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # A tied weight is saved once and is there: it is not missing.
        tied = getattr(self.model, "_tied_weights_keys", None) or {}
        load_result.missing_keys[:] = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result)

    def restore_progress(self) -> None:
        """Put back what a log line was averaging over when the checkpoint was written."""
        if self._checkpoint is None or not (self._checkpoint / PROGRESS).is_file():
            return
        progress = json.loads((self._checkpoint / PROGRESS).read_text(encoding="utf-8"))
        losses = progress["running_loss"]
        self._tr_loss.fill_(losses[self.args.process_index % len(losses)])
        self._total_loss_scalar = progress["total_loss"]
        self._globalstep_last_logged = progress["last_logged"]


class _Restore(TrainerCallback):
    """Calls `restore_progress` after the Trainer has set its sums to zero and before the first step."""

    def __init__(self, trainer: ExactTrainerMixin):
        self._trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._trainer.restore_progress()


class SFTTrainer(ExactTrainerMixin, Trainer):
    """Supervised fine-tuning of a causal language model on encoded rows.

    Args:
        model: any causal language model of transformers, ours or another's, bare or in a PEFT wrapper.
        run: from `open_run`.
        train_dataset, eval_dataset: rows of `input_ids`, `labels`, `rows` and, when packed, `position_ids`.
        tokenizer: saved with the model; its padding token fills batches.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        run: Run,
        train_dataset: Dataset,
        eval_dataset: Dataset,
        tokenizer: PreTrainedTokenizerBase,
    ):
        if not use_chunked_loss(model):
            say(f"{type(model).__name__} transforms its logits, so it keeps its own loss (all logits at once).")
        super().__init__(
            model=model,
            args=run.training,
            data_collator=CausalCollator(tokenizer.pad_token_id, padding_free=joins_rows(run, model)),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
        )
