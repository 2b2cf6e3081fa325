"""The F1 of entities in tagged tokens (`tuner.data.entities`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from tuner.data.entities import entities, split_tag
from tuner.evaluation.metrics.base import TEXTS, Columns, Figures, SummedMetric, ratio, text


class EntityF1(SummedMetric):
    """Precision, recall and F1 of entities, type and both ends right: of all, and of each type.

    A row is a list of tags, one a token: `B-PER`, `I-PER`, `E-PER`, `S-PER`, or `PER` alone, and `O`.
    """

    source = "https://github.com/chakki-works/seqeval"
    columns = {"predictions": TEXTS, "references": TEXTS}
    by_label = True

    def check(self, column: str, value: Any) -> list[str]:
        """A list of tags."""
        if isinstance(value, str):
            raise ValueError(f"a list of tags is expected, not {value!r:.80}.")
        return [text(tag) for tag in value]

    def check_row(self, row: dict[str, Any]) -> None:
        """As many tags as there are."""
        if len(row["predictions"]) != len(row["references"]):
            raise ValueError(f"{len(row['references'])} tags, but {len(row['predictions'])} are predicted.")

    def labels_of(self, columns: Columns) -> set[str]:
        """The types."""
        tags = {tag for column in columns.values() for row in column for tag in row}
        return {kind for _, kind in map(split_tag, tags) if kind}

    def parts(self, columns: Columns, labels: list[str]) -> np.ndarray:
        """Of each type: entities in both, predicted, in the reference `(rows, 3 x types)`."""
        place = {kind: number for number, kind in enumerate(labels)}
        counts = np.zeros((len(columns["references"]), 3, len(labels)))
        for row, tags in enumerate(zip(columns["predictions"], columns["references"], strict=True)):
            guessed, wanted = map(entities, tags)
            for which, some in enumerate((guessed & wanted, guessed, wanted)):
                for kind, *_ in some:
                    counts[row, which, place[kind]] += 1
        return counts.reshape(len(counts), -1)

    def figures(self, parts: np.ndarray, labels: list[str]) -> Figures:
        """`precision`, `recall`, `f1`; and `PER_precision`, `PER_recall`, `PER_f1` for a type PER."""
        counts = parts.sum(0).reshape(3, -1)
        found, names = {}, ["", *(f"{kind}_" for kind in labels)]
        for name, (both, guessed, wanted) in zip(names, [counts.sum(1), *counts.T], strict=True):
            found[f"{name}precision"] = float(ratio(both, guessed))
            found[f"{name}recall"] = float(ratio(both, wanted))
            found[f"{name}f1"] = float(ratio(2 * both, guessed + wanted))
        return found
