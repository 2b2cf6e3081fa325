"""Classification: a label a row, or a list of them where a row may have several, or none.

A label is its name. Whole numbers are names too (3 is "3"), floats are not. A row whose reference is -100, with which
the trainer fills up batches, is not counted. Counts are kept instead of scikit-learn's arrays of all rows, so that a
set of any size fits; tests compare with scikit-learn.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tuner.data.collate import IGNORED
from tuner.errors import ArgumentError, from_extra
from tuner.evaluation.metrics.base import NUMBERS, TEXTS, Columns, Figures, SummedMetric, ratio

NAMES = (str, int, np.integer)
SKLEARN = "https://scikit-learn.org/stable/modules/generated/sklearn.metrics"


def label(value: Any) -> str:
    """A label's name, or a ValueError."""
    if isinstance(value, bool | np.bool_):
        value = int(value)
    if not isinstance(value, NAMES):
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

    columns = {"predictions": TEXTS, "references": TEXTS}

    def __init__(self, labels: list[str] | None = None, **places: Any):
        super().__init__(**places)
        self.labels = None if labels is None else [label(name) for name in labels]
        if self.labels is not None and len(set(self.labels)) < len(self.labels):
            raise ArgumentError(f"{self.name}: a label is given twice in {', '.join(self.labels)}.")

    def is_padding(self, row: dict[str, Any]) -> bool:
        """Whether the reference is -100."""
        return isinstance(row["references"], int | np.integer) and row["references"] == IGNORED

    def check(self, column: str, value: Any) -> Any:
        """The row's labels as names; numbers as they are."""
        if self.columns[column] != TEXTS:
            return super().check(column, value)
        several = hasattr(value, "__len__") and not isinstance(value, str)
        found = [label(one) for one in (value if several else [value])]
        for name in found:
            if self.labels is not None and name not in self.labels:
                raise ValueError(f"the label {name!r} is none of {', '.join(self.labels)}.")
        return found

    def labels_of(self, columns: Columns) -> set[str]:
        """Those given, or else those in predictions and references."""
        return set(self.labels or [name for column in columns.values() for names in column for name in names])


class Accuracy(LabelMetric):
    """The share of rows whose label is right; of several labels, all of them (subset accuracy).

    Args:
        labels: all there are; any other is an error. None: those that are met.
    """

    source = f"{SKLEARN}.accuracy_score.html"

    def parts(self, columns: Columns, labels: list[str]) -> np.ndarray:
        """Whether each row is right, and 1: `(rows, 2)`."""
        pairs = zip(columns["predictions"], columns["references"], strict=True)
        return np.array([[set(guess) == set(wanted), 1] for guess, wanted in pairs], float)

    def figures(self, parts: np.ndarray, labels: list[str]) -> Figures:
        """`accuracy`."""
        right, count = parts.sum(0)
        return {"accuracy": right / count}


class F1(LabelMetric):
    """F1 of each label, averaged over labels (macro), and of all decisions together (micro).

    Args:
        labels: all there are; any other is an error, and one that is never met counts as 0. None: those that are met.
    """

    source = f"{SKLEARN}.f1_score.html"
    by_label = True

    def parts(self, columns: Columns, labels: list[str]) -> np.ndarray:
        """Of each label: whether it is in both, in the prediction, in the reference `(rows, 3 x labels)`."""
        guessed, wanted = one_hot(columns["predictions"], labels), one_hot(columns["references"], labels)
        return np.concatenate([guessed * wanted, guessed, wanted], 1)

    def figures(self, parts: np.ndarray, labels: list[str]) -> Figures:
        """`f1_macro` and `f1_micro`."""
        both, guessed, wanted = parts.sum(0).reshape(3, -1)
        scored = guessed + wanted > 0 if self.labels is None else np.ones(len(labels), bool)
        macro = ratio(2 * both, guessed + wanted)[scored].mean() if scored.any() else 0.0
        return {"f1_macro": macro, "f1_micro": float(ratio(2 * both.sum(), guessed.sum() + wanted.sum()))}


class MatthewsCorrelation(LabelMetric):
    """The correlation of prediction and reference, for two labels or more; 0 where one of them is constant.

    Args:
        labels: all there are; any other is an error. None: those that are met.
    """

    source = f"{SKLEARN}.matthews_corrcoef.html"
    by_label = True

    def check_row(self, row: dict[str, Any]) -> None:
        """One label a row."""
        _one_label(row["predictions"])
        _one_label(row["references"])

    def parts(self, columns: Columns, labels: list[str]) -> np.ndarray:
        """Whether each row is right, 1, and both labels `(rows, 2 + 2 x labels)`."""
        guessed, wanted = one_hot(columns["predictions"], labels), one_hot(columns["references"], labels)
        right = (guessed * wanted).sum(1, keepdims=True)
        return np.concatenate([right, np.ones_like(right), guessed, wanted], 1)

    def figures(self, parts: np.ndarray, labels: list[str]) -> Figures:
        """`matthews_correlation`, in Gorodkin's form for several classes."""
        right, count, *counts = parts.sum(0)
        guessed, wanted = np.reshape(counts, (2, -1))
        spread = (count**2 - guessed @ guessed) * (count**2 - wanted @ wanted)
        return {"matthews_correlation": float(ratio(right * count - guessed @ wanted, np.sqrt(spread)))}


class ScoreMetric(LabelMetric):
    """A metric of labels and the scores they got: one number a row (of the second label, 1) or one for each label."""

    columns = {"predictions": NUMBERS, "references": TEXTS}
    width = 0  # scores a row, once one was seen

    def names(self, width: int) -> list[str]:
        """The labels in the order of the scores."""
        return self.labels or [str(number) for number in range(max(width, 2))]

    def checked(self, given: dict[str, Any], mask: Any = None) -> Columns:
        """Columns by name, every value checked; the first row says how many scores there are."""
        self.width = self.width if self.writer is not None else 0
        return super().checked(given, mask)

    def check_row(self, row: dict[str, Any]) -> None:
        """As many scores as labels, and a reference among them."""
        width = len(row["predictions"])
        names, self.width = self.names(width), self.width or width
        if width != len(names) and (width, len(names)) != (1, 2):
            raise ValueError(f"there are {width} scores for {len(names)} labels.")
        if width != self.width:
            raise ValueError(f"there are {width} scores, and {self.width} in the rows before.")
        for name in row["references"]:
            if name not in names:
                known = ", ".join(names)
                raise ValueError(f"the label {name!r} is none of {known}; `labels` gives them in the scores' order.")

    def arrays(self, columns: Columns) -> tuple[np.ndarray, np.ndarray]:
        """Scores and truth, both `(rows, scores)`."""
        scores = np.array(columns["predictions"], float)
        width = scores.shape[1]
        return scores, one_hot(columns["references"], self.names(width))[:, -width:]


class RocAuc(ScoreMetric):
    """The area under the ROC curve; of several labels, the mean of each against the rest (macro).

    Args:
        labels: in the order of the scores. None: 0, 1, ...
    """

    source = f"{SKLEARN}.roc_auc_score.html"
    additive = False

    def parts(self, columns: Columns, labels: list[str]) -> np.ndarray:
        """Scores, then truth `(rows, 2 x scores)`."""
        return np.concatenate(self.arrays(columns), 1)

    def figures(self, parts: np.ndarray, labels: list[str]) -> Figures:
        """`roc_auc`; a ValueError where a label is in no row, or in all."""
        scores, truth = np.split(parts, 2, axis=1)
        names = self.names(scores.shape[1])[-scores.shape[1] :]
        for name, rows in zip(names, truth.sum(0), strict=True):
            if rows in (0, len(truth)):
                which = "no" if rows == 0 else "every"
                raise ValueError(f"{which} row has the label {name!r}: there is no AUC of one class.")
        # By ranks (Mann and Whitney's U): scikit-learn draws a curve, and a bootstrap asks a thousand times.
        ranks, ones = from_extra("scipy.stats", "eval").rankdata(scores, axis=0), truth.sum(0)
        areas = ((ranks * truth).sum(0) / ones - (ones + 1) / 2) / (len(truth) - ones)
        return {"roc_auc": areas.mean()}


class Calibration(ScoreMetric):
    """Whether probabilities mean what they say, for one label a row.

    Args:
        labels: in the order of the probabilities. None: 0, 1, ...
        bins: of equal width, for the expected calibration error of the most likely label.
    """

    source = "https://arxiv.org/abs/1706.04599"

    def __init__(self, labels: list[str] | None = None, bins: int = 15, **places: Any):
        super().__init__(labels, **places)
        if bins < 1:
            raise ArgumentError(f"{self.name}: bins is 1 or more, not {bins}.")
        self.bins = bins

    def check_row(self, row: dict[str, Any]) -> None:
        """Probabilities that add up to 1."""
        super().check_row(row)
        _one_label(row["references"])
        given = row["predictions"]
        total = sum(given) if len(given) > 1 else 1.0
        if min(given) < 0 or max(given) > 1 + 1e-6 or abs(total - 1) > 0.01:
            raise ValueError(f"probabilities are from 0 to 1 and add up to 1, not {given!r:.80}.")

    def parts(self, columns: Columns, labels: list[str]) -> np.ndarray:
        """1, negative log-likelihood, squared error; then for each bin rows, confidence, right ones."""
        chances, truth = self.arrays(columns)
        if chances.shape[1] == 1:
            chances, truth = np.hstack([1 - chances, chances]), np.hstack([1 - truth, truth])
        squares = ((chances - truth) ** 2).sum(1) / (2 if chances.shape[1] == 2 else 1)  # as scikit-learn scales it
        likely = np.maximum((chances * truth).sum(1), np.finfo(float).eps)
        sure, right = chances.max(1), truth[np.arange(len(truth)), chances.argmax(1)]
        bins = np.clip(np.ceil(sure * self.bins).astype(int) - 1, 0, self.bins - 1)
        inside = np.eye(self.bins)[bins]
        of_bins = [inside, inside * sure[:, None], inside * right[:, None]]
        return np.concatenate([np.ones((len(truth), 1)), -np.log(likely)[:, None], squares[:, None], *of_bins], 1)

    def figures(self, parts: np.ndarray, labels: list[str]) -> Figures:
        """`ece`, `brier`, `nll` in nats."""
        count, nll, brier, *of_bins = parts.sum(0)
        _, sure, right = np.reshape(of_bins, (3, -1))
        return {"ece": np.abs(sure - right).sum() / count, "brier": brier / count, "nll": nll / count}


def _one_label(found: list[str]) -> None:
    if len(found) != 1:
        raise ValueError(f"one label is expected, not {len(found)}.")
