"""What adapters have of the training examples: a start (EVA), and the lower half of the layers computed once.

Where adapters learn above it alone (`--lora_layers upper`), what the lower half makes of an example is the same in
every epoch: it is kept in a file that is mapped into memory, and takes the place of what the lower layers return.
Embeddings, masks and positions are computed as always, for they cost nothing. That a model computes the same with it is
tried on one batch: some give their upper layers more of the lower ones than that.
"""

from __future__ import annotations

import inspect
import shutil
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from datasets.arrow_writer import ArrowWriter
from torch import nn
from torch.nn import functional as F

from tuner.data.draws import Draws
from tuner.objectives.base import Batch, Objective, Row
from tuner.objectives.causal_lm import NextToken
from tuner.train.run import say

STATES, FOLDER = "frozen_states", ".frozen_states"
INPUTS = ("input_ids", "attention_mask", "position_ids")
# Examples in a batch that an adapter begins from: however many the processes, they are the same.
START_ROWS = 8


def prepare_adapter(trainer: Any) -> None:
    """Give the adapter of a trainer's model its start, and keep the lower half, where the flags say so."""
    args = trainer.run.args
    if args.init_lora_weights == "eva":
        from tuner.loading.adapters import start_from_data  # peft takes seconds to import

        draws, objective = trainer.train_dataset, trainer.objective
        order = np.random.default_rng(args.seed).permutation(len(draws)).tolist()
        batches = (objective([draws[i] for i in order[n : n + START_ROWS]]) for n in range(0, len(order), START_ROWS))
        with trainer.accelerator.autocast():
            start_from_data(trainer.model, batches, trainer.run.checkpoint)
    if args.lora_layers == "upper":
        _keep_lower_half(trainer, args.frozen_states_gib)


class Reached(Exception):
    """Carries the lower half's output out of a forward pass whose rest is not wanted."""


class LowerHalf:
    """Has the lower half of a model's layers return what is given, if anything is.

    Args:
        model: in a PEFT wrapper; called with `frozen_states` `(batch, time, hidden)`, it goes on from these.
    """

    def __init__(self, model: Any):
        base = model.get_base_model()
        count = base.config.get_text_config().num_hidden_layers
        layers = next(m for m in base.modules() if isinstance(m, nn.ModuleList) and len(m) == count)
        self.model, self.layers, self.body = model, layers[: count // 2], base.base_model
        self.given: torch.Tensor | None = None
        self.stops = False
        for number, layer in enumerate(self.layers):
            layer.forward = partial(self._forward, layer.forward, number == len(self.layers) - 1)
        model.register_forward_pre_hook(self._take, with_kwargs=True)
        model.register_forward_hook(self._forget, always_call=True)

    def _take(self, _: Any, args: Any, inputs: dict[str, Any]) -> Any:
        self.given = inputs.pop(STATES, None)
        return args, inputs

    def _forget(self, *_: Any) -> None:
        self.given = None

    def _forward(self, forward: Any, last: bool, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.given is not None:
            # Reentrant checkpointing looks for an input with a gradient.
            return self.given.requires_grad_(hidden.requires_grad) if last else hidden
        found = forward(hidden, *args, **kwargs)
        if last and self.stops:
            raise Reached(found)
        return found

    def __call__(self, inputs: Batch) -> torch.Tensor:
        """The lower half's output of a batch of the model's inputs, `(batch, time, hidden)`."""
        self.stops = True
        try:
            self._whole(inputs)
        except Reached as reached:
            return reached.args[0]
        finally:
            self.stops = False
        raise AssertionError("a model without its layers")

    def _whole(self, inputs: Batch) -> Any:
        # With a cache, transformers' classes do not tell the sequences of a joined row apart by their positions.
        takes = "use_cache" in inspect.signature(self.body.forward).parameters
        return self.body(**inputs, **({"use_cache": False} if takes else {}))[0]

    def why_not(self, inputs: Batch) -> str | None:
        """What forbids to keep its output; of a batch it must give the very same as the layers themselves."""
        below = (*self.layers, self.body.get_input_embeddings())
        if any(parameter.requires_grad for part in below for parameter in part.parameters()):
            return "something below the upper half is trained"
        config = self.body.config.get_text_config().to_dict()
        if drops := [name for name, value in config.items() if "drop" in name and value]:
            return f"the model has dropout ({', '.join(drops)}), which is another in every epoch"
        states, plain = self(inputs), self._whole(inputs)
        if not isinstance(states, torch.Tensor):
            return "its layers return more than hidden states"
        self.given = states
        again = self._whole(inputs)
        self.given = None
        return None if torch.equal(plain, again) else "its upper layers take more of the lower ones than their output"


class WithStates:
    """An objective's batches, with `frozen_states` of rows that have them."""

    def __init__(self, objective: Objective[Any], width: int, dtype: torch.dtype):
        self.objective, self.width, self.dtype = objective, width, dtype

    def __call__(self, rows: list[Row]) -> Batch:
        batch = self.objective(rows)
        found = [torch.from_numpy(np.asarray(row[STATES])).view(self.dtype).view(-1, self.width) for row in rows]
        lines, time = batch["input_ids"].shape
        if lines == 1:  # they are joined
            found = [torch.cat(found)]
        padded = [F.pad(states, (0, 0, 0, time - len(states))) for states in found]
        return batch | {STATES: torch.stack(padded)}


def _keep_lower_half(trainer: Any, limit: float) -> None:
    """Compute the lower half of a trainer's model once for each example, if examples are seen again and it takes at
    most `limit` GiB; else it is said why not. Each process computes a share. The files go with the process."""
    args, objective = trainer.args, trainer.objective
    splits = {"train": trainer.examples.train, "eval": trainer.eval_dataset}
    a_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    epochs = args.max_steps * a_step / len(splits["train"]) if args.max_steps > 0 else args.num_train_epochs
    if epochs <= 1:
        return
    half = LowerHalf(trainer.model.eval())
    size, reason = 0.0, None
    if not isinstance(objective, NextToken) or "input_ids" not in splits["train"].column_names:
        reason = f"an example of {objective.name} is not one sequence to go on with"
    elif args.torch_compile or args.n_gpu > 1 or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        reason = "a compiled or sharded model is not taken apart"
    else:
        with torch.no_grad(), trainer.accelerator.autocast():
            inputs = _inputs(objective([Draws(splits["train"])[0]]), args.device)
            if (reason := half.why_not(inputs)) is None:
                one = half(inputs)
                tokens = sum(len(ids) for rows in splits.values() for ids in rows["input_ids"])
                size = tokens * one.shape[-1] * one.element_size() / 2**30
    if reason is None and size > limit:
        reason = f"kept, it would take {size:.1f} GiB, and --frozen_states_gib is {limit:g}"
    if reason is not None:
        return say(f"The frozen half of the layers is computed in every epoch: {reason}.")
    say(f"The frozen half of the layers is computed once: {size:.2f} GiB.")
    folder = trainer.folder / FOLDER
    if args.should_save:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        weakref.finalize(trainer, shutil.rmtree, folder, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    for name, rows in splits.items():
        share = rows.select(np.array_split(np.arange(len(rows)), args.world_size)[args.process_index])
        with torch.no_grad(), trainer.accelerator.autocast():
            _write(half, objective, share, folder / f"{name}-{args.process_index}.arrow", args)
        trainer.accelerator.wait_for_everyone()
        parts = [Dataset.from_file(str(folder / f"{name}-{n}.arrow")) for n in range(args.world_size)]
        splits[name] = concatenate_datasets([rows, concatenate_datasets(parts)], axis=1)
    trainer.train_dataset, trainer.eval_dataset = Draws(splits["train"]), splits["eval"]
    trainer.data_collator = WithStates(objective, one.shape[-1], one.dtype)


def _inputs(batch: Batch, device: torch.device) -> Batch:
    return {name: batch[name].to(device) for name in INPUTS if name in batch}


def _write(half: LowerHalf, objective: Objective[Any], rows: Dataset, path: Path, args: Any) -> None:
    """A file with the lower half's output of each row, two of bfloat16 as one of float32: numpy has no bfloat16."""
    draws, size = Draws(rows), args.eval_batch_size
    with ArrowWriter(path=str(path), writer_batch_size=size) as writer:
        for start in range(0, len(draws), size):
            batch = [draws[number] for number in range(start, min(start + size, len(draws)))]
            states = half(_inputs(objective(batch), args.device)).cpu()
            lengths = [len(row["input_ids"]) for row in batch]
            joined = len(states) == 1
            each = states[0, : sum(lengths)].split(lengths) if joined else map(_cut, states, lengths)
            writer.write_batch({STATES: [one.contiguous().view(torch.float32).flatten().numpy() for one in each]})
        writer.finalize()


def _cut(states: torch.Tensor, length: int) -> torch.Tensor:
    return states[:length]
