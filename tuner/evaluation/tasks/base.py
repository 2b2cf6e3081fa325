"""What a task of an evaluation is, and the samples that its figures are made of.

A task scores rows, a block at a time, into samples: what was asked, what the model said, and `scores`, numbers of the
row. Samples are written as they come. Figures are made of the file of all samples: texts are read from it a thousand
rows at a time, and only numbers of every row stay in memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset

from tuner.config.evaluation import EvaluationArguments
from tuner.data.schema import Kind
from tuner.evaluation.metrics import SummedMetric, load_metric
from tuner.evaluation.statistics import Estimate, bootstrap, mean
from tuner.evaluation.subject import Subject

Row = dict[str, Any]
Figures = dict[str, Estimate]
Baselines = dict[str, dict[str, float]]  # figure to {who: how much}

Columns = Callable[[Row], Row]  # of a sample the columns of a metric
OfRows = Callable[[np.ndarray], Row]  # of sample numbers, with repeats, the metric

READ_AT_ONCE = 1000


@dataclass
class Data:
    """The rows of a task.

    Attributes:
        rows: canonical rows of `kind`, or none for a task that brings its own.
        what: which rows of what they are, for a person.
        clusters: what each row's source is called, in the same order; None where rows share none.
        train: the raw rows that are not evaluated on, for baselines; None where there are none.
    """

    name: str
    kind: Kind | None = None
    rows: Dataset | list[Row] = field(default_factory=list)
    what: str = ""
    clusters: Dataset | None = None
    train: Dataset | None = None


class Samples:
    """The samples of a model on a task, in a file; of each its numbers in memory.

    Those with `left_out`, which says why they have no score, are none of them.

    Attributes:
        rows: the rows' places `(n,)`.
        scores: by name `(n,)`; NaN where a row has not that score.
        clusters: `(n,)` names, or None.
        left_out: how many.
    """

    def __init__(self, path: Path):
        self.path, self.left_out = path, 0
        rows: list[int] = []
        clusters: list[str] = []
        scores: dict[str, list[float]] = {}
        with path.open(encoding="utf-8") as file:
            self.left_out = sum("left_out" in json.loads(line) for line in file)
        for number, sample in enumerate(self):
            rows.append(sample["number"])
            if "cluster" in sample:
                clusters.append(sample["cluster"])
            for name, value in sample["scores"].items():
                scores.setdefault(name, [np.nan] * number).append(value)
            for values in scores.values():
                if len(values) == number:
                    values.append(np.nan)
        self.rows, self.clusters = np.array(rows), np.array(clusters) if clusters else None
        self.scores = {name: np.array(values, float) for name, values in scores.items()}

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        with self.path.open(encoding="utf-8") as file:
            yield from (sample for sample in map(json.loads, file) if "left_out" not in sample)

    def of_metric(self, name: str, columns: Columns, **options: Any) -> OfRows:
        """One of our metrics as a function of sample numbers, from the columns that it takes of each sample."""
        metric: Any = load_metric(name, **options)
        assert isinstance(metric, SummedMetric)
        blocks = self._blocks(columns) if metric.by_label else ()
        labels = sorted({label for block in blocks for label in metric.labels_of(metric.checked(block))})
        parts = np.concatenate([metric.parts(metric.checked(block), labels) for block in self._blocks(columns)])

        def of_rows(rows: np.ndarray) -> Row:
            some = np.bincount(rows, minlength=len(parts))[None] @ parts if metric.additive else parts[rows]
            return metric._figures(some, labels)

        return of_rows

    def value_of_metric(self, name: str, columns: Columns, **options: Any) -> Row:
        """Any metric of all samples, those of the Hub too, which have no interval."""
        metric = load_metric(name, **options)
        for block in self._blocks(columns):
            metric.add_batch(**block)
        return metric.compute() or {}

    def by_row(self, of_rows: OfRows, *names: str) -> None:
        """Add scores of each row: what a metric is of that row alone."""
        found = [of_rows(np.array([number])) for number in range(len(self))]
        self.scores |= {name: np.array([values[name] for values in found]) for name in names}

    def _blocks(self, columns: Columns) -> Iterator[dict[str, list[Any]]]:
        samples = iter(self)
        while block := [columns(sample) for sample in islice(samples, READ_AT_ONCE)]:
            yield {name: [each[name] for each in block] for name in block[0]}


class Task:
    """A task. What is here is what most share.

    Args:
        args: of the evaluation.
        data: the rows to evaluate on.
    """

    name: ClassVar[str] = ""
    # Kinds of models (`tuner.evaluation.subject`) and of rows that it takes; of rows none where it brings its own.
    models: ClassVar[tuple[str, ...]] = ("causal",)
    kinds: ClassVar[tuple[Kind, ...]] = ()
    # Rows where none are named; the share of a built-in that training sets aside, and whether of each class the same.
    default: ClassVar[str] = ""
    set_aside: ClassVar[tuple[float, bool]] = (0.05, False)
    # Its figures, the first being the one that stands for it, and which way each is better, if either.
    figures: ClassVar[dict[str, str]] = {}
    # Figures that are compared row by row, by the score of a row that they are the mean of.
    by_row: ClassVar[dict[str, str]] = {}
    # Whether it may make figures that are known when it is done.
    more_figures: bool = False
    # Rows that a process computes at once, beside the others of which sequences are sorted; None for some batches.
    block: ClassVar[int | None] = None

    def __init__(self, args: EvaluationArguments, data: Data):
        self.args, self.data = args, data

    @classmethod
    def figures_of(cls, kind: Kind | None) -> dict[str, str]:
        """The figures that it makes of rows of a kind."""
        return cls.figures

    @classmethod
    def kinds_of(cls, models: set[str]) -> tuple[Kind, ...]:
        """The kinds of rows that it takes with models of some kinds."""
        return cls.kinds

    @classmethod
    def default_of(cls, models: set[str]) -> str:
        """The rows where none are named, for models of some kinds."""
        return cls.default

    @classmethod
    def own_data(cls, args: EvaluationArguments) -> Data:
        """The rows of a task that brings its own."""
        raise NotImplementedError

    def check(self) -> None:
        """A TunerError for flags and rows that it cannot use, before a model is loaded."""

    def begin(self, subject: Subject) -> None:
        """Get ready for a model; a ModelError for one that lacks something."""

    def score(self, subject: Subject, rows: list[Row]) -> list[Row]:
        """Samples of some rows, in their order; of one row there may be several, with a `number` of their own."""
        raise NotImplementedError

    def summarise(self, samples: Samples) -> Figures:
        """The figures of all samples."""
        raise NotImplementedError

    def baselines(self, samples: Samples) -> Baselines:
        """What figures are compared with."""
        return {}

    def score_rows(self, samples: Samples) -> None:
        """Add what scores of a row are made from its texts when all are there."""

    def by_row_of(self, samples: Samples) -> dict[str, str]:
        """`by_row` of these samples."""
        return self.by_row

    def settings(self) -> Row:
        """What the figures depend on, as the report states it."""
        return {}

    def notes(self) -> list[str]:
        """What a reader of the figures must know."""
        return []

    # ---- for `summarise` ----

    def mean(self, samples: Samples, score: str) -> Estimate:
        """The mean of a score over the rows that have it."""
        known = ~np.isnan(samples.scores[score])
        clusters = None if samples.clusters is None else samples.clusters[known]
        return mean(samples.scores[score][known], clusters, self.args.seed)

    def bootstrap(self, samples: Samples, of_rows: OfRows, *names: str) -> Figures:
        """Figures of all samples at once, which are no mean over rows."""

        def estimate(name: str) -> Estimate:
            return bootstrap(lambda rows: of_rows(rows)[name], len(samples), samples.clusters, self.args.seed)

        return {name: estimate(name) for name in names}


def without_interval(value: float, n: int, why: str) -> Estimate:
    """A figure of which nobody knows how sure it is."""
    return Estimate(float(value), np.nan, np.nan, n, f"no interval: {why}")


def spread(size: int, count: int | None) -> list[int]:
    """The numbers of at most `count` of `size` rows, evenly spread: rows often lie in the order of their classes."""
    count = min(count or size, size)
    return ((np.arange(count) + 0.5) * size / max(count, 1)).astype(int).tolist()
