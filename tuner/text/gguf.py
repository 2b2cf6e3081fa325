"""What transformers makes of a GGUF file, made once: for 135 M parameters that takes half a minute, and eight seconds
for the tokenizer, where what is kept is read in one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.constants import HF_HOME


def read_once(file: Path, what: str, make: Callable[[], Any], read: Callable[[str], Any]) -> Any:
    """`read` of the folder that holds what `make` made; both give what has `save_pretrained`.

    The folder is `$HF_HOME/tuner/<file>-<hash>`, of the file's path, size and time, of transformers' version and of
    `what` is made. One that is damaged is made anew; where none can be written, the next call makes it again.
    """
    stat = file.stat()
    known = [str(file.resolve()), stat.st_size, stat.st_mtime_ns, what, transformers.__version__]
    digest = hashlib.blake2b(json.dumps(known).encode(), digest_size=8).hexdigest()
    folder = Path(HF_HOME) / "tuner" / f"{file.stem}-{digest}"
    if folder.is_dir():
        with contextlib.suppress(Exception):  # a damaged file fails in every way that Python can
            return read(str(folder))
    made = make()
    try:
        with new_folder(folder) as staging:
            made.save_pretrained(staging)
            shutil.rmtree(folder, ignore_errors=True)  # it could not be read, or another process was faster
    except OSError as error:
        if not folder.is_dir():
            warnings.warn(f"What was read of {file.name} is not kept for the next time: {error}", stacklevel=2)
    return made


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[str]:
    """A folder to write into, which becomes `folder` once it is whole, or is gone; there may be an empty one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    how: Any = {"prefix": f"{folder.name}.", "dir": folder.parent, "ignore_cleanup_errors": True}
    with tempfile.TemporaryDirectory(**how) as staging:
        os.chmod(staging, 0o755)
        yield staging
        os.rename(staging, folder)
