"""What our metrics share: checked rows in evaluate's Arrow files, read back a slice at a time.

`evaluate.Metric` writes rows to a file for each process and lets process 0 read all of them: that is the gathering. Its
own `compute` then makes Python lists of the whole set; here `reduce` sees the file, so that what is held does not
grow with the set where a metric is made of sums. A `SummedMetric` keeps a vector of numbers a row, from which
`on_rows` gives its value on any choice of rows, as a bootstrap needs it, without reading the texts again.
"""

from __future__ import annotations

import inspect
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np
from evaluate.module import FileLock, Timeout

from tuner.errors import ArgumentError, DataError, nearest, one_line

Columns = dict[str, list[Any]]
Figures = dict[str, float]

TEXT, TEXTS = datasets.Value("string"), [datasets.Value("string")]
NUMBER, NUMBERS = datasets.Value("float64"), [datasets.Value("float64")]
# What every metric takes and evaluate makes of it: where rows are kept, and which process this is of how many.
PLACES = ("cache_dir", "experiment_id", "keep_in_memory", "num_process", "process_id", "seed", "timeout")
ROWS_AT_ONCE = 1000


class TunerMetric(evaluate.Metric):
    """A metric that says in one message what is wrong with its input.

    Args:
        cache_dir, experiment_id, keep_in_memory, num_process, process_id, seed, timeout: as `evaluate.load` takes them.
    """

    source: ClassVar[str] = ""  # of the formula
    columns: ClassVar[dict[str, Any]] = {"predictions": TEXT, "references": TEXT}
    data: Any

    def __init__(self, **places: Any):
        for name in places:
            if name not in PLACES:
                known = [n for n in inspect.signature(type(self)).parameters if n != "places"] + [*PLACES]
                raise ArgumentError(f"The metric {type(self).__name__} has no option {name}.{nearest(name, known)}")
        super().__init__(**places)

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(self.columns)
        return evaluate.MetricInfo(description=str(type(self).__doc__), citation=self.source, features=features)

    def check(self, column: str, value: Any) -> Any:
        """One row's value of a column, in the form that it is kept in; a ValueError that says what is wrong with it."""
        kind = self.columns[column]
        return (text if kind == TEXT else number if kind == NUMBER else texts if kind == TEXTS else numbers)(value)

    def check_row(self, row: dict[str, Any]) -> None:
        """A ValueError where the checked values of a row do not go together."""

    def is_padding(self, row: dict[str, Any]) -> bool:
        """Whether a row as it is given only fills up a batch."""
        return False

    def reduce(self, rows: datasets.Dataset) -> Figures:
        """The metric of all rows."""
        raise NotImplementedError

    def add_batch(self, *, predictions: Any = None, references: Any = None, mask: Any = None, **columns: Any) -> None:
        """Add rows. Those that only fill up a batch are left out where `mask` `(rows,)` is false.

        Raises:
            DataError: columns that are missing, unknown or not of one length, or a value that cannot be used.
        """
        given = {"predictions": predictions, "references": references, **columns}
        checked = self.checked({name: column for name, column in given.items() if column is not None}, mask)
        # Of several processes, each waits for the others' first batch, be it empty.
        if self.num_process > 1 or len(next(iter(checked.values()))):
            self._evaluate(super().add_batch, **checked)

    def add(self, *, prediction: Any = None, reference: Any = None, **columns: Any) -> None:
        """Add one row."""
        given = {"predictions": prediction, "references": reference, **columns}
        self.add_batch(**{name: [value] for name, value in given.items() if value is not None})

    def compute(self, *, predictions: Any = None, references: Any = None, **columns: Any) -> Figures | None:
        """The metric of the rows that were added, and of those given here; None in processes other than the first.

        Raises:
            DataError: as `add_batch`, no row at all, or rows of which there is no such metric.
        """
        given = {"predictions": predictions, "references": references, **columns}
        given = {name: column for name, column in given.items() if column is not None}
        if given or (self.writer is None and self.num_process > 1):
            self.add_batch(**(given or {name: [] for name in self.columns}))
        if self.writer is None:
            raise DataError(f"{self.name}: there is no row to evaluate.")
        return self._evaluate(super().compute)

    def _evaluate(self, call: Callable[..., Any], **columns: Any) -> Any:
        # What evaluate raises is of its files and locks: another run with the same ones, or a process that is gone.
        try:
            return call(**columns)
        except ValueError as error:
            raise DataError(f"{self.name}: {one_line(error)}") from None

    def checked(self, given: dict[str, Any], mask: Any = None) -> Columns:
        """Columns by name, every value checked, without the rows that fill up a batch."""
        if unknown := [name for name in given if name not in self.columns]:
            raise DataError(f"{self.name} takes {', '.join(self.columns)}, not {', '.join(unknown)}.")
        if missing := [name for name in self.columns if name not in given]:
            raise DataError(f"{self.name} needs {', '.join(missing)} beside {', '.join(given) or 'nothing'}.")
        lists = {name: _listed(self.name, name, column) for name, column in given.items()}
        counted = [True] * len(next(iter(lists.values()))) if mask is None else _listed(self.name, "mask", mask)
        sizes = {name: len(column) for name, column in {**lists, "mask": counted}.items()}
        if len(set(sizes.values())) > 1:
            found = ", ".join(f"{size} {name}" for name, size in sizes.items() if name != "mask" or mask is not None)
            raise DataError(f"{self.name}: the columns are not of one length: {found}.")
        kept: Columns = {name: [] for name in self.columns}
        for row, counts in enumerate(counted):
            values = {name: lists[name][row] for name in kept}
            if not counts or self.is_padding(values):
                continue
            try:
                for name, value in values.items():
                    kept[name].append(self.check(name, value))
                self.check_row({name: column[-1] for name, column in kept.items()})
            except (ValueError, TypeError, KeyError) as error:
                raise DataError(f"{self.name}, row {row}, {name}: {one_line(error)}") from None
        return kept

    def _finalize(self) -> None:
        super()._finalize()
        if self.process_id > 0:
            self._wait_for_first()
        elif not len(self.data):
            raise DataError(f"{self.name}: there is no row to evaluate.")
        else:
            self.found = self.reduce(self.data)
            self.data = self.data.select([])  # evaluate makes lists of what is left

    def _wait_for_first(self) -> None:
        # Without this, the next metric of this name would meet the locks of this one, take them for its own and be
        # gone before the first process has begun it. That has read this process's file when it is removed, and then
        # lets go of its lock; or it waits already, with a lock of its own, for the next metric.
        stem, until = f"{self.data_dir}/{self.experiment_id}-{self.num_process}", time.monotonic() + self.timeout
        while time.monotonic() < until and (
            os.path.exists(self.cache_file_name) or (_held(f"{stem}-0.arrow.lock") and not _held(f"{stem}-rdv.lock"))
        ):
            time.sleep(0.005)

    def _compute(self, **columns: Any) -> Figures:
        return self.found


class SummedMetric(TunerMetric):
    """A metric made of a vector of numbers a row, and of their sums where it is `additive`."""

    additive: ClassVar[bool] = True
    # Whether the places in that vector depend on which labels there are.
    by_label: ClassVar[bool] = False

    def labels_of(self, columns: Columns) -> set[str]:
        """The labels in some rows, where the metric is `by_label`."""
        return set()

    def parts(self, columns: Columns, labels: list[str]) -> np.ndarray:
        """The numbers of each row `(rows, parts)`, float64."""
        raise NotImplementedError

    def figures(self, parts: np.ndarray, labels: list[str]) -> Figures:
        """The metric of rows `(rows, parts)`; an additive one takes them added up, too: `(1, parts)`."""
        raise NotImplementedError

    def reduce(self, rows: datasets.Dataset) -> Figures:
        """The metric of all rows, read twice where it is `by_label`."""
        slices = rows.iter(ROWS_AT_ONCE) if self.by_label else ()
        labels = sorted(set().union(*(self.labels_of(columns) for columns in slices)))
        pieces: list[np.ndarray] = []
        for columns in rows.iter(ROWS_AT_ONCE):
            pieces.append(self.parts(columns, labels))
            if self.additive:
                pieces = [np.concatenate(pieces).sum(0, keepdims=True)]
        return self._figures(np.concatenate(pieces), labels)

    def on_rows(self, **given: Any) -> Callable[[np.ndarray], Figures]:
        """The metric as a function of row numbers `(n,)`, with repeats, as `tuner.evaluation.statistics.bootstrap`
        draws them. The numbers of every row are held; texts are read once."""
        columns = self.checked(given)
        labels = sorted(self.labels_of(columns)) if self.by_label else []
        parts = self.parts(columns, labels)
        if not self.additive:
            return lambda rows: self._figures(parts[rows], labels)
        return lambda rows: self._figures(np.bincount(rows, minlength=len(parts))[None] @ parts, labels)

    def _figures(self, parts: np.ndarray, labels: list[str]) -> Figures:
        try:
            return {name: float(value) for name, value in self.figures(parts, labels).items()}
        except ValueError as error:
            raise DataError(f"{self.name}: {one_line(error)}") from None


def _listed(metric: str, name: str, column: Any) -> list[Any]:
    if isinstance(column, str) or not hasattr(column, "__len__"):
        raise DataError(f"{metric}: {name} is to be a list, one value a row, not {column!r:.80}.")
    return column.tolist() if hasattr(column, "tolist") else list(column)


def _held(lock: str) -> bool:
    try:
        with FileLock(lock).acquire(timeout=0):
            return False
    except Timeout:
        return True


def text(value: Any) -> str:
    """A text, or a ValueError."""
    if not isinstance(value, str):
        raise ValueError(f"a text is expected, not {value!r:.80}.")
    return value


def texts(value: Any) -> list[str]:
    """One or several texts, or a ValueError."""
    found = [value] if isinstance(value, str) else [text(one) for one in value]
    if not found:
        raise ValueError("there is no text.")
    return found


def number(value: Any) -> float:
    """A finite number, or a ValueError."""
    found = math.nan if isinstance(value, str | bytes) or value is None else float(value)
    if not math.isfinite(found):
        raise ValueError(f"a finite number is expected, not {value!r:.80}.")
    return found


def numbers(value: Any) -> list[float]:
    """One or several finite numbers, or a ValueError."""
    many = isinstance(value, Sequence | np.ndarray) and not isinstance(value, str)
    return [number(one) for one in (value if many else [value])]


def ratio(part: Any, whole: Any) -> np.ndarray:
    """`part / whole`, 0 where there is nothing to divide by."""
    part, whole = np.broadcast_arrays(np.asarray(part, float), np.asarray(whole, float))
    return np.divide(part, whole, out=np.zeros(whole.shape), where=whole != 0)
