"""Rows that know how often they were drawn, so that what is drawn at random with them is a function and not a state.

A draw is a row in an epoch: `epoch * rows + row`. Masks, spans and negatives of a draw come from a generator that is
seeded with it. A resumed run draws the same ones, in whatever process the row is collated.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset
from torch.utils.data import Dataset as TorchDataset

# The draw of a row that only fills a batch, and does not count.
FILLER = -1


class Draws(TorchDataset[dict[str, Any]]):
    """`rows` by draw: item `n` is row `n % len(rows)` with `row` and `draw` `n`. Up to a `length`, where one is given,
    come fillers."""

    def __init__(self, rows: Dataset, length: int | None = None):
        self.rows = rows.with_format("numpy")
        self.length, self.fills = len(rows) if length is None else length, length is not None

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: list[int]) -> list[dict[str, Any]]:
        """A batch, read at once: row by row, small rows take longer to read than a head takes to learn from them."""
        size = len(self.rows)
        columns = self.rows[[number % size for number in numbers]]
        return [
            {
                **{name: _own(column[place]) for name, column in columns.items()},
                "row": number % size,
                "draw": FILLER if self.fills and number >= size else number,
            }
            for place, number in enumerate(numbers)
        ]


def _own(value: Any) -> Any:
    """What a batch of rows holds of one, to be written to: Arrow's memory may not be."""
    return value.copy() if isinstance(value, np.ndarray) else value


def generator(seed: int, draw: int) -> np.random.Generator:
    """The random numbers of a draw."""
    return np.random.default_rng([seed, draw % 2**63])
