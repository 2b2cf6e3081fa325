"""Spans are counted so that a perfect answer has all of them."""

from __future__ import annotations

import numpy as np
import pytest

from tuner.corpus.corrupt import IGNORED, corrupt_spans
from tuner.evaluation.baselines.spans import copy_spans, count_matches, spans_of, wanted_spans

SENTINELS = np.arange(1000, 1100)
KNOWN = set(SENTINELS.tolist())
END, PAD = 1, 0


@pytest.mark.parametrize("length", [3, 10, 63, 511])
@pytest.mark.parametrize("seed", range(5))
def test_the_target_itself_has_every_span(length, seed):
    ids = np.arange(2, length + 2)
    source, target = corrupt_spans(ids, np.random.default_rng(seed), SENTINELS)
    target = np.concatenate([target, [END], np.full(4, IGNORED)])
    wanted = wanted_spans(target, source, KNOWN)
    assert len(wanted) == np.isin(source, SENTINELS).sum()
    assert sorted(token for span in wanted.values() for token in span) == sorted(set(ids) - set(source))
    written = np.concatenate([[PAD], target[target != IGNORED], [PAD, PAD]])  # as `generate` gives it
    assert count_matches(spans_of(written, KNOWN), wanted) == len(wanted)


def test_a_span_counts_when_all_of_it_is_right():
    source = np.array([5, 1000, 6, 1001, 7, END])
    target = np.array([1000, 8, 9, 1001, 10, 1002, END])
    wanted = wanted_spans(target, source, KNOWN)
    assert wanted == {1000: (8, 9), 1001: (10,)}
    for answer, right in (
        ([1000, 8, 9, 1001, 11, 1002, END], 1),
        ([1000, 8, 1001, 10, 1002, END], 1),
        ([1000, 8, 9, 12, 1001, 10, 3, 1002], 0),
        ([8, 9, 10, END], 0),
    ):
        assert count_matches(spans_of(np.array(answer), KNOWN), wanted) == right


def test_copying_takes_what_stands_before_a_sentinel():
    source = np.array([5, 6, 1000, 7, 1001, END])
    assert copy_spans(source, {1000: (5, 6), 1001: (9,)}) == {1000: (5, 6), 1001: (7,)}
    assert copy_spans(source, {1000: (1, 2, 3)}) == {1000: (5, 6)}, "no more than there is"
