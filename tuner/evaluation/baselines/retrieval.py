"""How often the true answer is found among others: by a model's embeddings, and by the word counts they must beat.

One out of `group` (Henderson et al. 2019, "1-of-100 accuracy", https://arxiv.org/abs/1904.06472): the answers of the
group's other rows are the wrong candidates, so that no negatives need to be drawn. Chance is 1 / `group`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from tuner.errors import ArgumentError
from tuner.text.words import TOKEN_PATTERN

# Cosines closer than this are a tie: the last bits of float32 depend on the order of summation, and answers that are
# the same text must tie.
TIE = 1e-6


def tfidf_retrieval_at_1(queries: list[str], candidates: list[str], group: int = 64, *, fit_on: list[str]) -> float:
    """Share of queries whose own candidate is first of its group by the cosine of TF-IDF vectors.

    Args:
        queries, candidates: `candidates[i]` is the true answer to `queries[i]`.
        group: rows that compete, taken in order; what does not fill one is left out. Turns of one conversation belong
            in different groups (shuffle the rows): a query is the answer to the turn before, and would find itself.
        fit_on: training texts, for the words and their document frequencies, by scikit-learn's `TfidfVectorizer`. A
            text of unknown words is at cosine 0 from all.

    Returns:
        From 0 to 1. When the own candidate is one of k first ones, the query counts 1/k: what a fair draw would give.

    Raises:
        ArgumentError: scikit-learn is missing.
        ValueError: no words in `fit_on`.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError as error:
        raise ArgumentError("TF-IDF retrieval needs scikit-learn: pip install 'tuner[eval]'.") from error
    vectorizer = TfidfVectorizer(token_pattern=TOKEN_PATTERN).fit(fit_on)
    return _share_first(vectorizer.transform(queries), vectorizer.transform(candidates), group)


def embedding_retrieval_at_1(queries: torch.Tensor, candidates: torch.Tensor, group: int = 64) -> float:
    """The same by the cosine of embeddings (n, dim). A vector of zeros is at cosine 0 from all."""
    left, right = (normalize(vectors.double(), dim=1).cpu().numpy() for vectors in (queries, candidates))
    return _share_first(left, right, group)


def _share_first(left: Any, right: Any, group: int) -> float:
    """Of unit vectors (n, dim), as arrays or sparse."""
    shares = []
    for start in range(0, left.shape[0] - group + 1, group):
        cosines = left[start : start + group] @ right[start : start + group].T
        cosines = cosines if isinstance(cosines, np.ndarray) else cosines.toarray()
        firsts = cosines >= cosines.max(axis=1, keepdims=True) - TIE
        shares.append(firsts.diagonal() / firsts.sum(axis=1))
    return float(np.mean(shares))
