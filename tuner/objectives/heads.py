"""What methods with labels share: a head over hidden states, of a model or of features that are computed once."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from tuner.data.labels import Labels
from tuner.loading.features import freeze, kept_features, replayed
from tuner.objectives.arguments import ClassifyArguments
from tuner.objectives.base import Batch, Objective, Row, own_class

# Strategies that train a head over features.
FROZEN = ("head", "fewshot")


class WithHead(Objective[ClassifyArguments]):
    """What methods with labels share: a head that reads hidden states, of the whole model or, with `--strategy head`,
    of a backbone that stays as it is and is computed once (`tuner.loading.features`)."""

    arguments = ClassifyArguments
    needs_end, vocabulary = False, "mlm"
    refused = ("packing", "padding_free", "z_loss")
    pooling = "tokens"

    def check_model(self, model: PreTrainedModel) -> None:
        names = getattr(model.config, "id2label", None) or {}
        if self.labels.names:  # the order is the model's
            counts = dict(zip(self.labels.names, self.labels.counts, strict=True))
            names = tuple(str(names[number]).removeprefix("LABEL_") for number in range(len(names)))
            self.labels = Labels(names, tuple(counts[name] for name in names), self.labels.problem)
        if self.args.strategy in FROZEN:
            freeze(model)
            self.pooling = self.pooling_of(model)

    def pooling_of(self, model: PreTrainedModel) -> str:
        """What of the hidden states the head sees."""
        return "tokens"

    def reference(self, model: Any, rows: Dataset, batch_size: int) -> list[Any] | None:
        if self.args.strategy not in FROZEN:
            return None
        examples = rows.with_format(None)
        types = examples["token_type_ids"] if "token_type_ids" in rows.column_names else None
        found = kept_features(model.base_model, examples["input_ids"], types, self.tokenizer.pad_token_id, self.pooling)
        return [states.reshape(-1) for states in found]

    def inputs(self, rows: list[Row]) -> Batch:
        """What the head reads of rows: their tokens, or `states` `(batch, 1 or time, hidden_size)`."""
        names = [name for name in ("input_ids", "token_type_ids") if name in rows[0]]
        batch = self.padded([{name: row[name] for name in names} for row in rows], rows)
        if "reference" not in rows[0]:
            return batch
        counts = [len(row["input_ids"]) if self.pooling == "tokens" else 1 for row in rows]
        states = [np.asarray(row["reference"], np.float32).reshape(n, -1) for n, row in zip(counts, rows, strict=True)]
        held = torch.zeros(len(rows), max(counts), states[0].shape[1])
        for line, each in zip(held, states, strict=True):
            line[: len(each)] = torch.from_numpy(each)
        return {"states": held, "tokens": batch["tokens"] * 0, "rows": batch["rows"]}

    def outputs(self, model: Any, **inputs: Any) -> Any:
        """The model's output, of tokens or of the `states` that stand for them."""
        forward = own_class(model).forward
        if "states" not in inputs:
            return forward(model, **inputs)
        with replayed(model, inputs["states"]) as known:
            return forward(model, **known)
