"""Checkpoints that are whole or absent.

A checkpoint is written into a staging folder; every file is synced to the disk; a manifest with each file's size and
SHA-256 is written last; then one rename makes it appear under its name. A reader trusts it only when the manifest
matches the files: a broken one, after a kill or on a damaged disk, is named, and the previous one is used.

Left out on purpose: asynchronous saving, which would hold a second state of the optimizer in memory to gain seconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from tuner.errors import CheckpointError

MANIFEST = "manifest.json"
STAGING = ".saving"  # where in a run's folder a checkpoint is written before it is one


def discard_staging(output_dir: Path) -> None:
    """Remove what an interrupted save left behind."""
    shutil.rmtree(output_dir / STAGING, ignore_errors=True)


def commit(staged: Path, final: Path) -> None:
    """Make a fully written folder a checkpoint: sync, manifest, rename.

    Raises:
        OSError: the disk is full or failing; nothing has appeared under the final name.
    """
    files = {}
    for path in sorted(p for p in staged.rglob("*") if p.is_file()):
        _sync(path)
        files[str(path.relative_to(staged))] = {"bytes": path.stat().st_size, "sha256": _hash(path)}
    manifest = staged / MANIFEST
    manifest.write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")
    _sync(manifest)
    _sync(staged)
    if final.exists():  # a broken one of the same step, or a re-save of it
        shutil.rmtree(final)
    os.rename(staged, final)
    _sync(final.parent)


@contextmanager
def reporting_failures(output_dir: Path, name: str) -> Iterator[None]:
    """Turn a failure to write `name` into one `CheckpointError` that says what is still whole; half-written files are
    removed."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch's writer stumbles over a full disk with a message of its own.
        full = output_dir.exists() and shutil.disk_usage(output_dir).free < 2**20
        discard_staging(output_dir)
        why = f"{'No space left on device' if full else error}. {last_saved(output_dir)}"
        raise CheckpointError(f"{name} could not be saved in {output_dir}: {why}") from error


def defect(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None when it is whole."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its {MANIFEST} cannot be read ({error})"
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {expected['bytes']}"
        if _hash(path) != expected["sha256"]:
            return f"{name} does not match its hash"
    return None


def list_checkpoints(output_dir: Path) -> list[Path]:
    """The folders named `checkpoint-<step>`, newest first, whole or not."""
    found = [p for p in output_dir.glob("checkpoint-*") if p.is_dir() and re.fullmatch(r"checkpoint-\d+", p.name)]
    return sorted(found, key=lambda path: int(path.name.partition("-")[2]), reverse=True)


def last_checkpoint(output_dir: Path) -> Path | None:
    """The newest whole checkpoint, or None. A broken one is skipped with a warning that says what is wrong with it."""
    for folder in list_checkpoints(output_dir):
        reason = defect(folder)
        if reason is None:
            return folder
        warnings.warn(f"{folder} is not a whole checkpoint: {reason}. Trying the one before it.", stacklevel=2)
    return None


def last_saved(output_dir: Path) -> str:
    """What a run that fails says of `last_checkpoint`."""
    found = last_checkpoint(output_dir)
    return f"The last whole checkpoint is {found}." if found else "There is no checkpoint yet."


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
