"""Which files of this machine are the rows of which split: as `datasets` finds them in a folder of the Hub.

In this order: the `configs` of the folder's README.md, names like `data/train-00000-of-00001.parquet`, folders called
after splits, files called after splits, and else all files together for training. Hidden files are none of them.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from pathlib import Path
from typing import Any

from datasets.data_files import FILES_TO_IGNORE, DataFilesDict, get_data_patterns, sanitize_patterns
from huggingface_hub import DatasetCard

from tuner.errors import DataError, nearest, notice, one_line

# Extension to how its files are read; all but parquet may be compressed.
FORMATS = {
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "json"),
    **{".csv": "csv", ".tsv": "tsv", ".parquet": "parquet", ".txt": "text"},
}
COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
EXTENSIONS = f"{', '.join(FORMATS)}, also with {', '.join(COMPRESSIONS)}"

# Files that are named in a message.
SHOWN = 5

Files = dict[str, list[Path]]


def file_format(file: Path) -> str | None:
    """How a file is read, by its extension; None where it is not."""
    inner = file.with_suffix("") if file.suffix.lower() in COMPRESSIONS else file
    found = FORMATS.get(inner.suffix.lower())
    return None if found == "parquet" and inner != file else found


def local_files(name: str, splits: tuple[str, str], config: str | None = None) -> Files | None:
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
        if file_format(path) is None:
            raise DataError(f"--dataset_name {path}: unknown extension; expected one of {EXTENSIONS}.")
        if config:
            raise DataError(f"--dataset_config {config}: {path} is a file, which has no configurations.")
        return {splits[0]: [path]}
    if path.is_dir():
        found = _files_of_folder(path, name, splits, config)
        formats = {str(file_format(file)) for files in found.values() for file in files}
        if len(formats) != 1:
            shown = f"files of several kinds ({', '.join(sorted(formats))})" if formats else "none of them"
            raise DataError(f"--dataset_name {name}: a folder must hold {EXTENSIONS} files of one kind; found {shown}.")
        return found
    if file_format(path) or name.startswith((".", "/", "~")):
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"--dataset_name {name}: no such file or folder.{nearest(path.name, beside)}")
    return None


def _files_of_folder(folder: Path, name: str, splits: tuple[str, str], config: str | None) -> Files:
    base = glob.escape(str(folder.resolve()))  # the folder's own name is no pattern
    declared = _declared(folder, name, config)
    if declared is not None:
        within = Path(declared.get("data_dir") or "")
        if within.is_absolute() or ".." in within.parts:
            raise DataError(f"--dataset_name {name}: README.md declares the folder {within}, which is not within it.")
        base = str(Path(base, glob.escape(str(within))))
    try:
        patterns = (declared or {}).get("data_files")
        found = _resolve(sanitize_patterns(patterns) if patterns else get_data_patterns(base), base)
    except FileNotFoundError as error:
        if declared is None:
            return {}
        raise DataError(f"--dataset_name {name}: README.md declares what is not there: {one_line(error)}") from error
    if declared is None:
        # Where what looked like a split was a file of another kind, all files are for training.
        found = found or _resolve({"train": ["**"]}, base)
    for file, count in Counter(file for files in found.values() for file in files).items():
        if count > 1:
            raise DataError(f"--dataset_name {name}: {file.name} is called after two splits. Rename it.")
    for split in splits:
        if split not in found:  # its name means nothing to `datasets`
            called = _resolve({split: [f"**/{glob.escape(split)}.*"]}, base)
            taken = called.get(split, [])
            rest = {other: [file for file in files if file not in taken] for other, files in found.items()}
            found = {other: files for other, files in (rest | called).items() if files}
    if declared is None:  # else other files may be those of other configurations
        _say_what_is_left(found, name, folder.resolve())
    return {splits[0]: found["train"]} if list(found) == ["train"] else found


def _say_what_is_left(found: Files, name: str, folder: Path) -> None:
    """Name the files that are in no split."""
    read, left = {file for files in found.values() for file in files}, list[str]()
    for where, folders, files in os.walk(folder):
        folders[:] = [each for each in folders if not _is_about(each)]
        left += [str(Path(where, file).relative_to(folder)) for file in files if Path(where, file) not in read]
    left = [file for file in left if not _is_about(Path(file).name)]
    about = folder / "dataset_info.json"
    if about.is_file() and any(key in about.read_text(encoding="utf-8") for key in ('"file_name"', '"hf_hub_url"')):
        notice(f"{name}: dataset_info.json is LLaMA-Factory's and not read: --column_mapping names columns.")
    if found and left:
        more = f" and {len(left) - SHOWN:,} more" if len(left) > SHOWN else ""
        shown = ", ".join(sorted(left)[:SHOWN])
        notice(f"{name}: in no split ({', '.join(found)}) and not read: {shown}{more}.")


def _is_about(name: str) -> bool:
    """Whether a file or folder is hidden, or says something about data."""
    return name.startswith((".", "_", "~")) or name in FILES_TO_IGNORE or name.upper().startswith(("README", "LICENSE"))


def _resolve(patterns: dict[str, Any], base: str) -> Files:
    resolved = DataFilesDict.from_local_or_remote(patterns, base_path=base)
    files = {str(split): sorted({Path(file) for file in found}) for split, found in resolved.items()}
    ours = {s: [f for f in found if file_format(f) and f.name[0] != "~"] for s, found in files.items()}
    return {split: found for split, found in ours.items() if found}


def _declared(folder: Path, name: str, config: str | None) -> dict[str, Any] | None:
    """What a data set's card declares of its files (`data_files`, `data_dir`), where it does
    (https://huggingface.co/docs/hub/datasets-manual-configuration)."""
    try:
        declared = DatasetCard.load(folder / "README.md").data.to_dict()["configs"]
        entries = [entry for entry in declared if entry.get("data_files") or entry.get("data_dir")]
        configs = {entry.get("config_name", "default"): entry for entry in entries}
    except Exception:  # no README, or one that is no card, which fails in every way that YAML can
        configs = {}
    if not configs:
        if config:
            raise DataError(f"--dataset_config {config}: {name} has no README.md that declares configurations.")
        return None
    defaults = [key for key, entry in configs.items() if len(configs) == 1 or key == "default" or entry.get("default")]
    chosen = config or (defaults[0] if defaults else None)
    if chosen not in configs:
        said = f"{name} has the configurations {', '.join(configs)}; --dataset_config must be one of them"
        raise DataError(f"{said}, not {chosen}." if chosen else f"{said}.")
    return dict(configs[chosen])
