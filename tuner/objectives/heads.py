"""What methods with labels share: a head over hidden states, of a model or of features that are computed once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any, ClassVar

import numpy as np
import psutil
import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tuner.data.labels import CALLED, PROBLEMS, Labels
from tuner.errors import ArgumentError, ModelError, notice
from tuner.evaluation.calibration import fit_temperature
from tuner.loading.features import freeze, kept_features, pooling_of, replayed
from tuner.objectives.arguments import ClassifyArguments
from tuner.objectives.base import Batch, Objective, Row, own_class
from tuner.objectives.records import Examples

# Strategies that train a head over features.
FROZEN = ("head", "fewshot")
# Share of the memory that the features of all tokens may take: while they are gathered, they are there thrice.
HELD = 1 / 8
# Flags that have a meaning for some kinds of rows only.
ONLY_FOR = {
    **dict.fromkeys(("doc_stride", "max_answer_length", "null_score_diff_threshold"), ("question",)),
    **dict.fromkeys(("class_weights", "label_smoothing_factor"), ("class", "tags")),
    "calibrate": ("class", "classes", "tags"),
    "classifier_pooling": ("class", "classes", "score"),
    "truncation_mode": ("class", "classes", "score", "tags"),
}


class WithHead(Objective[ClassifyArguments]):
    """What methods with labels share: a head that reads hidden states, of the whole model or, with `--strategy head`,
    of a backbone that stays as it is and is computed once (`tuner.loading.features`)."""

    arguments = ClassifyArguments
    needs_end, vocabulary = False, "mlm"
    refused = ("packing", "padding_free", "z_loss")
    pooling = "tokens"
    # What the head of a frozen backbone may read of it, and whether examples need to know where tokens are in a text.
    poolings: ClassVar[tuple[str, ...]] = ("tokens",)
    needs_offsets: ClassVar[bool] = True

    def __init__(self, args: ClassifyArguments, tokenizer: PreTrainedTokenizerBase, *more: Any, **named: Any):
        super().__init__(args, tokenizer, *more, **named)
        self.problem = self.labels.problem
        kind, values = PROBLEMS[self.problem][0], args.values()
        unset = {field.name: field.default for field in fields(args)} | {"label_smoothing_factor": 0}
        for flag, kinds in ONLY_FOR.items():
            if values.get(flag, unset[flag]) != unset[flag] and kind not in kinds:
                listed = " or ".join(CALLED[each] for each in kinds)
                raise ArgumentError(f"--{flag} is for {listed}; these are {CALLED[kind]}.")
        if args.strategy == "fewshot" and kind != "class":
            raise ArgumentError(f"--strategy fewshot is for {CALLED['class']}; these are {CALLED[kind]}.")
        if self.needs_offsets and not tokenizer.is_fast:
            raise ModelError(f"{type(tokenizer).__name__} does not say where in a text its tokens are.")
        self.kept, self.keeps = 0, True  # bytes of features, and whether they are few enough

    def check_model(self, model: PreTrainedModel) -> None:
        names = getattr(model.config, "id2label", None) or {}
        if self.labels.names:  # the order is the model's
            counts = dict(zip(self.labels.names, self.labels.counts, strict=True))
            names = tuple(str(names[number]).removeprefix("LABEL_") for number in range(len(names)))
            self.labels = Labels(names, tuple(counts[name] for name in names), self.labels.problem)
        if self.args.strategy in FROZEN:
            freeze(model)
            self.pooling = pooling_of(model, own_class(model).forward, self.poolings)
            self.width = model.config.get_text_config().hidden_size

    @property
    def weights(self) -> torch.Tensor | None:
        """Of each class its weight: so that all together count as much as each other (scikit-learn's `balanced`)."""
        if self.args.class_weights == "none":
            return None
        counts = torch.tensor(self.labels.counts, dtype=torch.float32)
        return counts.sum() / (len(counts) * counts)

    # ---- features ----

    def reckon(self, examples: Dataset) -> None:
        """Count the features of one more split; those that would take too much memory are computed when needed."""
        if self.args.strategy not in FROZEN or self.pooling != "tokens":
            return
        lengths = pc.list_value_length(examples.with_format("arrow")[:]["input_ids"])
        self.kept += pc.sum(lengths).as_py() * self.width * 4
        memory = psutil.virtual_memory().total  # features are kept by the host
        if self.keeps and self.kept > HELD * memory:
            self.keeps = False
            notice(
                f"--strategy {self.args.strategy}: one vector a token takes {self.kept / 2**30:.1f} GiB or more, over "
                f"{HELD:.1%} of the memory ({memory / 2**30:.1f} GiB). The frozen backbone is computed in each epoch."
            )

    def reference(self, model: Any, rows: Dataset, batch_size: int) -> list[Any] | None:
        if self.args.strategy not in FROZEN or not self.keeps:
            return None
        examples = rows.with_format(None)
        types = examples["token_type_ids"] if "token_type_ids" in rows.column_names else None
        found = kept_features(model.base_model, examples["input_ids"], types, self.tokenizer.pad_token_id, self.pooling)
        return [states.reshape(-1) for states in found]

    def inputs(self, rows: list[Row]) -> Batch:
        """What the head reads of rows: their tokens, or `states` `(batch, 1 or time, hidden_size)`."""
        if "reference" not in rows[0]:
            names = [name for name in ("input_ids", "token_type_ids") if name in rows[0]]
            return self.padded([{name: row[name] for name in names} for row in rows], rows)
        states = [torch.from_numpy(np.asarray(row["reference"], np.float32)).view(-1, self.width) for row in rows]
        numbers = torch.tensor([[row["row"]] for row in rows])
        return {
            "states": pad_sequence(states, batch_first=True),
            "tokens": torch.zeros(len(rows), dtype=torch.long),
            "rows": numbers,
        }

    def outputs(self, model: Any, **inputs: Any) -> Any:
        """The model's output, of tokens or of the `states` that stand for them."""
        forward = own_class(model).forward
        if self.args.strategy in FROZEN:
            model.base_model.eval()  # no dropout in what does not learn, be it kept or computed
        if "states" not in inputs:
            return forward(model, **inputs)
        with replayed(model, inputs["states"]) as known:
            return forward(model, **known)

    # ---- what was learnt ----

    def counted(self, labels: torch.Tensor) -> torch.Tensor:
        """Which of a batch's labels count, as a mask of rows or of tokens."""
        raise NotImplementedError

    @torch.no_grad()
    def held_out_outputs(self, model: Any, examples: Examples) -> Iterator[tuple[Any, Batch]]:
        """Of every validation batch the model's output and the batch."""
        bare = model.get_base_model() if hasattr(model, "get_base_model") else model
        was_training = model.training
        model.eval()
        for batch in self.held_out(examples, self.args.per_device_eval_batch_size):
            left_out = ("labels", "tokens", "rows", "lengths")
            inputs = {name: value.to(model.device) for name, value in batch.items() if name not in left_out}
            yield self.outputs(bare, **inputs), batch
        model.train(was_training)

    def held_out_logits(self, model: Any, examples: Examples) -> tuple[np.ndarray, np.ndarray]:
        """Of everything in the validation examples that has a label the logits `(labels, outputs)` and the label."""
        logits, targets = list[torch.Tensor](), list[torch.Tensor]()
        for output, batch in self.held_out_outputs(model, examples):
            counts = self.counted(batch["labels"])
            logits.append(output.logits.float().cpu()[counts])
            targets.append(batch["labels"][counts])
        return torch.cat(logits).numpy(), torch.cat(targets).numpy()

    def finish(self, model: Any, examples: Examples) -> str | None:
        """With `--calibrate`, the layer that gives the logits is divided by a temperature, with which every tool that
        loads the model then has calibrated probabilities."""
        if not self.args.calibrate:
            return None
        heat = fit_temperature(*self.held_out_logits(model, examples), self.problem)
        size = max(len(self.labels.names), 1)
        heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == size]
        trained = [head for head in heads if head.weight.requires_grad]
        if not trained:
            raise ModelError(f"--calibrate: {type(model).__name__} has no linear layer that gives the logits.")
        with torch.no_grad():
            for parameter in trained[-1].parameters():
                parameter.div_(heat)
        return f"Calibrated: the head is divided by the temperature {heat:.3f}."
