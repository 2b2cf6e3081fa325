"""How often the true answer is found among others: a model's embeddings, and the word counts that they must beat.

One out of `group` (Henderson et al. 2019, "1-of-100 accuracy", https://arxiv.org/abs/1904.06472): the answers of the
group's other rows are the wrong candidates, so that no negatives need to be drawn. Chance is 1 / `group`.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from tuner.errors import ArgumentError, DataError

# Cosines closer than this are a tie: the last bits of float32 depend on the order of summation, and answers that are
# the same text must tie.
TIE = 1e-6


def tfidf_retrieval_at_1(queries: list[str], candidates: list[str], group: int = 64, *, fit_on: list[str]) -> float:
    """Share of queries whose own candidate is first of its group by the cosine of TF-IDF vectors.

    Args:
        queries, candidates: `candidates[i]` is the true answer to `queries[i]`.
        group: rows that compete, taken in order. What is left over at the end is left out, so that every row counted
            has equally many rivals. Turns of one conversation belong in different groups (shuffle the rows): a query
            is the answer to the turn before it, and would find itself.
        fit_on: training texts, for the words and their document frequencies. Words, weights and norm are the defaults
            of scikit-learn's `TfidfVectorizer`. A text of unknown words is at cosine 0 from all.

    Returns:
        From 0 to 1. When the own candidate is one of k first ones, the query counts 1/k: what a fair draw would give.

    Raises:
        ArgumentError: scikit-learn is missing.
        DataError: fewer rows than `group`.
        ValueError: a group below 1, not as many candidates as queries, or no words in `fit_on`.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError as error:
        raise ArgumentError("TF-IDF retrieval needs scikit-learn: pip install 'tuner[eval]'.") from error
    starts = _groups(len(queries), len(candidates), group)
    vectorizer = TfidfVectorizer().fit(fit_on)
    left, right = vectorizer.transform(queries), vectorizer.transform(candidates)
    return _share_first((left[i : i + group] @ right[i : i + group].T).toarray() for i in starts)


def embedding_retrieval_at_1(
    queries: torch.Tensor | np.ndarray, candidates: torch.Tensor | np.ndarray, group: int = 64
) -> float:
    """Share of queries whose own candidate is first of its group by the cosine of embeddings.

    Args:
        queries, candidates: (n, dim); `candidates[i]` is the true answer to `queries[i]`. A vector of zeros is at
            cosine 0 from all.
        group: as in `tfidf_retrieval_at_1`, and so is the share.

    Raises:
        DataError: fewer rows than `group`.
        ValueError: a group below 1, other shapes, or a value that is not finite.
    """
    left, right = _unit(queries), _unit(candidates)
    if left.shape[1:] != right.shape[1:]:
        raise ValueError(f"Queries have {left.shape[1]} dimensions and candidates {right.shape[1]}.")
    starts = _groups(len(left), len(right), group)
    return _share_first(left[i : i + group] @ right[i : i + group].T for i in starts)


def _unit(vectors: torch.Tensor | np.ndarray) -> np.ndarray:
    values = torch.as_tensor(vectors).detach().to("cpu", torch.float64).numpy()
    if values.ndim != 2:
        raise ValueError(f"Embeddings must be (n, dim); found {values.shape}.")
    if not np.isfinite(values).all():
        raise ValueError("An embedding holds NaN or infinity, which is close to nothing.")
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(norms > 0, norms, 1.0)


def _groups(num_queries: int, num_candidates: int, group: int) -> range:
    """Where each full group starts."""
    if group < 1:
        raise ValueError(f"group is {group}; it must be at least 1.")
    if num_queries != num_candidates:
        raise ValueError(f"{num_queries} queries and {num_candidates} candidates: each query needs its own answer.")
    if num_queries < group:
        raise DataError(f"{num_queries} pairs are too few for one out of {group}: give more, or a smaller group.")
    return range(0, num_queries - group + 1, group)


def _share_first(groups: Iterable[np.ndarray]) -> float:
    """Mean over the rows of all groups of cosines (group, group), the own candidate on the diagonal."""
    firsts = [cosines >= cosines.max(1, keepdims=True) - TIE for cosines in groups]
    return float(np.mean([first.diagonal() / first.sum(1) for first in firsts]))
