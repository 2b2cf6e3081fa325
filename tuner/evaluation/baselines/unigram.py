"""The unigram model, and how much text the baselines are counted on."""

from __future__ import annotations

import numpy as np
from datasets import Dataset

# Training text, in bytes, above which no baseline is fitted: it would take longer than it tells.
LARGEST = 20_000_000


def is_small(rows: Dataset) -> bool:
    """Whether the training text is small enough to fit a baseline to it; says so where it is not."""
    if rows.data.nbytes <= LARGEST:
        return True
    print(f"No baseline: the training text has {rows.data.nbytes / 1e6:,.0f} MB, more than {LARGEST / 1e6:,.0f}.")
    return False


def unigram_loss(train: Dataset, held_out: Dataset, vocab_size: int) -> float:
    """Mean negative log-likelihood, in nats a token, of a model that knows only how frequent each answer token is.

    Frequencies are those of the supervised training tokens, plus one each (Laplace), so that no token is impossible.
    """
    counts = np.bincount(_supervised(train), minlength=vocab_size) + 1.0
    return float(-np.log(counts / counts.sum())[_supervised(held_out)].mean())


def _supervised(rows: Dataset) -> np.ndarray:
    labels = rows.with_format("arrow")[:]["labels"].combine_chunks().flatten().to_numpy()
    return labels[labels != -100]
