"""Files of a data set on the Hub that are JSON, CSV or text, to be read as those of this machine are.

`datasets` finds them and says which split they are of. It reads them itself where more than their names says how: a
separator, a field, named classes.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import hf_hub_download
from huggingface_hub.constants import HF_HOME

from tuner.data.local_files import Files, file_format
from tuner.errors import notice, one_line

# Formats that `datasets` guesses types of.
GUESSED = ("json", "csv", "tsv", "text")
# Files that are fetched at once.
TOGETHER = 8


def hub_files(name: str, config: str | None, fetch: bool = True) -> Files | None:
    """The files of each split; None where `datasets` is to read them. Where the Hub does not give them, those that were
    fetched before, which is said. Raises what `datasets` and the Hub's client raise.

    Args:
        fetch: else they stay where they are: `tuner.data.read_files` reads `hf:/datasets/<name>@<commit>/<file>`.
    """
    try:
        builder = datasets.load_dataset_builder(name, config)
        if not builder.config.data_files:  # it is the cache of `datasets`, for there is no network
            return _kept(name, config)
        found = _listed(builder, name)
        if found and fetch:
            with ThreadPoolExecutor(TOGETHER) as pool:
                found = {split: list(pool.map(partial(_fetched, name), files)) for split, files in found.items()}
            _keep(name, config, found)
    except datasets.exceptions.DatasetNotFoundError:
        raise
    except Exception as error:  # no network, which is of many types, or nothing in the cache of `datasets`
        found = _kept(name, config)
        if found is None:
            raise
        notice(f"{name}: as it was fetched before, for the Hub did not give it: {one_line(error)}")
    return found


def _listed(builder: Any, name: str) -> Files | None:
    """Of a path's two slashes behind the colon one stays."""
    found = {str(split): [Path(url) for url in urls] for split, urls in builder.config.data_files.items()}
    files = [file for each in found.values() for file in each]
    ours = all(f"{file}".startswith(f"hf:/datasets/{name}@") and file_format(file) in GUESSED for file in files)
    return found if files and ours and not _is_declared(builder, files) else None


def _fetched(name: str, file: Path) -> Path:
    commit, _, within = str(file).removeprefix(f"hf:/datasets/{name}@").partition("/")
    return Path(hf_hub_download(name, within, repo_type="dataset", revision=commit))


def _record(name: str, config: str | None) -> Path:
    """Which files were fetched, whole."""
    return Path(HF_HOME, "tuner", "hub_files", blake2b(f"{name} {config}".encode(), digest_size=16).hexdigest())


def _keep(name: str, config: str | None, found: Files) -> None:
    record = _record(name, config)
    record.parent.mkdir(parents=True, exist_ok=True)
    unfinished = record.with_suffix(f".{os.getpid()}")
    listed = {split: list(map(str, files)) for split, files in found.items()}
    unfinished.write_text(json.dumps(listed), encoding="utf-8")
    unfinished.replace(record)


def _kept(name: str, config: str | None) -> Files | None:
    record = _record(name, config)
    if not record.is_file():
        return None
    listed = json.loads(record.read_text(encoding="utf-8"))
    found = {split: list(map(Path, files)) for split, files in listed.items()}
    return found if all(file.is_file() for files in found.values() for file in files) else None


def _is_declared(builder: Any, files: list[Path]) -> bool:
    """Whether the data set's card says how its files are read, or has names for their classes."""
    tabs = all(file_format(file) == "tsv" for file in files)
    plain = type(builder.config)(**({"sep": "\t"} if tabs else {}))
    own = {field.name for field in fields(datasets.BuilderConfig)}
    options = [field.name for field in fields(builder.config) if field.name not in own]
    changed = any(getattr(builder.config, name) != getattr(plain, name) for name in options)
    return changed or "ClassLabel" in repr(builder.info.features)
