"""The trainer: transformers' `Trainer` with what every run of ours promises, for every objective.

The order of the data is a function of (seed, epoch), random numbers of (seed, step, process), checkpoints are whole or
absent, the loss is the mean over the whole global batch, and nothing that is not finite reaches a weight. Built over
transformers' `Trainer` and not TRL's: what those add (templates, tokenizing, packing, a loss) is an objective's here.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import nn
from torch.utils.data import Sampler
from transformers import EarlyStoppingCallback, PreTrainedModel, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from tuner.corpus.stream import TokenStream
from tuner.data.draws import Draws
from tuner.data.mixture import data_sources
from tuner.errors import ArgumentError, CheckpointError, NonFiniteError, survive
from tuner.estimate.model import Operations
from tuner.hardware import release_unused_memory
from tuner.hub.push import HubRepository
from tuner.objectives.base import Objective, use_objective
from tuner.objectives.records import Examples
from tuner.optim.check import schedule_kwargs
from tuner.optim.layerwise import decay_by_layer
from tuner.optim.split_adamw import own_optimizer
from tuner.train.adapters import prepare_adapter
from tuner.train.callbacks import Guarded, SpikeGuard, StepSeed, StopOnRequest, Throughput
from tuner.train.checkpoint import last_saved
from tuner.train.evaluating import EvaluatingTrainer, model_inputs
from tuner.train.order import EpochOrder
from tuner.train.run import Run, locked, product_dtype, report_stop, say
from tuner.train.saving import SavingTrainer

# Steps in a row that fp16's loss scaling may leave out: from 2^16 it has halved to less than 2^-14 then.
OVERFLOWS = 30


class Trainer(EvaluatingTrainer):
    """Trains a model, bare or in a PEFT wrapper, by an objective: its loss is put into the model (`use_objective`). Of
    examples that are a stream, the place goes into each checkpoint."""

    def __init__(self, model: PreTrainedModel, run: Run, objective: Objective[Any], examples: Examples):
        self.run, self.objective, self.examples = run, objective, examples
        self.hub = HubRepository(run.args) if run.args.push_to_hub and run.training.should_save else None
        use_objective(model.get_base_model() if hasattr(model, "get_base_model") else model, objective)
        super().__init__(
            model=model,
            args=run.training,
            data_collator=objective,
            train_dataset=examples.train,
            eval_dataset=examples.eval,
            processing_class=objective.tokenizer,
        )
        self._streams = isinstance(examples.train, TokenStream)
        if not self._streams:
            train, self.eval_dataset = map(self._with_reference, (examples.train, examples.eval))
            self.examples, self.train_dataset = replace(examples, train=train, eval=self.eval_dataset), Draws(train)
        if run.args.values().get("use_peft"):
            prepare_adapter(self)
        self.model_accepts_loss_kwargs = True  # the objective's loss divides by the global batch's count
        self._throughput = Throughput(Operations.of(self.model), product_dtype(self.args, self.model))
        self.stop = StopOnRequest(run.args.max_minutes)
        self.guard = SpikeGuard() if run.args.skip_spikes else None
        handler, trackers = self.callback_handler, tuple(INTEGRATION_TO_CALLBACK.values())
        handler.callbacks = [Guarded(c) if isinstance(c, trackers) else c for c in handler.callbacks]
        patience = run.args.early_stopping_patience
        early = [] if patience is None else [EarlyStoppingCallback(patience)]
        for callback in (StepSeed(), self._throughput, self.stop, *early):
            self.add_callback(callback)
        self._step: list[tuple[torch.Tensor, torch.Tensor]] = []  # of each micro-batch: source rows, loss
        self._overflows = 0
        self._sums: dict[str, Any] = {}

    # ---- data ----

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return EpochOrder(
            self.train_dataset if train_dataset is None else train_dataset,
            strategy=self.args.train_sampling_strategy,
            batch_size=self.args.train_batch_size,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            epoch=lambda: int(self.state.epoch or 0),
            processes=self.args.world_size,
            drop_last=bool(self.run.args.extra.get("dataloader_drop_last")),
            shares=self.examples.shares(self.args.seed if self.args.data_seed is None else self.args.data_seed),
        )

    def _with_reference(self, rows: Dataset) -> Dataset:
        """The examples with what the objective keeps of the model as it begins; each process computes its share."""
        share = rows.select(np.array_split(np.arange(len(rows)), self.args.world_size)[self.args.process_index])
        with self.accelerator.autocast():
            found = self.objective.reference(self.model, share, self.args.eval_batch_size)
        return rows if found is None else rows.add_column("reference", gather_object(found))

    # ---- training ----

    @staticmethod
    def get_optimizer_cls_and_kwargs(
        args: TrainingArguments, model: PreTrainedModel | None = None
    ) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
        return own_optimizer(args, model) or SavingTrainer.get_optimizer_cls_and_kwargs(args, model)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(model)
        decay = self.run.args.values().get("layerwise_lr_decay", 1.0)
        if fresh and decay != 1:
            decay_by_layer(optimizer, self.model if model is None else model, decay)
        return optimizer

    def train(self, resume_from_checkpoint: str | Path | None = None) -> None:
        """Train, or continue from a checkpoint to the same bits.

        Raises:
            ArgumentError: there is not one step to train. Interrupted: a signal came; the state is saved.
            NonFiniteError: a loss or gradient was NaN or infinite.
            CheckpointError: a checkpoint could not be written, or another process trains in the folder.
        """
        steps = self._planned_steps()
        checkpoint = Path(resume_from_checkpoint) if resume_from_checkpoint is not None else None
        self.args.lr_scheduler_kwargs = schedule_kwargs(self.args, steps)
        if checkpoint is not None:
            self.args.eval_on_start = False  # the run had its start
            if self._open_checkpoint(checkpoint, steps):
                say(f"{checkpoint} is the end of this run: nothing is left to train.")
                return
            if self._streams:
                if "stream" not in self.kept:
                    raise CheckpointError(f"{checkpoint} keeps no place of its stream: an older tuner wrote it.")
                self.args.ignore_data_skip = True
                self.train_dataset.go_to(self.kept["stream"])
        release_unused_memory()
        try:
            with locked(self.folder) if self.args.should_save else nullcontext():
                super().train(resume_from_checkpoint=checkpoint and str(checkpoint))
        finally:
            self.stop.restore_handlers()
        release_unused_memory()
        report_stop(self.stop, self.folder, self.state.global_step, self.state.max_steps)

    def _planned_steps(self) -> int:
        loader = self.get_train_dataloader()
        found = self._streams or len(loader)
        steps: int = self.set_initial_training_values(self.args, loader)[-1] if found else 0
        if steps < 1:
            batch, epochs = self.args.train_batch_size * self.args.world_size, self.args.num_train_epochs
            examples = f"{len(self.examples.train):,} examples in batches of {batch}"
            raise ArgumentError(f"There is no step to train: {examples}, --num_train_epochs {epochs:g}.")
        return steps

    def progress(self) -> dict[str, Any]:
        kept = super().progress()
        if self.guard is not None:
            kept["spike_guard"] = self.guard.state()
        if self._streams and self.args.should_save:  # the main process reads for all
            step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
            kept["stream"] = self.train_dataset.place(self.state.global_step * step)
        return kept

    def restore(self, progress: dict[str, Any]) -> None:
        super().restore(progress)
        if self.guard is not None and "spike_guard" in progress:
            self.guard.restore(progress["spike_guard"])

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor:
        """What the losses of a step are divided by: the objective's counts in the whole global batch. With several
        processes one exchange also tells all of them whether one was asked to stop."""
        counts = torch.stack([self.objective.counts(batch) for batch in batch_samples]).sum(dim=0).to(device)
        if self.args.world_size > 1:
            mine = torch.cat([counts.reshape(-1), self.stop.wanted().to(counts)])
            everyone = self.accelerator.gather(mine[None])
            self.stop.agreed = everyone[:, -2:].amax(dim=0)
            counts = everyone[:, :-2].sum(dim=0).view_as(counts)
        return counts.expand(self.args.n_gpu, *counts.shape) if self.args.n_gpu > 1 else counts

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        self._throughput.count(inputs)
        loss = super().training_step(model, model_inputs(inputs), num_items_in_batch)
        self._step.append((inputs["rows"], loss))
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Called once a step between the backward passes and the optimizer: the last moment to stop. One look at the
        numbers a step, because on an accelerator each look waits for it."""
        norm = super()._get_grad_norm(model, grad_norm)
        step, self._step = self._step, []
        losses = [loss for _, loss in step]
        *good, finite = torch.isfinite(torch.stack([*losses, torch.as_tensor(norm).to(losses[0])])).tolist()
        if not all(good):
            bad = [(rows, loss) for (rows, loss), is_good in zip(step, good, strict=True) if not is_good]
            raise NonFiniteError(self._blame(f"The loss is {float(bad[0][1])}", [rows for rows, _ in bad]))
        self._overflows = 0 if finite else self._overflows + 1
        # In fp16 the loss scaler leaves out a step whose gradients overflow, and scales less from then on.
        if self._overflows > (0 if self.accelerator.scaler is None else OVERFLOWS):
            raise NonFiniteError(self._blame(f"The gradient norm is {float(norm)}", [rows for rows, _ in step]))
        if finite and self.guard is not None and self.guard.is_spike(float(norm)):
            # Without gradients the optimizer does nothing: no moment moves, no weight decays.
            model.zero_grad(set_to_none=True)
            say(f"Step {self.state.global_step + 1} is left out: its gradient norm {float(norm):.3g} is a spike.")
        return norm

    def _blame(self, what: str, rows: list[torch.Tensor]) -> str:
        known = sorted({int(row) for batch in rows for row in batch.flatten() if row >= 0})
        unit = "rows" if self.objective.keeps_rows and not self._streams else "examples"
        counted = "counted from 0, through all data sets" if self.examples.parts else "counted from 0"
        return (
            f"{what} at step {self.state.global_step + 1}, before the optimizer stepped. The batch was training "
            f"{unit} {', '.join(map(str, known))} ({counted}). A lower --learning_rate is the usual cure. "
            f"{last_saved(self.folder)}"
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._streams:  # transformers counts a resumed one from its place
            self.state.epoch = self.state.global_step / max(self.state.max_steps, 1)
        if "loss" in logs:
            logs |= self._throughput.rates()
            if self.guard is not None:
                logs["skipped_steps"] = self.guard.skipped
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if not _internal_call:
            say(self.objective.finish(self.accelerator.unwrap_model(self.model), self.examples))
        super().save_model(output_dir, _internal_call)
        if not _internal_call and self.run.args.values().get("merge") and self.args.should_save:
            from tuner.loading.adapters import save_merged  # peft takes seconds to import

            def merge() -> None:
                config = self.accelerator.unwrap_model(self.model).config
                found = save_merged(self.folder, self.run.args.trust_remote_code, config)
                say(f"Merged in {self.folder / 'merged'}; its logits differ by at most {found:.1e} of the greatest.")

            survive(merge, "The merged model")

    def push_to_hub(self, message: str = "End of training") -> None:
        """Push what was saved, in one commit; an `ArgumentError` where the Hub does not take it."""
        if self.hub is not None:
            name = self.hub.repo_id.split("/")[-1]
            # Of a file or folder its name: where it lies here is nobody's business.
            names = [source.name for source in data_sources(self.run.args)]
            data = [Path(name).name if Path(name).expanduser().exists() else name for name in names]
            self.create_model_card(model_name=name, dataset=data if len(data) > 1 else data[0])
            say(f"Pushed to {self.hub.push(self.folder, message)}")
