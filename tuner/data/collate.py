"""Rows to a batch of tensors: padded, or joined into one row without padding.

Padding goes to the right, so a causal model never sees it from a real token and needs no attention mask: without one,
attention takes the fast causal kernel. Joined and packed rows carry positions that start again with each conversation,
from which the mask is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class CausalCollator:
    """Pads `input_ids`, `labels` and, where rows have them, `position_ids` to the longest row; or joins the rows.

    Args:
        pad_token_id: what fills `input_ids`; labels are filled with -100.
        pad_to_multiple_of: round the length up: kernels are made anew for every length they meet, on CPUs too, so few
            different ones are faster than many short ones.
        padding_free: join the rows into one and let `position_ids` tell them apart.
    """

    pad_token_id: int
    pad_to_multiple_of: int = 64
    padding_free: bool = False

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Returns `(batch, time)` tensors, `tokens` `(batch,)`: each row's length without padding, and `rows`
        `(batch, documents)`: the source rows, -1 where there is none. Joined rows are a batch of one."""
        if self.padding_free:
            features = [_joined(features)]
        longest = max(len(f["input_ids"]) for f in features)
        time = -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of
        batch = {
            "input_ids": _filled(features, "input_ids", time, self.pad_token_id),
            "labels": _filled(features, "labels", time, -100),
            "tokens": torch.tensor([len(f["input_ids"]) for f in features]),
            "rows": _filled(features, "rows", max(len(f["rows"]) for f in features), -1),
        }
        if "position_ids" in features[0]:
            # Padding counts from 0 too: to the mask it is one more document.
            positions = torch.arange(time).repeat(len(features), 1)
            for row, feature in zip(positions, features, strict=True):
                length = len(feature["input_ids"])
                row[:length] = torch.as_tensor(feature["position_ids"])
                row[length:] = torch.arange(time - length)
            batch["position_ids"] = positions
        return batch


def _joined(features: list[dict[str, Any]]) -> dict[str, Any]:
    positions = [f["position_ids"] if "position_ids" in f else torch.arange(len(f["input_ids"])) for f in features]
    columns = {name: [f[name] for f in features] for name in ("input_ids", "labels", "rows")} | {
        "position_ids": positions
    }
    return {name: torch.cat([torch.as_tensor(part) for part in parts]) for name, parts in columns.items()}


def _filled(features: list[dict[str, Any]], name: str, width: int, value: int) -> torch.Tensor:
    out = torch.full((len(features), width), value, dtype=torch.long)
    for row, feature in zip(out, features, strict=True):
        row[: len(feature[name])] = torch.as_tensor(feature[name])
    return out
