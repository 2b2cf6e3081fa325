"""Which files of this machine are the rows of which split: as `datasets` finds them in a folder of the Hub.

In this order: the `configs` of the folder's README.md, names like `data/train-00000-of-00001.parquet`, folders called
after splits, files called after splits, and else all files together for training. Hidden files are none of them.
"""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

from datasets.data_files import DataFilesDict, EmptyDatasetError, get_data_patterns, sanitize_patterns
from huggingface_hub import DatasetCard

from tuner.errors import DataError, nearest

# Extension to how its files are read.
FORMATS = {".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}
EXTENSIONS = ", ".join(FORMATS)


def local_files(name: str, splits: tuple[str, str], config: str | None = None) -> dict[str, list[Path]] | None:
    """The files of each split of a file or folder, or None where the name is neither.

    Args:
        splits: the names of the training and of the validation split. Files without a split are the training one; a
            file that is called after one of the two, and is of no other split, is that split.
        config: which of the configurations that the folder's README.md declares.

    Raises:
        DataError: nothing there, files of no format or of several, a file in two splits, or no such configuration.
    """
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix.lower() not in FORMATS:
            raise DataError(f"--dataset_name {path}: unknown extension; expected one of {EXTENSIONS}.")
        return {splits[0]: [path]}
    if path.is_dir():
        found = _files_of_folder(path, name, config)
        formats = {FORMATS[file.suffix.lower()] for files in found.values() for file in files}
        if len(formats) != 1:
            shown = f"files of several kinds ({', '.join(sorted(formats))})" if formats else "none of them"
            raise DataError(f"--dataset_name {name}: a folder must hold {EXTENSIONS} files of one kind; found {shown}.")
        return _named(path, found, splits)
    if path.suffix.lower() in FORMATS or name.startswith((".", "/", "~")):
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"--dataset_name {name}: no such file or folder.{nearest(path.name, beside)}")
    return None


def _files_of_folder(folder: Path, name: str, config: str | None) -> dict[str, list[Path]]:
    base = glob.escape(str(folder.resolve()))  # the folder's own name is no pattern
    try:
        patterns = _declared(folder, name, config) or get_data_patterns(base)
        found = _resolve(patterns, base)
        if not any(found.values()):  # what looked like a split was a file of another kind
            found = _resolve({"train": ["**"]}, base)
    except (EmptyDatasetError, FileNotFoundError):
        return {}
    twice = [
        file for split in found for other in found if split < other for file in found[split] if file in found[other]
    ]
    if twice:
        raise DataError(f"--dataset_name {name}: {twice[0].name} is called after two splits. Rename it.")
    return {split: files for split, files in found.items() if files}


def _resolve(patterns: dict[str, Any], base: str) -> dict[str, list[Path]]:
    resolved = DataFilesDict.from_local_or_remote(patterns, base_path=base)
    files = {str(split): sorted({Path(file) for file in found}) for split, found in resolved.items()}
    return {
        split: [file for file in found if file.suffix.lower() in FORMATS and not file.name.startswith("~")]
        for split, found in files.items()
    }


def _declared(folder: Path, name: str, config: str | None) -> dict[str, Any] | None:
    """The patterns that a data set's card declares (https://huggingface.co/docs/hub/datasets-manual-configuration)."""
    card = folder / "README.md"
    try:
        found = DatasetCard.load(card).data.to_dict().get("configs") if card.is_file() else None
    except Exception:  # a README that is no card fails in every way that YAML can
        return None
    configs = [entry for entry in found or [] if isinstance(entry, dict) and entry.get("data_files")]
    if not configs:
        return None
    by_name = {entry.get("config_name", "default"): entry for entry in configs}
    default = next((key for key, entry in by_name.items() if entry.get("default") or key == "default"), None)
    chosen = config or (next(iter(by_name)) if len(by_name) == 1 else default)
    if chosen not in by_name:
        raise DataError(
            f"{name} has the configurations {', '.join(by_name)}; --dataset_config must be one of them"
            f"{f', not {chosen}' if chosen else ''}."
        )
    return sanitize_patterns(by_name[chosen]["data_files"])


def _named(folder: Path, found: dict[str, list[Path]], splits: tuple[str, str]) -> dict[str, list[Path]]:
    """With the files that are called after `splits` where their names mean nothing to `datasets`."""
    for split in splits:
        if split not in found:
            visible = _resolve({split: [f"**/{glob.escape(split)}.*"]}, glob.escape(str(folder.resolve())))[split]
            others = {other: [file for file in files if file not in visible] for other, files in found.items()}
            found = {other: files for other, files in others.items() if files} | ({split: visible} if visible else {})
    only = list(found) == ["train"]  # nothing there is called after a split of another name
    return {splits[0]: found["train"]} if only else found
