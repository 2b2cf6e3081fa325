"""Evaluation by sums over all batches and processes, not by means of means."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler, SequentialSampler

from tuner.data.draws import Draws
from tuner.objectives.base import Objective
from tuner.objectives.records import Examples
from tuner.train.saving import SavingTrainer

# What of a batch is counted with, and no input of the model.
COUNTED = ("rows", "tokens")


class EvaluatingTrainer(SavingTrainer):
    """Evaluates by its objective; examples of several data sets also each set's loss, as `eval_<name>_loss`."""

    objective: Objective[Any]
    examples: Examples
    _sums: dict[str, Any]
    _whole = False  # whether all examples are evaluated, and not rows that somebody names

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[int]:
        return SequentialSampler(eval_dataset)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        # The last batches of several processes must not repeat rows: what fills them has no label.
        together = self.args.eval_batch_size * self.args.world_size if self.args.world_size > 1 else 1
        return super().get_eval_dataloader(Draws(rows, -(-len(rows) // together) * together))

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> Any:
        self._whole = eval_dataset is None
        try:
            return super().evaluate(eval_dataset, *args, **kwargs)
        finally:
            self._whole = False

    def evaluation_loop(self, loader: Any, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        loaders, sums, losses, samples = self._loaders(loader), dict[str, Any](), dict[str, float](), 0
        for name, each in loaders.items():
            self._sums = {}
            output = super().evaluation_loop(each, *args, metric_key_prefix=metric_key_prefix, **kwargs)
            found = {key: self.accelerator.reduce(value, "sum").cpu().numpy() for key, value in self._sums.items()}
            sums = {key: sums.get(key, 0) + value for key, value in found.items()}
            samples += output.num_samples
            if name:
                losses[f"{metric_key_prefix}_{name}_loss"] = self.objective.metrics(found)["loss"]
        figures = {f"{metric_key_prefix}_{key}": value for key, value in self.objective.metrics(sums).items()}
        return output._replace(metrics=output.metrics | figures | losses, num_samples=samples)

    def _loaders(self, loader: Any) -> dict[str, Any]:
        """Those of each data set by its name, where there are several; else the one given."""
        if not self._whole or not self.examples.parts:
            return {"": loader}
        ends = accumulate((len(part.eval) for part in self.examples.parts), initial=0)
        rows = (self.examples.eval.select(range(*both)) for both in pairwise(ends))
        short = [part.source.short for part in self.examples.parts]
        names = [name if short.count(name) == 1 else f"{name}_{number}" for number, name in enumerate(short)]
        return {name: self.get_eval_dataloader(each) for name, each in zip(names, rows, strict=True)}

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *_: Any, **__: Any) -> Any:
        inputs = self._prepare_inputs(model_inputs(inputs))
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        runs = model if sharded else self.accelerator.unwrap_model(model, keep_torch_compile=False)
        with torch.no_grad(), self.accelerator.autocast():
            found = runs(**inputs)
        wide = torch.float32 if self.args.device.type == "mps" else torch.float64  # sums of many batches
        for name, value in found.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach().to(self.args.device, wide)
        return None, None, None


def model_inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch without what is counted with."""
    return {name: value for name, value in batch.items() if name not in COUNTED}
