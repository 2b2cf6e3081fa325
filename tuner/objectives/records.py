"""What goes into a method of training and what comes out: rows, examples, the layout of a batch, the outcome."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from rich.table import Table
from transformers import PreTrainedModel

from tuner.corpus.clean import CleaningStep
from tuner.data.encoding_report import EncodingReport
from tuner.data.labels import Labels
from tuner.data.mixture import Shares, Source
from tuner.data.schema import Kind
from tuner.data.turns import said

# Documents of a stream that a tokenizer is trained on.
TOKENIZER_DOCUMENTS = 20_000
# Columns of canonical rows that hold text or messages.
WRITTEN = (
    *("text", "messages", "prompt", "chosen", "rejected", "completion"),
    *("text_pair", "tokens", "question", "context", "source", "target"),
)

Comparison = dict[str, dict[str, float]]  # metric to {who: how much}


class Part(NamedTuple):
    """The rows, or the examples, of one data set of several; and of examples how they came to be."""

    source: Source
    train: Dataset
    eval: Dataset
    reports: tuple[EncodingReport, EncodingReport] | None = None

    def shares(self, whole: Examples) -> list[str]:
        """Of both splits, what share of rows and of tokens this set has; of examples, where nothing was counted."""
        if self.reports is None or whole.reports is None:
            both = ((self.train, whole.train), (self.eval, whole.eval))
            return [f"{len(a) / len(b):.1%} of examples" for a, b in both]
        counted = zip(self.reports, whole.reports, strict=True)
        return [f"{a.rows / b.rows:.1%} of rows, {a.tokens / max(b.tokens, 1):.1%} of tokens" for a, b in counted]


@dataclass
class Rows:
    """Canonical rows of one kind (`tuner.data.schema`), of several data sets also each one's own, and what cleaning
    made of them."""

    kind: Kind
    train: Any  # a Dataset, or with --streaming an IterableDataset
    eval: Dataset
    cleaning: list[CleaningStep] | None = None
    labels: Labels | None = None
    parts: list[Part] = field(default_factory=list)

    def texts(self) -> Iterator[str]:
        """Every training text (of a stream the first), for a tokenizer to be trained on."""
        return _texts(self.train if isinstance(self.train, Dataset) else self.train.take(TOKENIZER_DOCUMENTS))

    def held_out_texts(self) -> Iterator[str]:
        """Every validation text."""
        return _texts(self.eval)


def _texts(rows: Any) -> Iterator[str]:
    for batch in rows.iter(batch_size=1000):
        for column in WRITTEN:
            for value in batch.get(column, ()):
                if isinstance(value, str):
                    yield value
                elif column == "tokens":
                    yield " ".join(value)
                else:
                    yield from map(said, value or ())


@dataclass
class Examples:
    """Rows ready for the trainer, and for both splits the report of how they came to be, where there is one. Those of
    several data sets lie one set after the other."""

    train: Any  # a Dataset, or with --streaming a TokenStream
    eval: Dataset
    reports: tuple[EncodingReport, EncodingReport] | None = None
    parts: list[Part] = field(default_factory=list)

    def shares(self, seed: int) -> Shares | None:
        """Which examples an epoch has, where data sets have a share in it."""
        weights = [part.source.weight for part in self.parts if part.source.weight is not None]
        return Shares([len(part.train) for part in self.parts], weights, seed) if weights else None

    def add_shares(self, table: Table) -> Table:
        """The table of a dry run, with a line for each of several data sets."""
        for part in self.parts:
            weight = "" if part.source.weight is None else f" ({part.source.weight:.1%} of an epoch)"
            table.add_row(f"{part.source.short}{weight}", *part.shares(self))
        return table


@dataclass
class Predictions:
    """What a model says of rows with labels, and what they are.

    Attributes:
        shown: of each row what a person reads of it; of tags each token, in order.
        logits: `(rows, outputs)` in float32; of tags `(tokens, tags)`, of questions `(rows,)` how likely the model took
            what it said; of pairs of answers `(pairs, 2)` both their rewards.
        targets: of each row its class by number, its classes as zeros and ones, or its number; of tags each token's,
            of questions a list of answers each; of pairs of answers both their lengths in tokens, the better one first.
        names: the classes.
        problem: the `problem_type`.
        clusters: what several have in common: of tokens the number of their row, of questions their context.
        said: of questions the answers, empty for none.
        margins: of pairs of answers by how much the rows say that one is better.
        notes: sentences for the report.
    """

    shown: list[str]
    logits: np.ndarray
    targets: Any
    names: tuple[str, ...]
    problem: str
    clusters: np.ndarray | None = None
    said: list[str] | None = None
    margins: np.ndarray | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """How a causal model's sequences lie in a batch, and which loss it has; see `tuner.train.prepare.choose_layout`."""

    packing: bool = False  # several sequences share a row
    padding_free: bool = False  # the rows of a batch are joined into one
    chunked_loss: bool = True  # the loss is computed without a (tokens x vocabulary) matrix
    masks: bool = False  # the model needs an attention mask beside padding on the right


@dataclass
class Outcome:
    """What a run came to, for the comparison with baselines."""

    model: Any
    rows: Rows
    examples: Examples
    after: dict[str, float]  # metrics of the saved model's evaluation
    before: dict[str, float]  # and of that before the first step, if there was one
    untrained: Callable[[], PreTrainedModel]  # makes the model that the run began with
    figures: dict[str, Any] = field(default_factory=dict)  # of its predictions of rows with labels, with intervals

    def before_and_after(self, name: str) -> dict[str, float]:
        """A metric of the untrained and of the trained model, those that were measured."""
        found = {"untrained": self.before.get(f"eval_{name}"), "trained": self.after.get(f"eval_{name}")}
        return {who: value for who, value in found.items() if value is not None}
