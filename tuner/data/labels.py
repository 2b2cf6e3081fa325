"""Labels as data sets write them, made canonical: names, numbers, a tag for each token, places in a text.

    class     one class     {"text": str, "text_pair": str or null, "label": str}
    classes   any number    {"text": str, "text_pair": str or null, "labels": [str]}
    score     a number      {"text": str, "text_pair": str or null, "label": float}
    tags      of tokens     {"tokens": [str], "tags": [str]}
    question  on a text     {"question": str, "context": str, "answers": [{"text": str, "start": int}]}

A class is known by its name and never by its place in a list: what is a number in a file has the name that the file's
`ClassLabel` gives it, or else is its own name.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from datasets import ClassLabel, Dataset, Features, List

from tuner.data.turns import Row, as_number, shown, text_of
from tuner.data.written import parsed
from tuner.errors import DataError

# Columns that hold a text and its partner, and tags, under the names that data sets give them.
TEXTS = (
    *(("text", "text_pair"), ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2")),
    *(("question", "sentence"), ("question", "passage"), ("text1", "text2"), ("text", ""), ("sentence", "")),
)
TAG_COLUMNS = ("tags", "ner_tags", "pos_tags", "labels")
# The kinds of rows of each `--problem_type`.
PROBLEMS = {
    "single_label_classification": ("class",),
    "multi_label_classification": ("classes",),
    "regression": ("score",),
    "token_classification": ("tags",),
    "question_answering": ("question",),
}
CALLED = {
    "class": "texts with a class",
    "classes": "texts with any number of classes",
    "score": "texts with a number",
    "tags": "tokens with tags",
    "question": "questions on a text",
}


@dataclass(frozen=True)
class Labels:
    """What there is to tell apart.

    Attributes:
        names: the classes, in the order of the model's outputs; of a regression, none.
        counts: training rows (of tags, tokens) that have each; of questions those with an answer, and those without.
        problem: a key of `PROBLEMS`.
    """

    names: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    problem: str = ""


def named(rows: Dataset) -> dict[str, list[str]]:
    """Of each column of `ClassLabel`s their names."""
    found = {}
    for column, feature in (rows.features or Features()).items():
        inner = feature.feature if isinstance(feature, List) else feature
        if isinstance(inner, ClassLabel):
            found[column] = list(inner.names)
    return found


def name_of(value: Any, column: str) -> str:
    """The name of a class; a DataError where there is none."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | dict):
        raise DataError(f"column {column!r} must name a class, not {shown(value)}.")
    if isinstance(value, float) and not value.is_integer():
        raise DataError(f"column {column!r} must name a class, not {shown(value)} (--problem_type regression).")
    if value is None or not str(value).strip():
        raise DataError(
            f"column {column!r} must name a class, not {shown(value)}. Drop rows without one; where a benchmark hides "
            "those of its test split, --dataset_test_split names another."
        )
    return str(int(value)) if isinstance(value, float) else str(value)


def is_class(value: Any) -> bool:
    """Whether a label names one class; what is missing may have been one."""
    return not isinstance(parsed(value), list | float)


def is_number(value: Any) -> bool:
    """Whether a label is a number to be told; what is missing may have been one."""
    return value is None or as_number(value) is not None


def labelled(row: Row, _: set[str], first: str, *rest: str) -> Row:
    """A text, or two, with what each says of itself."""
    second, column = rest if len(rest) == 2 else ("", rest[0])
    found: Row = {"text": text_of(row[first], f"{first!r}")}
    return {**found, "text_pair": text_of(row[second], f"{second!r}") if second else None, "label": row[column]}


def one_class(row: Row, unused: set[str], *columns: str) -> Row:
    """A text with the name of its class."""
    found = labelled(row, unused, *columns)
    return {**found, "label": name_of(found["label"], columns[-1])}


def any_classes(row: Row, unused: set[str], *columns: str) -> Row:
    """A text with the names of its classes, each once."""
    found = labelled(row, unused, *columns)
    names = parsed(found.pop("label"))
    if not isinstance(names, list):
        raise DataError(f"column {columns[-1]!r} must be a list of classes, not {shown(names)}.")
    if len(names) > 2 and not any(isinstance(name, str | list | dict) for name in names) and {*names} == {0, 1}:
        raise DataError(
            f"column {columns[-1]!r} marks classes by zeros and ones, {shown(names)}. Write the names of those it has."
        )
    return {**found, "labels": list(dict.fromkeys(name_of(name, columns[-1]) for name in names))}


def one_number(row: Row, unused: set[str], *columns: str) -> Row:
    """A text with a number."""
    found = labelled(row, unused, *columns)
    value = as_number(found["label"])
    if value is None or not math.isfinite(value):
        raise DataError(f"column {columns[-1]!r} must be a number, not {shown(found['label'])}.")
    return {**found, "label": value}


def tagged(row: Row, _: set[str], tokens: str, tags: str) -> Row:
    """Tokens with a tag each."""
    words, names = parsed(row[tokens]), parsed(row[tags])
    for column, values in ((tokens, words), (tags, names)):
        if not isinstance(values, list) or not values:
            raise DataError(f"column {column!r} must be a list, not {shown(values)}.")
    if len(words) != len(names):
        raise DataError(
            f"column {tokens!r} has {len(words)} tokens and column {tags!r} {len(names)} tags: one each is needed."
        )
    return {
        "tokens": [text_of(word, f"{tokens!r}, token {number}") for number, word in enumerate(words)],
        "tags": [name_of(name, tags) for name in names],
    }


def asked(row: Row, _: set[str], question: str, context: str, answers: str) -> Row:
    """A question on a text, with every answer where it begins (characters); none where the text does not answer it."""
    text, found = text_of(row[context], f"{context!r}"), row[answers]
    texts, starts = (found.get(name) for name in ("text", "answer_start")) if isinstance(found, dict) else (None, None)
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        raise DataError(
            f"column {answers!r} must be lists 'text' and 'answer_start' of one length, not {shown(found)}."
        )
    for answer, start in zip(texts, starts, strict=True):
        if not isinstance(answer, str) or not answer.strip() or not isinstance(start, int):
            raise DataError(f"column {answers!r}: {shown(answer)} at {shown(start)} is no answer and its place.")
        if start < 0 or text[start : start + len(answer)] != answer:
            raise DataError(
                f"column {answers!r}: {shown(answer)} is not what column {context!r} has at {start}: "
                f"{shown(text[max(start, 0) : max(start, 0) + len(answer)])}."
            )
    spans = [{"text": answer, "start": start} for answer, start in zip(texts, starts, strict=True)]
    return {"question": text_of(row[question], f"{question!r}"), "context": text, "answers": spans}


def labels_of(rows: Dataset, kind: str) -> Labels:
    """The classes of canonical rows, sorted by name, numbers by size."""
    problem = next(problem for problem, kinds in PROBLEMS.items() if kind in kinds)
    column = {"class": "label", "classes": "labels", "tags": "tags"}.get(kind)
    if kind == "question":
        known = sum(bool(answers) for answers in rows["answers"])
        return Labels((), (known, len(rows) - known), problem)
    if column is None:
        return Labels(problem=problem)
    counts: Counter[str] = Counter()
    for value in rows[column]:
        counts.update([value] if isinstance(value, str) else value)
    numbers = all(name.lstrip("-").isdigit() for name in counts)
    names = sorted(counts, key=lambda name: (int(name), name)) if numbers else sorted(counts)
    return Labels(tuple(names), tuple(counts[name] for name in names), problem)


def check_labels(train: Dataset, held_out: Dataset, kind: str, name: str, said: bool = False) -> Labels:
    """The classes that training rows have; a DataError where they teach nothing, or validation rows have others, or
    where it is not `said` that numbers are no classes."""
    labels = labels_of(train, kind)
    if kind == "score" and set(held_out["label"]) == {-1.0} and -1.0 not in train["label"]:
        raise DataError(
            f"{name}: all validation rows have the label -1, as where a benchmark hides those of its test split. "
            "--dataset_test_split names another."
        )
    if kind == "score" and not said:
        values = train["label"]
        if all(value.is_integer() for value in values) and len(set(values)) <= 20 < len(values):
            raise DataError(
                f"{name}: column 'label' holds the floats {', '.join(f'{v:g}' for v in sorted(set(values))[:5])}, ..., "
                "which look like classes. Write them as integers or names, or pass --problem_type regression."
            )
    if kind == "question":
        if not labels.counts[0]:
            raise DataError(f"{name}: no training question has an answer: there is nothing to learn.")
        if labels_of(held_out, kind).counts[1] and not labels.counts[1]:
            raise DataError(
                f"{name}: validation questions lack an answer, and no training question does. Give training rows such "
                "questions, or drop them."
            )
    if kind in ("score", "question"):
        return labels
    if len(labels.names) < (1 if kind == "classes" else 2):
        there = f"only the class {labels.names[0]!r}" if labels.names else "no class at all"
        raise DataError(f"{name}: the training rows have {there}: there is nothing to tell apart.")
    found = [as_number(name) for name in labels.names] if kind == "class" else []
    numbers = [number for number in found if number is not None and math.isfinite(number)]
    fractions = [number for number in numbers if not number.is_integer()]
    if not said and fractions and len(numbers) == len(labels.names):
        raise DataError(
            f"{name}: column 'label' holds texts of numbers, {', '.join(labels.names[:5])}, ... Pass --problem_type "
            "regression, or single_label_classification where each of them is a class."
        )
    if kind == "class" and len(train) > 20 and len(labels.names) > len(train) / 2:
        raise DataError(
            f"{name}: {len(labels.names):,} classes in {len(train):,} training rows. Is column 'label' what it should "
            "be? Numbers are learnt with --problem_type regression."
        )
    unseen = sorted(set(labels_of(held_out, kind).names) - set(labels.names))
    if unseen:
        raise DataError(
            f"{name}: validation rows have {', '.join(map(repr, unseen[:5]))}, which no training row has. Give each "
            "class training rows, or drop those rows."
        )
    return labels
