"""Models of GGUF files, dequantised once: transformers does it anew at every load, which takes half a minute for 135 M
parameters, and reads safetensors in a second."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.constants import HF_HOME


def cached_folder(file: Path, kind: Any, dtype: object) -> Path:
    """Where a GGUF file's model lies once it was dequantised: `$HF_HOME/tuner/<file>-<hash>`.

    The hash is of what the weights depend on: the file, by path, size and time of change, the class `kind` that loads
    it, the dtype, and transformers' version.
    """
    stat = file.stat()
    known = [str(file.resolve()), stat.st_size, stat.st_mtime_ns, kind.__name__, str(dtype), transformers.__version__]
    digest = hashlib.blake2b(json.dumps(known).encode(), digest_size=8).hexdigest()
    return Path(HF_HOME) / "tuner" / f"{file.stem}-{digest}"


def keep(model: Any, folder: Path) -> None:
    """Write a model to `folder`, whole or not at all; several processes may do so at once.

    Where it cannot be written, the next load dequantises again.
    """
    prefix, parent = f"{folder.name}.", folder.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=prefix, dir=parent, ignore_cleanup_errors=True) as staging:
            model.save_pretrained(staging)
            shutil.rmtree(folder, ignore_errors=True)  # it could not be read, or another process was faster
            os.rename(staging, folder)
    except OSError as error:
        if not folder.is_dir():
            warnings.warn(f"The dequantised model is not kept for the next time: {error}", stacklevel=2)
