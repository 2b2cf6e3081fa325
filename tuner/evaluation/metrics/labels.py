"""Classification: a label a row, or a list of them where a row may have several, or none.

A label is its name. Numbers are names too (3 is "3"), but a float is not. Rows whose reference is -100, as the trainer
fills up batches, are not counted.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from tuner.evaluation.metrics.base import TEXT, Columns, Figures, SummedMetric, ratio
from tuner.errors import ArgumentError

SET = [TEXT]


def label(value: Any) -> str:
    """A label's name, or a ValueError."""
    if isinstance(value, bool | np.bool_):
        value = int(value)
    if not isinstance(value, str | int | np.integer):
        raise ValueError(f"a label is a name or a whole number, not {value!r:.80}.")
    return str(value)


def one_hot(rows: list[list[str]], labels: list[str]) -> np.ndarray:
    """Which of the labels each row has `(rows, labels)`, 0 or 1."""
    place = {name: number for number, name in enumerate(labels)}
    found = np.zeros((len(rows), len(labels)))
    for row, names in enumerate(rows):
        found[row, [place[name] for name in names]] = 1
    return found


class LabelMetric(SummedMetric):
    """A metric of labels.

    Args:
        labels: all there are; any other is an error. None: those that are met.
    """

    columns = {"predictions": SET, "references": SET}

    def __init__(self, labels: list[str] | None = None, **places: Any):
        super().__init__(**places)
        self.labels = None if labels is None else [label(name) for name in labels]
        if self.labels is not None and len(set(self.labels)) < len(self.labels):
            raise ArgumentError(f"{self.name}: a label is given twice in {self.labels}.")

    def check(self, column: str, value: Any) -> list[str]:
        """The row's labels as names."""
        several = hasattr(value, "__len__") and not isinstance(value, str)
        found = [label(one) for one in (value if several else [value])]
        for name in found:
            if self.labels is not None and name not in self.labels:
                raise ValueError(f"the label {name!r} is none of {', '.join(self.labels)}.")
        return found

    def labels_of(self, columns: Columns) -> set[str]:
        """Those in predictions and references."""
        if self.labels is not None:
            return set(self.labels)
        return {name for column in columns.values() for names in column for name in names}


class Accuracy(LabelMetric):
    """The share of rows whose label is right; of several labels, all of them (subset accuracy)."""

    source = "https://scikit-learn.org/stable/modules/generated/sklearn.metrics.accuracy_score.html"

    def parts(self, columns: Columns, labels: list[str]) -> np.ndarray:
        """Whether each row is right, and 1: `(rows, 2)`."""
        pairs = zip(columns["predictions"], columns["references"], strict=True)
        return np.array([[set(guess) == set(wanted), 1] for guess, wanted in pairs], float)

    def figures(self, parts: np.ndarray, labels: list[str]) -> Figures:
        """`accuracy`."""
        right, count = parts.sum(0)
        return {"accuracy": right / count}


class F1(LabelMetric):
    """F1 of each label, averaged over labels (macro), and of all decisions together (micro)."""

    source = "https://scikit-learn.org/stable/modules/generated/sklearn.metrics.f1_score.html"

    def parts(self, columns: Columns, labels: list[str]) -> np.ndarray:
        """Of each label: whether it is in both, in the prediction, in the reference `(rows, 3 x labels)`."""
        guessed, wanted = one_hot(columns["predictions"], labels), one_hot(columns["references"], labels)
        return np.concatenate([guessed * wanted, guessed, wanted], 1)

    def figures(self, parts: np.ndarray, labels: list[str]) -> Figures:
        """`f1_macro` over the labels that are in predictions or references, and `f1_micro`."""
        both, guessed, wanted = parts.sum(0).reshape(3, -1)
        met = guessed + wanted > 0
        macro = ratio(2 * both, guessed + wanted)[met].mean() if met.any() else 0.0
        return {"f1_macro": macro, "f1_micro": float(ratio(2 * both.sum(), guessed.sum() + wanted.sum()))}
