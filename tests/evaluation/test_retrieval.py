"""The true answer is found when it is nearest, ties are shared, and words tell more than chance."""

import math
import re
import sys
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.text import samples
from tuner.errors import ArgumentError
from tuner.evaluation.baselines.retrieval import embedding_retrieval_at_1, tfidf_retrieval_at_1

EXAMPLES = settings(derandomize=True, database=None, deadline=None, max_examples=100)
WORDS = st.lists(st.sampled_from(["tea", "cup", "rain", "walk", "??"]), max_size=4).map(" ".join)


def brute_force(cosine, group):
    """Mean share, one comparison at a time; `cosine(i, j)` is of query i and candidate j."""

    def share(i):
        rivals = range(i - i % group, i - i % group + group)
        best = max(cosine(i, j) for j in rivals)
        first = [j for j in rivals if cosine(i, j) > best - 1e-6]
        return (i in first) / len(first)

    return share


def mean_share(cosine, rows, group):
    share = brute_force(cosine, group)
    counted = range(rows - rows % group)
    return sum(share(i) for i in counted) / len(counted)


def tfidf(texts, fit_on):
    """Term frequency times ln((1 + n) / (1 + df)) + 1, of words of two letters and more, at length 1."""
    words = [Counter(re.findall(r"\b\w\w+\b", text.lower())) for text in fit_on]
    documents = Counter(w for text in words for w in text)
    vectors = []
    for text in texts:
        counts = Counter(w for w in re.findall(r"\b\w\w+\b", text.lower()) if w in documents)
        vector = {w: n * (math.log((1 + len(fit_on)) / (1 + documents[w])) + 1) for w, n in counts.items()}
        norm = math.hypot(*vector.values()) or 1.0
        vectors.append({w: x / norm for w, x in vector.items()})
    return vectors


def dot(a, b):
    return sum(x * b.get(w, 0.0) for w, x in a.items())


@EXAMPLES
@given(st.lists(st.tuples(WORDS, WORDS), min_size=3, max_size=12), st.integers(1, 3))
def test_tfidf_is_the_textbooks(pairs, group):
    queries, candidates = (list(column) for column in zip(*pairs, strict=True))
    fit_on = ["tea in a cup", "a walk in the rain", "rain, rain", "more tea"]
    left, right = tfidf(queries, fit_on), tfidf(candidates, fit_on)
    expected = mean_share(lambda i, j: dot(left[i], right[j]), len(pairs), group)
    assert tfidf_retrieval_at_1(queries, candidates, group, fit_on=fit_on) == pytest.approx(expected)


@EXAMPLES
@given(st.integers(0, 1000), st.integers(2, 20), st.integers(1, 5), st.integers(1, 3))
def test_embeddings_are_compared_by_cosine(seed, rows, group, dim):
    group = min(group, rows)
    rng = np.random.default_rng(seed)
    # Few values, so that many tie, and some are zero.
    left, right = torch.from_numpy(rng.integers(-2, 3, (2, rows, dim)).astype(float))

    def unit(v):
        return v.numpy() / (math.hypot(*v) or 1.0)

    expected = mean_share(lambda i, j: unit(left[i]) @ unit(right[j]), rows, group)
    assert embedding_retrieval_at_1(left, right, group) == pytest.approx(expected)
    # Lengths of vectors mean nothing.
    longer = left * torch.from_numpy(rng.uniform(0.1, 10, (rows, 1)))
    assert embedding_retrieval_at_1(longer, right, group) == pytest.approx(expected)


def test_by_hand():
    both = torch.eye(2)
    assert embedding_retrieval_at_1(both, both, 2) == 1
    assert embedding_retrieval_at_1(both, both[[1, 0]], 2) == 0
    assert embedding_retrieval_at_1(both, both[[0, 0]], 2) == 0.5
    texts = ["some tea", "the rain"]
    assert tfidf_retrieval_at_1(texts, ["rain", "tea"], 1, fit_on=texts) == 1  # no rivals
    assert tfidf_retrieval_at_1(texts, ["rain", "tea"], 2, fit_on=texts) == 0
    assert tfidf_retrieval_at_1(texts, ["tea", "rain"], 2, fit_on=texts) == 1


def test_no_luck_by_order():
    """Nothing to go by is worth chance, wherever the own candidate stands."""
    assert tfidf_retrieval_at_1(["??"] * 64, ["tea"] * 64, fit_on=["tea"]) == pytest.approx(1 / 64)
    assert embedding_retrieval_at_1(torch.zeros(64, 3), torch.ones(64, 3)) == pytest.approx(1 / 64)


def test_the_same_answer_ties_whatever_the_order_of_summation():
    """Products of many numbers differ in their last bits from column to column."""
    generator = torch.Generator().manual_seed(0)
    queries, answer = torch.randn(64, 767, generator=generator), torch.randn(1, 767, generator=generator)
    noise = 1 + 1e-7 * torch.randn(64, 1, generator=generator)
    assert embedding_retrieval_at_1(queries, answer * noise) == pytest.approx(1 / 64)


def test_rows_compete_with_their_own_group_alone():
    rows = torch.eye(6)
    swapped = rows[[1, 0, 2, 3, 5, 4]]
    assert embedding_retrieval_at_1(rows, swapped, 2) == pytest.approx(1 / 3)
    assert embedding_retrieval_at_1(rows, rows[[2, 3, 0, 1, 4, 5]], 6) == pytest.approx(1 / 3)
    # Across groups of 2 nothing but the own candidate could be right, and it is not there: all tie at 0.
    assert embedding_retrieval_at_1(rows[:4], rows[[2, 3, 0, 1]], 2) == 0.5
    # What does not fill a group is left out.
    assert embedding_retrieval_at_1(rows[:5], swapped[:5], 2) == 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_tensors_of_any_kind(dtype):
    left = torch.randn(32, 16, dtype=dtype, generator=torch.Generator().manual_seed(0))
    right = left + 0.8 * torch.randn(32, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = embedding_retrieval_at_1(left, right, 16)
    assert 0.5 < found <= 1
    assert found == embedding_retrieval_at_1(left.double(), right.double(), 16)


def test_words_find_the_next_turn_of_real_conversations():
    pairs = [
        (before["content"], after["content"]) for turns in samples.conversations() for before, after in pairwise(turns)
    ]
    order = np.random.default_rng(0).permutation(len(pairs))  # rivals from other conversations
    queries, candidates = zip(*[pairs[i] for i in order], strict=True)
    found = tfidf_retrieval_at_1(list(queries), list(candidates), fit_on=samples.texts())
    assert 5 / 64 < found < 0.5
    wrong = tfidf_retrieval_at_1(list(queries), list(candidates[1:] + candidates[:1]), fit_on=samples.texts())
    assert wrong < 2 / 64
    # More rivals, fewer found.
    assert tfidf_retrieval_at_1(list(queries), list(candidates), 8, fit_on=samples.texts()) > 1.5 * found


def test_a_missing_scikit_learn_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)  # as if it were not installed
    with pytest.raises(ArgumentError, match=r"pip install 'tuner\[eval\]'"):
        tfidf_retrieval_at_1(["tea"], ["tea"], 1, fit_on=["tea"])
