"""Answers as a data set that preference training takes: a row is one annotator's preference.

Where people disagree, there are rows both ways. A tie is no preference, and training on pairs would take it for one:
ties are left out, or written with a column `tie` for what can use them.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tuner.data.turns import Row, message
from tuner.errors import DataError
from tuner.feedback.store import SIDES, Store, messages


def preferences(store: Store) -> list[Row]:
    """What was answered: `prompt`, `chosen`, `rejected`, `tie` (the choice where nothing was preferred, else ""),
    `annotator`, `time`, `edited` (whether `chosen` is what the annotator made of it), and the models."""
    models = dict(zip(SIDES, store.begun.get("models") or (None, None), strict=True))
    rows = []
    for answer in store.answers():
        if answer.choice == "skip":
            continue
        better, worse = SIDES[::-1] if answer.choice == "second" else SIDES
        rows.append({
            "prompt": answer.prompt, "chosen": answer.edited or getattr(answer, better),
            "rejected": getattr(answer, worse), "tie": "" if answer.choice in SIDES else answer.choice,
            "annotator": answer.annotator, "time": answer.time, "edited": answer.edited is not None,
            "chosen_model": models[better], "rejected_model": models[worse],
        })  # fmt: skip
    return rows


def write_preferences(rows: Iterable[Row], output: Path, ties: bool) -> Counter[str]:
    """Write preferences as JSON lines or Parquet; the file appears whole, by a rename.

    Args:
        rows: as `preferences` gives them. Where one prompt is a list of messages, prompts and completions of all are.
        ties: write those too, with `tie` true in a column that is not there otherwise.

    Returns:
        How many rows were written, and of ties each kind, written or not.

    Raises:
        DataError: nothing to write.
    """
    rows = list(rows)
    counts = Counter(row["tie"] for row in rows)
    kept = [{**row, "tie": bool(row["tie"])} for row in rows if ties or not row["tie"]]
    if not kept:
        raise DataError(f"there is no preference to write{', only ties (--ties)' if rows else ''}.")
    turns = any(not isinstance(row["prompt"], str) for row in kept)
    for row in kept:
        if turns:
            row["prompt"] = messages(row["prompt"])
            row |= {column: [message("assistant", row[column], "")] for column in ("chosen", "rejected")}
        if not ties:
            del row["tie"]
    unfinished = output.with_name(f"{output.name}.new")
    if output.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(kept), unfinished)
    else:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
        unfinished.write_text("".join(lines), encoding="utf-8")
    os.replace(unfinished, output)
    return Counter({**counts, "written": len(kept)})
