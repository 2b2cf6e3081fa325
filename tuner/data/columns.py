"""Columns under other names: `--column_mapping question=prompt,answer=completion`, and which one to suggest."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from datasets import Audio, Dataset, Image, LargeList, List, Video

from tuner.data.written import spelled_out, turns_in
from tuner.errors import ArgumentError, DataError, nearest

# Names that data sets give to columns of ours.
SYNONYMS = {
    "prompt": (
        *("question", "query", "input", "inputs", "instruction", "user", "human", "request", "problem", "ask"),
        *("dialogue", "document", "article"),
    ),
    "completion": (
        *("answer", "response", "output", "assistant", "reply", "target", "targets", "solution", "completions"),
        *("generation", "summary", "content"),
    ),
    "instruction": ("question", "query", "prompt"),
    "output": ("response", "answer", "completion", "reply", "target"),
    "messages": ("message", "conversation", "dialog", "dialogue", "dialogs", "chat", "turns", "completion"),
    "text": ("content", "body", "document", "article", "sentence", "passage", "review", "texts", "raw_text"),
    "chosen": (
        *("preferred", "better", "good", "accepted", "winner", "positive", "chosen_response", "response_j"),
        *("chosen_conversations", "chosen_messages"),
    ),
    "rejected": (
        *("dispreferred", "worse", "bad", "refused", "loser", "negative", "rejected_response", "response_k"),
        *("rejected_conversations", "rejected_messages"),
    ),
    "source": ("src", "input", "inputs", "input_text", "article", "document"),
    "target": ("tgt", "output", "targets", "target_text", "summary", "abstract", "highlights"),
    "label": ("labels", "class", "category", "rating", "stars", "sentiment"),
}
# Columns beside an instruction that hold what it is about: Alpaca's and Dolly's.
INPUTS = ("input", "context")
# Of the names above, those that hold turns, or (but for messages) a text.
SPOKEN = ("prompt", "completion", "instruction", "output", "messages", "text", "chosen", "rejected")


def undecoded(rows: Dataset) -> Dataset:
    """Rows whose images, sounds and films stay bytes: nobody reads them here, and decoding takes other packages."""
    for name, feature in (rows.features or {}).items():
        if (bytes_of := _undecoded(feature)) != feature:
            rows = rows.cast_column(name, bytes_of)
    return rows


def _undecoded(feature: Any) -> Any:
    """A column's type, or that of what it holds, without decoding."""
    if isinstance(feature, Audio | Image | Video):
        return replace(feature, decode=False)
    if isinstance(feature, dict):
        return {key: _undecoded(inner) for key, inner in feature.items()}
    if isinstance(feature, List | LargeList):
        return replace(feature, feature=_undecoded(feature.feature))
    return feature


def parse_mapping(text: str | None) -> dict[str, str]:
    """`old=new,old=new` as a dictionary, or a JSON text of one, for names with commas; an ArgumentError for anything
    else."""
    text = text or ""
    if text.lstrip().startswith("{"):
        try:
            pairs = list(json.loads(text).items())
        except ValueError as error:
            raise ArgumentError(f"--column_mapping {text}: {error}") from error
        pairs = [(old, new if isinstance(new, str) else "") for old, new in pairs]
    else:
        parts = (part.partition("=")[::2] for part in text.split(",") if part.strip())
        pairs = [(old.strip(), new.strip()) for old, new in parts]
    found = dict(pairs)
    if not all(found) or not all(found.values()) or len(found) < len(pairs) or len(set(found.values())) < len(pairs):
        raise ArgumentError(f"--column_mapping {text}: expected name=new_name,..., each of them once.")
    return found


def rename_columns(rows: Dataset, mapping: dict[str, str], name: str) -> Dataset:
    """Rows with columns under other names. What is there under the new name already gives way, if it is renamed too; a
    DataError where it is not, or where there is no such column."""
    if not mapping:
        return rows
    check_mapping(rows.column_names, mapping, name)
    return rows.rename_columns(mapping)


def check_mapping(columns: Iterable[str], mapping: dict[str, str], name: str) -> None:
    """A DataError where columns cannot be renamed."""
    known = list(columns)
    for old, new in mapping.items():
        if old not in known:
            there = f"{name} has the columns {', '.join(known)}, and no {old!r}"
            raise DataError(f"--column_mapping {old}={new}: {there}.{nearest(old, known)}")
        if new in known and new not in mapping:
            raise DataError(f"--column_mapping {old}={new}: {name} has a column {new!r} too. Give it another name.")


def suggestion(row: Mapping[str, Any], shapes: Iterable[tuple[str, ...]]) -> str:
    """What to pass so that a row's columns have one of some shapes, with as few new names as can be, but rather an
    answer than a text, and what is beside an instruction; nothing where no names are alike, or they hold something
    else."""
    known, fits = list(row), list[dict[str, str]]()
    for shape in shapes:
        found: dict[str, str] = {}
        for wanted in (column for column in shape if column not in known):
            alike = (wanted, *SYNONYMS.get(wanted, ()))
            free = [column for column in known if column not in found and _may_be(wanted, row[column])]
            old = next((c for name in alike for c in free if c.strip().lower() == name), None)
            if old is None:
                break
            found[old] = wanted
        else:
            fits.append(found)
    beside = any(isinstance(row.get(name), str) for name in INPUTS)
    fewest = min(
        fits,
        key=lambda new: ("text" in new.values(), beside and "instruction" not in new.values(), len(new)),
        default={},
    )
    return flag(fewest) if fewest else ""


def _may_be(wanted: str, value: Any) -> bool:
    """Whether a column of that name could hold the value."""
    if value is None or wanted not in SPOKEN:
        return True
    found = turns_in(value)
    if wanted == "messages":  # whose texts those of a list are is not known
        found = None if isinstance(found, list) and any(isinstance(t, str) for t in found) else spelled_out(found)
    elif isinstance(found, str):
        return True
    return isinstance(found, list) and all(isinstance(turn, dict) and {"role", "from"} & turn.keys() for turn in found)


def flag(mapping: dict[str, str]) -> str:
    """A mapping as it is passed."""
    plain = all(old == old.strip() and not {",", "=", '"', " "} & set(old) for old in mapping)
    written = ",".join(f"{old}={new}" for old, new in mapping.items()) if plain else f"'{json.dumps(mapping)}'"
    return f"--column_mapping {written}"


def rename_row(row: dict[str, Any], mapping: dict[str, str], name: str) -> dict[str, Any]:
    """A row of a stream with its columns under other names. Raises as `rename_columns`."""
    check_mapping(row, mapping, name)
    return {mapping.get(column, column): value for column, value in row.items()}
