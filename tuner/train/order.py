"""The order of the training rows: a function of (seed, epoch) and nothing else.

A resumed run asks for its epoch's order and skips what it has seen. No generator's state is involved, so nothing has to
be restored at the right moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import Sampler

from tuner.data.draws import FILLER, Draws

# Batches that are sorted by length together: enough that a batch's rows are alike, few enough that order stays random.
MEGABATCH = 50


class EpochOrder(Sampler[int]):
    """Draws of one epoch: a row's number grows with every epoch.

    Args:
        draws: of rows of sequences (`input_ids`, `chosen_input_ids`, `first`, ...).
        strategy: `random`; `group_by_length`, rows of like length in one batch and the longest batch first, so that a
            run that cannot hold it fails at once; `sequential`.
        batch_size: rows in one forward pass, for `group_by_length`.
        epoch: tells the current epoch.
        processes: that share the rows. The last step's batches must be of one size, so that what is missing is filled
            with draws that do not count (`FILLER`), not with rows that come a second time.
        drop_last: leave out the rows of an incomplete last batch instead.
        shares: which draws an epoch has; without it, each row once.
    """

    def __init__(
        self,
        draws: Draws,
        strategy: str,
        batch_size: int,
        seed: int,
        epoch: Callable[[], int],
        processes: int = 1,
        drop_last: bool = False,
        shares: Callable[[int], np.ndarray] | None = None,
    ):
        self.strategy, self.batch_size, self.seed, self.epoch = strategy, batch_size, seed, epoch
        self.shares = shares
        self.size, together = len(draws), batch_size * processes
        self.kept = self.size - self.size % together if drop_last else self.size
        self.filled = -self.kept % together if processes > 1 else 0
        if strategy == "group_by_length":
            rows = draws.rows.with_format(None)
            columns = [name for name in rows.column_names if name.endswith("input_ids") or name in ("first", "second")]
            columns = columns or ["text"]  # what becomes tokens when it is drawn
            self.lengths = np.sum([[len(value) for value in rows[name]] for name in columns], axis=0)

    def __len__(self) -> int:
        return self.kept + self.filled

    def __iter__(self) -> Iterator[int]:
        epoch = self.epoch()
        generator = np.random.default_rng([self.seed, epoch])
        order = np.arange(self.size) if self.strategy == "sequential" else generator.permutation(self.size)
        order = order + epoch * self.size if self.shares is None else self.shares(epoch)[order]
        if self.strategy == "group_by_length":
            order = self._grouped(order, generator)
        return iter([*order[: self.kept].tolist(), *[FILLER] * self.filled])

    def _grouped(self, order: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        batches: list[np.ndarray] = []
        for mega in _cut(order, self.batch_size * MEGABATCH):
            batches += _cut(mega[np.argsort(-self.lengths[mega % self.size], kind="stable")], self.batch_size)
        # An incomplete batch stays last; all others change places.
        last = [batches.pop()] if len(batches[-1]) < self.batch_size else []
        batches = [batches[i] for i in generator.permutation(len(batches))]
        if batches:
            longest = np.argmax([self.lengths[batch % self.size].max() for batch in batches])
            batches[0], batches[longest] = batches[longest], batches[0]
        return np.concatenate(batches + last)


def _cut(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return np.split(rows, range(size, len(rows), size))
