"""The trainer: transformers' `Trainer` with what every run of ours promises, for every objective.

Built over transformers' `Trainer` and not TRL's: what those add (templates, tokenizing, packing, a loss) is an
objective's here. The order of the data is a function of (seed, epoch), random numbers of (seed, step, process),
checkpoints are whole or absent, the loss is the mean over the whole global batch, and nothing that is not finite
reaches a weight.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader, Sampler, SequentialSampler
from transformers import PreTrainedModel, TrainingArguments
from transformers import Trainer as TransformersTrainer
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from tuner.corpus.stream import TokenStream
from tuner.data.draws import Draws
from tuner.errors import ArgumentError, Interrupted, NonFiniteError
from tuner.estimate.model import Operations
from tuner.hardware import release_unused_memory
from tuner.hub.push import HubRepository
from tuner.objectives.base import Objective, use_objective
from tuner.objectives.records import Examples
from tuner.optim.check import schedule_kwargs
from tuner.optim.split_adamw import own_optimizer
from tuner.train.callbacks import Guarded, StepSeed, StopOnRequest, Throughput
from tuner.train.checkpoint import last_checkpoint
from tuner.train.folder import locked
from tuner.train.guards import SpikeGuard
from tuner.train.order import EpochOrder
from tuner.train.run import Run, product_dtype, say
from tuner.train.saving import SavingTrainer
from tuner.train.streaming import StreamPlace

# Steps in a row that fp16's loss scaling may leave out: from 2^16 it has halved to less than 2^-14 then.
OVERFLOWS = 30


class Trainer(SavingTrainer):
    """Trains a model by an objective.

    Args:
        model: a model that the objective trains, bare or in a PEFT wrapper.
        run: from `open_run`.
        objective: its loss is put into the model (`use_objective`).
        examples: from `make_examples`; of a stream the place goes into each checkpoint.
    """

    def __init__(self, model: PreTrainedModel, run: Run, objective: Objective[Any], examples: Examples):
        self.run, self.objective, self.examples = run, objective, examples
        self.hub = HubRepository(run.args) if run.args.push_to_hub and run.training.should_save else None
        use_objective(model.get_base_model() if hasattr(model, "get_base_model") else model, objective)
        streams = isinstance(examples.train, TokenStream)
        super().__init__(
            model=model,
            args=run.training,
            data_collator=objective,
            train_dataset=examples.train if streams else Draws(examples.train),
            eval_dataset=Draws(examples.eval),
            processing_class=objective.tokenizer,
        )
        if not streams:
            self.examples = Examples(
                self._with_reference(examples.train), self._with_reference(examples.eval), examples.reports
            )
            self.train_dataset, self.eval_dataset = Draws(self.examples.train), Draws(self.examples.eval)
        self.model_accepts_loss_kwargs = True  # the objective's loss divides by the global batch's count
        self._unit = "rows" if objective.keeps_rows and not streams else "examples"
        self._throughput = Throughput(Operations.of(self.model), product_dtype(self.args, self.model))
        self.stop = StopOnRequest(run.args.max_minutes)
        self.guard = SpikeGuard() if run.args.skip_spikes else None
        if self.guard is not None:
            self.stateful["spike_guard.json"] = self.guard
        self._stream = StreamPlace(self) if streams else None
        if self._stream is not None:
            self.stateful["stream.json"] = self._stream
        trackers = tuple(INTEGRATION_TO_CALLBACK.values())
        handler = self.callback_handler
        handler.callbacks = [Guarded(c) if isinstance(c, trackers) else c for c in handler.callbacks]
        for callback in (StepSeed(), self._throughput, self.stop):
            self.add_callback(callback)
        self._step: list[tuple[torch.Tensor, torch.Tensor]] = []  # of each micro-batch: source rows, loss
        self._overflows = 0
        self._sums: dict[str, torch.Tensor] = {}

    # ---- data ----

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        return EpochOrder(
            dataset,
            strategy=self.args.train_sampling_strategy,
            batch_size=self.args.train_batch_size,
            seed=self.args.data_seed if self.args.data_seed is not None else self.args.seed,
            epoch=lambda: int(self.state.epoch or 0),
            processes=self.args.world_size,
            drop_last=bool(self.run.args.extra.get("dataloader_drop_last")),
        )

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[int]:
        return SequentialSampler(eval_dataset)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        rows = (eval_dataset if eval_dataset is not None else self.eval_dataset).rows
        batch = self.args.eval_batch_size * self.args.world_size
        # The last batches must not repeat rows: what fills them has no label.
        length = -(-len(rows) // batch) * batch if self.args.world_size > 1 else len(rows)
        return super().get_eval_dataloader(Draws(rows.with_format(None), length))

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
        return own_optimizer(args, model) or TransformersTrainer.get_optimizer_cls_and_kwargs(args, model)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        self.args.lr_scheduler_kwargs = schedule_kwargs(self.args, num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)

    def train(self, resume_from_checkpoint: str | Path | None = None, **kwargs: Any) -> Any:
        """Train, or continue from a checkpoint to the same bits.

        Raises:
            ArgumentError: there is not one step to train.
            Interrupted: a signal came; the state is saved.
            NonFiniteError: a loss or gradient was NaN or infinite.
            CheckpointError: a checkpoint could not be written, or another process trains in the folder.
        """
        self._checkpoint = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        self._require_steps()
        if self._checkpoint is not None:
            self.args.eval_on_start = False  # the run had its start
            if self._is_finished(self._checkpoint):
                say(f"{self._checkpoint} is the end of this run: nothing is left to train.")
                return self._load_finished(self._checkpoint)
            if self._stream is not None:
                self._stream.go_to(self._checkpoint)
        release_unused_memory()
        try:
            with locked(self.folder) if self.args.should_save else nullcontext():
                result = super().train(resume_from_checkpoint=self._checkpoint and str(self._checkpoint), **kwargs)
        finally:
            self.stop.restore_handlers()
        release_unused_memory()
        self._report_stop()
        return result

    def _require_steps(self) -> None:
        loader = self.get_train_dataloader()
        empty = not isinstance(self.train_dataset, TokenStream) and len(loader) == 0
        if empty or self.set_initial_training_values(self.args, loader)[-1] < 1:
            batch, epochs = self.args.train_batch_size * self.args.world_size, self.args.num_train_epochs
            examples = f"{len(self.examples.train):,} examples in batches of {batch}"
            raise ArgumentError(f"There is no step to train: {examples}, --num_train_epochs {epochs:g}.")

    def _report_stop(self) -> None:
        stop, step = self.stop, f"step {self.state.global_step:,} of {self.state.max_steps:,}"
        where = last_checkpoint(self.folder) if stop.received or stop.out_of_time else None
        if stop.received:
            saved = f"Saved {where}." if where else "Nothing was saved (--save_strategy no)."
            again = "The same command with --resume_from_checkpoint true continues."
            raise Interrupted(f"Stopped by a signal at step {self.state.global_step}. {saved} {again}", stop.received)
        if stop.out_of_time and self.state.global_step < self.state.max_steps:
            saved = "The same command with --resume_from_checkpoint true goes on."
            if self.args.save_strategy == "no":
                saved = "Nothing was saved to go on from (--save_strategy no)."
            say(f"Stopped by --max_minutes {stop.minutes:g} at {step}. {saved}")

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
        losses = [loss for _, loss in step]
        seen = torch.stack([*losses, torch.as_tensor(norm).to(losses[0])])
        finite = torch.isfinite(seen).tolist()
        if not all(finite[:-1]):
            bad = finite.index(False)
            rows = [rows for (rows, _), good in zip(step, finite[:-1], strict=True) if not good]
            raise NonFiniteError(self._blame(f"The loss is {float(seen[bad])}", rows))
        if not finite[-1]:
            self._allow_overflow(float(seen[-1]), [rows for rows, _ in step])
            return norm
        self._overflows = 0
        if self.guard is not None and self.guard.is_spike(float(norm)):
            # Without gradients the optimizer does nothing: no moment moves, no weight decays.
            model.zero_grad(set_to_none=True)
            say(f"Step {self.state.global_step + 1} is left out: its gradient norm {float(norm):.3g} is a spike.")
        return norm

    def _allow_overflow(self, norm: float, rows: list[torch.Tensor]) -> None:
        """In fp16 the loss scaler leaves out a step whose gradients overflow, and scales less from then on."""
        self._overflows += 1
        if self.accelerator.scaler is None or self._overflows > OVERFLOWS:
            raise NonFiniteError(self._blame(f"The gradient norm is {norm}", rows))

    def _blame(self, what: str, rows: list[torch.Tensor]) -> str:
        known = sorted({int(row) for batch in rows for row in batch.flatten() if row >= 0})
        where = last_checkpoint(self.folder)
        return (
            f"{what} at step {self.state.global_step + 1}, before the optimizer stepped. The batch was training "
            f"{self._unit} {', '.join(map(str, known))} (counted from 0). A lower --learning_rate is the usual cure. "
            f"{f'The last whole checkpoint is {where}.' if where else 'No checkpoint was saved yet.'}"
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if isinstance(self.train_dataset, TokenStream):  # transformers counts a resumed one from its place
            self.state.epoch = self.state.global_step / max(self.state.max_steps, 1)
        if "loss" in logs:
            logs |= self._throughput.rates()
            if self.guard is not None:
                logs["skipped_steps"] = self.guard.skipped
        super().log(logs, start_time)

    # ---- evaluation: sums over all batches and processes, not means of means ----

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        self._sums = {}
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        found = {name: self.accelerator.reduce(value, "sum").cpu().numpy() for name, value in self._sums.items()}
        del output.metrics[f"{metric_key_prefix}_loss"]
        for name, value in self.objective.metrics(found).items():
            output.metrics[f"{metric_key_prefix}_{name}"] = value
        return output

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *_: Any, **__: Any) -> Any:
        inputs = self._prepare_inputs({k: v for k, v in inputs.items() if k not in ("rows", "tokens")})
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        runs = model if sharded else self.accelerator.unwrap_model(model, keep_torch_compile=False)
        with torch.no_grad(), self.accelerator.autocast():
            found = runs(**inputs)
        wide = torch.float32 if self.args.device.type == "mps" else torch.float64  # sums of many batches
        for name, value in found.items():
            value = value.detach().to(self.args.device, wide)
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        return (found["loss"] / found["count"].clamp(min=1)).detach(), None, None

    # ---- the end ----

    def saved_part(self) -> nn.Module:
        return self.objective.saved_part(super().saved_part())

    def push_to_hub(self, message: str = "End of training") -> None:
        """Push what was saved, in one commit.

        Raises:
            ArgumentError: the Hub does not take it.
        """
        if self.hub is not None:
            dataset = self.run.args.dataset_name
            self.create_model_card(model_name=self.hub.repo_id.split("/")[-1], dataset=dataset)
            say(f"Pushed to {self.hub.push(self.folder, message)}")
