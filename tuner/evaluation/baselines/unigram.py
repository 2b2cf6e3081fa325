"""What a trained model is measured against."""

from __future__ import annotations

import numpy as np
from datasets import Dataset


def unigram_loss(train: Dataset, held_out: Dataset, vocab_size: int) -> float:
    """Mean negative log-likelihood, in nats a token, of a model that knows only how frequent each answer token is.

    Frequencies are those of the supervised training tokens, plus one each (Laplace), so that no token is impossible.
    """
    counts = np.bincount(_supervised(train), minlength=vocab_size) + 1.0
    return float(-np.log(counts / counts.sum())[_supervised(held_out)].mean())


def _supervised(rows: Dataset) -> np.ndarray:
    labels = rows.with_format("arrow")[:]["labels"].combine_chunks().flatten().to_numpy()
    return labels[labels != -100]
