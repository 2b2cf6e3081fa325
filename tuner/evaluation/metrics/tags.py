"""Entities in tagged tokens, counted as seqeval counts them by default (as the CoNLL-2000 script did).

Own code: seqeval's last release, of 2020, is a source package that has to be built.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from tuner.evaluation.metrics.base import TEXTS, Columns, Figures, SummedMetric, ratio, text

# IOB and IOB2, BIOES and its other spellings (BILOU, BMES).
PREFIXES = {"B": "B", "I": "I", "E": "E", "S": "S", "L": "E", "U": "S", "M": "I"}

Entity = tuple[str, int, int]


def entities(tags: list[str]) -> set[Entity]:
    """(type, first, last) of every entity. A tag without a prefix continues one of its type, as I- does.

    An entity ends before O, another type, B- or S-, and after E- or S-. What continues nothing begins one.
    """
    found, before = list[Entity](), "O"
    last = ""
    for number, tag in enumerate(tags):
        prefix, kind = split_tag(tag)
        if prefix == "O":
            before = "O"
            continue
        if before in "BI" and prefix in "IE" and kind == last:
            found[-1] = (kind, found[-1][1], number)
        else:
            found.append((kind, number, number))
        before, last = prefix, kind
    return set(found)


def split_tag(tag: str) -> tuple[str, str]:
    """B, I, E, S or O, and the type; the type of a bare prefix is `_`."""
    if tag == "O":
        return "O", ""
    prefix, dash, kind = tag.partition("-")
    if prefix in PREFIXES and (dash or not kind):
        return PREFIXES[prefix], kind or "_"
    return "I", tag


def marks_entities(names: Collection[str]) -> bool:
    """Whether tags are IOB or BIOES: `O`, and others with such a prefix; without `O` each has one and a dash."""
    others, has_outside = set(names) - {"O"}, "O" in names
    return bool(others) and all(tag.partition("-")[0] in PREFIXES and ("-" in tag or has_outside) for tag in others)


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
