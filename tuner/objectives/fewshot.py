"""Texts of one class brought together: how an encoder is tuned on the few labels that a head is then trained on."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from torch.nn import functional as F

from tuner.data.draws import FILLER
from tuner.errors import ArgumentError
from tuner.loading.features import pool
from tuner.objectives.base import Batch, Objective, Row, Sums, own_class
from tuner.objectives.classification import Classification
from tuner.objectives.records import Comparison, Outcome


class ClassContrast(Objective[Any]):
    """fewshot: the cosine of two texts is to be 1 where they have one class and 0 else, by its squared error, as in
    SetFit (Tunstall et al. 2022, https://arxiv.org/abs/2209.11055); of all pairs in a batch, so that a text is embedded
    once for all of them.

    Args:
        whole: the classification whose backbone is tuned; its examples are used, and its pooling.
    """

    name = "fewshot"
    loss_unit = "squared error of a pair"

    def __init__(self, whole: Classification):
        super().__init__(whole.args, whole.tokenizer, labels=whole.labels)
        self.whole = whole
        if whole.problem != "single_label_classification":
            raise ArgumentError("--strategy fewshot is for texts of one class each.")

    def examples(self, rows: Dataset, name: str) -> tuple[Dataset, None]:
        return self.whole.examples(rows, name)

    def __call__(self, rows: list[Row]) -> Batch:
        classes = [-1 if row["draw"] == FILLER else int(row["labels"]) for row in rows]
        return self.whole.inputs(rows) | {"labels": torch.tensor(classes)}

    def counts(self, batch: Batch) -> torch.Tensor:
        real = (batch["labels"] >= 0).sum()
        return real * (real - 1) // 2

    def sums(self, model: Any, labels: torch.Tensor, *, training: bool = False, **inputs: Any) -> Sums:
        states = own_class(model).forward(model, **inputs).last_hidden_state.float()
        mask = inputs.get("attention_mask")
        mask = torch.ones(states.shape[:2], dtype=torch.long, device=states.device) if mask is None else mask
        vectors = F.normalize(pool(states, mask, self.whole.pooling)[:, 0], dim=-1)
        first, second = torch.triu_indices(len(labels), len(labels), 1, device=labels.device)
        real = (labels[first] >= 0) & (labels[second] >= 0)
        cosines, same = (vectors @ vectors.T)[first, second][real], (labels[first] == labels[second])[real]
        return {"loss": ((cosines - same.float()) ** 2).sum(), "count": real.sum()}

    def compare(self, outcome: Outcome) -> Comparison:
        return {}
