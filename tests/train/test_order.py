"""The order of the rows is a function of the seed and the epoch."""

import numpy as np
import pytest
from datasets import Dataset

from tuner.data.draws import Draws
from tuner.train.order import EpochOrder

LENGTHS = np.random.default_rng(0).integers(1, 200, size=1234).tolist()
ROWS = Dataset.from_dict({"input_ids": [[0] * n for n in LENGTHS]})


def order(strategy="random", seed=1, epoch=0, batch=8):
    return [draw % len(ROWS) for draw in EpochOrder(Draws(ROWS), strategy, batch, seed, lambda: epoch)]


@pytest.mark.parametrize("strategy", ["random", "group_by_length", "sequential"])
def test_every_row_comes_once(strategy):
    assert sorted(order(strategy)) == list(range(len(ROWS)))


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_seed_and_epoch_decide(strategy):
    assert order(strategy) == order(strategy)
    assert order(strategy) != order(strategy, seed=2)
    assert order(strategy) != order(strategy, epoch=1)


def test_grouping_by_length_wastes_little_and_begins_with_the_longest():
    def padding(indices):
        batches = [[LENGTHS[i] for i in indices[k : k + 8]] for k in range(0, len(indices), 8)]
        return sum(max(b) * len(b) - sum(b) for b in batches) / sum(LENGTHS)

    grouped = order("group_by_length")
    assert padding(grouped) < 0.1 < padding(order("random"))
    assert max(LENGTHS[i] for i in grouped[:8]) == max(LENGTHS)
    assert len(grouped[-(len(ROWS) % 8) :]) == len(ROWS) % 8


@pytest.mark.parametrize("columns", [("chosen_input_ids", "rejected_input_ids"), ("first", "second")])
def test_all_sequences_of_a_row_are_its_length(columns):
    ids = [[0] * n for n in LENGTHS]
    rows = Dataset.from_dict({columns[0]: ids, columns[1]: ids, "chosen_labels": ids[::-1]})
    assert list(EpochOrder(Draws(rows), "group_by_length", 8, 1, lambda: 0)) == order("group_by_length")
