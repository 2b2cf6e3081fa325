"""The trainer of every pretraining objective: `ExactTrainerMixin` over the objective's batches, loss and metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from transformers.trainer_utils import SchedulerType

from tuner.corpus.stream import TokenStream
from tuner.data.draws import Draws
from tuner.objectives.base import Objective, use_objective
from tuner.objectives.electra import GeneratorAndDiscriminator
from tuner.train.guards import SpikeGuard, TimeLimit
from tuner.train.run import Run, joins_rows, say
from tuner.train.trainer import ExactTrainerMixin

GUARD, STREAM = "spike_guard.json", "stream.json"
# Share of the steps in which `warmup_stable_decay` decays (Hu et al. 2024, https://arxiv.org/abs/2404.06395: a tenth is
# enough; Hägele et al. 2024, https://arxiv.org/abs/2405.18392: up to a fifth helps).
DECAY = 0.2


class PretrainTrainer(ExactTrainerMixin, Trainer):
    """Pretraining by an objective.

    Args:
        model: of the class that the objective trains.
        run: from `open_run`; its arguments have `max_minutes` and `skip_spikes`.
        train_rows, eval_rows: from the objective; of a stream the place goes into each checkpoint.
        tokenizer: saved with the model.
    """

    model: Any

    def __init__(
        self,
        model: PreTrainedModel,
        run: Run,
        objective: Objective,
        train_rows: Dataset | TokenStream,
        eval_rows: Dataset,
        tokenizer: PreTrainedTokenizerBase,
    ):
        self.objective = objective
        objective.options["padding_free"] = joins_rows(run, model)  # where it is next tokens that are learnt
        use_objective(model, objective)
        super().__init__(
            model=model,
            args=run.training,
            data_collator=objective,
            train_dataset=train_rows if isinstance(train_rows, TokenStream) else Draws(train_rows),
            eval_dataset=Draws(eval_rows, len(eval_rows)),
            processing_class=tokenizer,
        )
        values = run.args.values()
        self.guard = SpikeGuard() if values.get("skip_spikes", True) else None
        self.limit = TimeLimit(values["max_minutes"]) if values.get("max_minutes") else None
        if self.limit is not None:
            self.add_callback(self.limit)
        if isinstance(train_rows, TokenStream) or not objective.keeps_rows:
            self.unit = "examples"
        self._sums: dict[str, torch.Tensor] = {}

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.args.lr_scheduler_type == SchedulerType.WARMUP_STABLE_DECAY:
            given = self.args.lr_scheduler_kwargs or {}
            self.args.lr_scheduler_kwargs = {"num_decay_steps": round(DECAY * num_training_steps), **given}
        return super().create_scheduler(num_training_steps, optimizer)

    # ---- steps ----

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        if self.guard is not None and norm is not None and self.guard.is_spike(float(norm)):
            # Without gradients the optimizer does nothing: no moment moves, no weight decays.
            model.zero_grad(set_to_none=True)
            say(f"Step {self.state.global_step + 1} is left out: its gradient norm {float(norm):.3g} leapt.")
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if isinstance(self.train_dataset, TokenStream):  # the Trainer counts a resumed one from its place
            self.state.epoch = self.state.global_step / max(self.state.max_steps, 1)
        if "loss" in logs and self.guard is not None:
            logs["skipped_steps"] = self.guard.skipped
        super().log(logs, start_time)

    # ---- evaluation ----

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        rows = (eval_dataset if eval_dataset is not None else self.eval_dataset).rows
        batch = self.args.eval_batch_size * self.args.world_size
        # The last batches must not repeat rows: what fills them has no label.
        length = -(-len(rows) // batch) * batch if self.args.world_size > 1 else len(rows)
        return Trainer.get_eval_dataloader(self, Draws(rows.with_format(None), length))

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        self._sums = {}
        output = Trainer.evaluation_loop(self, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        found = {name: self.accelerator.reduce(value, "sum").cpu().numpy() for name, value in self._sums.items()}
        for name, value in self.objective.summary(found).items():
            output.metrics[f"{metric_key_prefix}_{name}"] = value
        return output

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *_: Any, **__: Any) -> Any:
        inputs = self._prepare_inputs({k: v for k, v in inputs.items() if k not in ("rows", "tokens")})
        bare = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        with torch.no_grad(), self.accelerator.autocast():
            found = self.objective.sums(bare, **inputs)
        for name, value in found.items():
            # Sums of many batches.
            wide = value.detach().to(self.args.device).double()
            self._sums[name] = self._sums[name] + wide if name in self._sums else wide
        return (found["loss"] / found["count"].clamp(min=1)).detach(), None, None

    # ---- checkpoints ----

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.guard is not None and self.args.should_save:
            (Path(output_dir) / GUARD).write_text(json.dumps(self.guard.state()), encoding="utf-8")

        stream = self.train_dataset
        if isinstance(stream, TokenStream) and self.args.should_save:
            args = self.args
            blocks = self.state.global_step * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            (Path(output_dir) / STREAM).write_text(json.dumps(stream.place(blocks)), encoding="utf-8")

    def train(self, resume_from_checkpoint: str | Path | None = None, **kwargs: Any) -> Any:
        """As inherited; a stream goes on from its place, without what lies before it."""
        stream = self.train_dataset
        if isinstance(stream, TokenStream) and resume_from_checkpoint:
            self.args.ignore_data_skip = True
            stream.go_to(json.loads((Path(resume_from_checkpoint) / STREAM).read_text(encoding="utf-8")))
        result = super().train(resume_from_checkpoint, **kwargs)
        if self.limit is not None and self.limit.reached and self.state.global_step < self.state.max_steps:
            saved = "The same command with --resume_from_checkpoint true goes on."
            if self.args.save_strategy == "no":
                saved = "Nothing was saved to go on from (--save_strategy no)."
            where = f"step {self.state.global_step:,} of {self.state.max_steps:,}"
            say(f"Stopped by --max_minutes {self.limit.minutes:g} at {where}. {saved}")
        return result

    def restore_progress(self) -> None:
        super().restore_progress()
        if self.guard is not None and self._checkpoint is not None and (self._checkpoint / GUARD).is_file():
            self.guard.restore(json.loads((self._checkpoint / GUARD).read_text(encoding="utf-8")))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        bare = self.accelerator.unwrap_model(self.model)
        if _internal_call or not isinstance(bare, GeneratorAndDiscriminator):
            return super().save_model(output_dir, _internal_call)
        # Only the discriminator outlives the training.
        pair, self.model = self.model, bare.discriminator
        try:
            super().save_model(output_dir)
        finally:
            self.model = pair
        return None
