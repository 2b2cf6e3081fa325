"""Examples to a batch of tensors: padded, or joined into one row without padding.

Padding goes to the right. A causal model never sees it from a real token and needs no attention mask: without one,
attention takes the fast causal kernel. Joined and packed rows carry positions that start again with each sequence, from
which the mask is made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

IGNORED = -100  # the label of a token that is not learnt


def pad(sequences: Sequence[Any], value: int, multiple: int = 1, most: int | None = None) -> torch.Tensor:
    """Sequences of integers as rows of one length, filled up with `value` on the right: `(rows, time)`, int64.

    The longest's length is rounded up to a multiple, but not beyond `most`: kernels are made anew for every length they
    meet, on CPUs too, so few different ones are faster than many short ones.
    """
    longest = max(len(sequence) for sequence in sequences)
    time = -(-longest // multiple) * multiple
    out = torch.full((len(sequences), time if most is None else max(min(time, most), longest)), value)
    for row, sequence in zip(out, sequences, strict=True):
        row[: len(sequence)] = torch.as_tensor(sequence)
    return out


def alike(lengths: Sequence[int], size: int, device: torch.device, padded: float = 1.25) -> Iterator[list[int]]:
    """Rows in batches of at most `size`, the longest first. On a CPU, whose time goes by tokens, none is padded to more
    than `padded` times its length; elsewhere it goes by batches."""
    most = padded if device.type == "cpu" else math.inf
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if batch and (len(batch) == size or lengths[batch[0]] > most * lengths[row]):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def collate_causal(
    features: Sequence[dict[str, Any]], pad_token_id: int, padding_free: bool = False, multiple: int = 64
) -> dict[str, torch.Tensor]:
    """A batch for a causal model of rows of `input_ids`, `labels`, `rows` (the source rows) and, when packed,
    `position_ids`; joined into one row where `padding_free`, which `position_ids` then tell apart.

    Returns:
        `(batch, time)` tensors, `tokens` `(batch,)`: each row's length without padding, and `rows` `(batch, sources)`,
        -1 where there is none.
    """
    if padding_free:
        each = [{"position_ids": torch.arange(len(f["input_ids"])), **f} for f in features]
        names = ("input_ids", "labels", "rows", "position_ids")
        features = [{name: torch.cat([torch.as_tensor(f[name]) for f in each]) for name in names}]
    batch = {
        "input_ids": pad([f["input_ids"] for f in features], pad_token_id, multiple),
        "labels": pad([f["labels"] for f in features], IGNORED, multiple),
        "tokens": torch.tensor([len(f["input_ids"]) for f in features]),
        "rows": pad([f["rows"] for f in features], -1),
    }
    if "position_ids" in features[0]:
        # Padding counts from 0 too: to the mask it is one more sequence.
        time = batch["input_ids"].shape[1]
        positions = (torch.as_tensor(f["position_ids"]) for f in features)
        batch["position_ids"] = torch.stack([torch.cat([row, torch.arange(time - len(row))]) for row in positions])
    return batch
