"""The order of the training rows: a function of (seed, epoch) and nothing else.

A resumed run asks for its epoch's order and skips what it has seen. No generator's state is involved, so nothing has to
be restored at the right moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from datasets import Dataset
from torch.utils.data import Sampler

from tuner.data.draws import FILLER, Draws

# Batches that are sorted by length together: enough that a batch's rows are alike, few enough that order stays random.
MEGABATCH = 50


class EpochOrder(Sampler[int]):
    """Indices of one epoch.

    Args:
        dataset: rows of sequences (`input_ids`, `chosen_input_ids`, `first`, ...), or `Draws`, which are given by draw:
            a row's number grows with every epoch.
        strategy: `random`; `group_by_length`, rows of like length in one batch and the longest batch first, so that a
            run that cannot hold it fails at once; `sequential`.
        batch_size: rows in one forward pass, for `group_by_length`.
        epoch: tells the current epoch.
        processes: that share the rows. The last step's batches must be of one size, so that what is missing is filled
            with draws that do not count (`FILLER`), not with rows that come a second time.
        drop_last: leave out the rows of an incomplete last batch instead.
    """

    def __init__(
        self,
        dataset: Dataset | Draws,
        strategy: str,
        batch_size: int,
        seed: int,
        epoch: Callable[[], int],
        processes: int = 1,
        drop_last: bool = False,
    ):
        self.size = len(dataset)
        together, missing = batch_size * processes, -self.size % (batch_size * processes)
        self.filled = missing if processes > 1 and not drop_last else 0
        self.kept = self.size - self.size % together if drop_last else self.size
        self.counts_epochs = isinstance(dataset, Draws)
        self.strategy, self.batch_size, self.seed, self.epoch = strategy, batch_size, seed, epoch
        self.lengths: np.ndarray | None = None
        rows = dataset.rows.with_format(None) if isinstance(dataset, Draws) else dataset
        columns = [name for name in rows.column_names if name.endswith("input_ids") or name in ("first", "second")]
        if strategy == "group_by_length":
            self.lengths = np.sum([[len(ids) for ids in rows[name]] for name in columns], axis=0)

    def __len__(self) -> int:
        return self.kept + self.filled

    def __iter__(self) -> Iterator[int]:
        epoch = self.epoch()
        generator = np.random.default_rng([self.seed, epoch])
        order = np.arange(self.size) if self.strategy == "sequential" else generator.permutation(self.size)
        if self.lengths is not None:
            order = self._grouped(order, self.lengths, generator)
        order = (order + epoch * self.size if self.counts_epochs else order)[: self.kept]
        return iter([*order.tolist(), *[FILLER] * self.filled])

    def _grouped(self, order: np.ndarray, lengths: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        batches: list[np.ndarray] = []
        for start in range(0, self.size, self.batch_size * MEGABATCH):
            mega = order[start : start + self.batch_size * MEGABATCH]
            mega = mega[np.argsort(-lengths[mega], kind="stable")]
            batches += [mega[i : i + self.batch_size] for i in range(0, len(mega), self.batch_size)]
        # An incomplete batch stays last; all others change places.
        last = [batches.pop()] if len(batches[-1]) < self.batch_size else []
        batches = [batches[i] for i in generator.permutation(len(batches))]
        if batches:
            longest = max(range(len(batches)), key=lambda i: lengths[batches[i]].max())
            batches[0], batches[longest] = batches[longest], batches[0]
        return np.concatenate(batches + last)
