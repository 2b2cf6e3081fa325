"""What the cache of `datasets` has to know besides a function's name and arguments: the code it stands for."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

from datasets import Dataset


def cache_key(*sources: str) -> str:
    """A digest of source files, as one more argument of a mapped function: `datasets` knows a function by its name, and
    would go on with what the function's last form made."""
    return blake2b(b"".join(Path(source).read_bytes() for source in sources), digest_size=8).hexdigest()


def map_batches(
    rows: Dataset, function: Callable[..., Any], sources: list[str], arguments: dict[str, Any], **options: Any
) -> Dataset:
    """`rows.map` of a function of a batch and `arguments`, whose code is in `sources`."""
    how = {"function": function, "arguments": arguments, "cache_key": cache_key(*sources)}
    return rows.map(_call, batched=True, fn_kwargs=how, **options)


def _call(*batch: Any, function: Callable[..., Any], arguments: dict[str, Any], cache_key: str) -> Any:
    """`cache_key` is for the cache alone."""
    return function(*batch, **arguments)
