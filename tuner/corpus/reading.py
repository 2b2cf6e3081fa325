"""Documents of a source one at a time, in the order they lie there or shuffled in a buffer; none is held for long.

What is wrong with a row, and what of it is not used, is said with its file and number when it is read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset, Json

from tuner.corpus.segments import turns_to_lines
from tuner.data.columns import parse_mapping, rename_row
from tuner.data.hub_files import hub_files
from tuner.data.local_files import Files, file_format, local_files
from tuner.data.read_files import read_rows
from tuner.data.schema import SPOKEN, TOOLS, canonical, shape_of, without_nulls
from tuner.data.sources import (
    SOURCE_ROW,
    ask_hub,
    has_text,
    held_out_split,
    load_hub,
    load_splits,
    name_others,
    require_split,
    saved_splits,
)
from tuner.data.tools import VARIABLES
from tuner.errors import DataError, notice


def open_stream(
    name: str,
    config: str | None,
    splits: tuple[str, str],
    seed: int,
    buffer_size: int,
    column_mapping: str | None = None,
) -> tuple[IterableDataset, IterableDataset | None]:
    """The documents of a source as rows of `text`.

    Args:
        splits: the names of the training and of the validation split.
        seed, buffer_size: training documents are shuffled in a buffer of so many; validation documents are not.
        column_mapping: as `load_splits`.

    Returns:
        Those of the training split and, where the source has one, of the validation split.

    Raises:
        DataError: nothing there, or no such split. Whatever is wrong with a row is raised when it is read.
    """
    mapping = parse_mapping(column_mapping)
    if name.startswith("builtin:"):
        rows = load_splits(name)[0].remove_columns(SOURCE_ROW)
        found = {splits[0]: _documents(rows.to_iterable_dataset(), name, mapping)}
    elif (saved := saved_splits(name, splits[0])) is not None:
        found = {s: _documents(rows.to_iterable_dataset(), name, mapping) for s, rows in saved.items()}
    elif (files := _files(name, splits, config)) is None:
        found = {s: _documents(rows, name, mapping) for s, rows in load_hub(name, config, streaming=True).items()}
    else:
        read = {split: {"files": [str(file) for file in files[split]], "mapping": mapping} for split in files}
        found = {split: IterableDataset.from_generator(_read, gen_kwargs=what) for split, what in read.items()}
    train = found[require_split(found, splits[0], name)]
    test = held_out_split(found, splits, name)
    name_others(found, (splits[0], test), name)
    # Without a shuffle an epoch would still have an order of the files of its own; `skip` keeps it.
    ordered = train.shuffle(seed=seed, buffer_size=buffer_size) if buffer_size > 1 else train.skip(0)
    return ordered, found[test] if test else None


def _files(name: str, splits: tuple[str, str], config: str | None) -> Files | None:
    """The files of each split, here or on the Hub; None where `datasets` reads them."""
    here = local_files(name, splits, config)
    if here is not None:
        return here
    there: Files | None = ask_hub(name, hub_files, name, config, fetch=False)
    try:
        for files in (there or {}).values():
            next(read_rows(files[0]))
    except DataError as error:
        notice(f"{name}: read by datasets, which guesses types, for {error}")
        return None
    return there


def _documents(rows: IterableDataset, name: str, mapping: dict[str, str]) -> IterableDataset:
    filled = [c for c in SPOKEN if rows.features is None or not isinstance(rows.features.get(c), Json)]
    how = {"name": name, "mapping": mapping, "filled": filled}
    return rows.map(_to_text, with_indices=True, fn_kwargs=how, remove_columns=rows.column_names)


def _to_text(row: dict[str, Any], number: int, name: str, mapping: dict[str, str], filled: list[str]) -> dict[str, str]:
    return {"text": _text(row, name, number, mapping, filled)}


def _read(files: list[str], mapping: dict[str, str]) -> Iterator[dict[str, str]]:
    """The documents of files, without blank ones."""
    for file in files:
        for number, row in enumerate(read_rows(Path(file))):
            text = _text(row, file, number, mapping, SPOKEN if file_format(Path(file)) == "parquet" else ())
            if has_text(text):
                yield {"text": text}


def _text(row: dict[str, Any], source: str, number: int, mapping: dict[str, str], filled: Collection[str]) -> str:
    """A row as text. In columns that are `filled`, a turn has the keys of all turns."""
    name, unused = f"{source}, row {number}", set[str]()
    filled = {mapping.get(column, column) for column in filled} | {*filled}
    row = {
        column: without_nulls(value) if column in filled and column in SPOKEN else value
        for column, value in rename_row(row, mapping, name).items()
    }
    shape = shape_of(row, name)
    try:
        read = canonical(row, shape, unused)
        if read.get(TOOLS):
            raise DataError("what may be called is no part of the text of a stream. Drop the column.")
        if read.get(VARIABLES):
            unused.add(f"column {VARIABLES!r}")
        found = read[shape.kind]
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    for what in sorted(unused):
        _tell_once(source, what)
    return found if shape.kind == "text" else turns_to_lines(found)


@cache
def _tell_once(source: str, what: str) -> None:
    """Name what is not used as it first appears: nobody has counted the rows of a stream."""
    notice(f"{source}: not used is {what}.")


def set_aside(documents: IterableDataset, count: int, name: str) -> tuple[IterableDataset, Dataset]:
    """The documents without the first `count`, and those, in memory, to validate on.

    They are known by their texts, for another epoch has them elsewhere. A DataError where there are no more.
    """
    first = list(documents.take(count + 1))
    if len(first) <= count:
        raise DataError(f"{name} has {len(first)} documents: --test_split_size {count} would set all of them aside.")
    held_out = Dataset.from_list(first[:count])
    texts = {"texts": frozenset(held_out["text"])}
    return documents.filter(_is_other, input_columns=["text"], fn_kwargs=texts), held_out


def _is_other(text: str, texts: frozenset[str]) -> bool:
    return text not in texts
