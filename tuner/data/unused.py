"""What of rows is not used: counted while they are read, and named once."""

from __future__ import annotations

import pyarrow.compute as pc
from datasets import Dataset, List, Value

# The column in which each row lists it, until it is counted.
UNUSED = "_unused"
FEATURE = List(Value("string"))


def counted(rows: Dataset) -> tuple[Dataset, dict[str, float]]:
    """Rows without the column `UNUSED`, and the share of them that have each of what it lists."""
    found = pc.list_flatten(rows.select_columns([UNUSED]).with_format("arrow")[:][UNUSED])
    counts = {entry["values"]: entry["counts"] for entry in pc.value_counts(found).to_pylist()}
    return rows.remove_columns(UNUSED), {key: counts[key] / len(rows) for key in sorted(counts)}


def sentence(unused: dict[str, float], name: str) -> str | None:
    """What to say of it, in a line; None where there is nothing."""
    listed = ", ".join(f"{key} ({100 * share:.3g} % of the rows)" for key, share in unused.items())
    return f"{name}: not used are {listed}." if unused else None
