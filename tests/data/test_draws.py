"""A draw is a row in an epoch, and what is random with it depends on nothing else."""

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.data.draws import FILLER, Draws, generator
from tuner.train.order import EpochOrder

ROWS = Dataset.from_dict({"input_ids": [[number] * (number % 5 + 1) for number in range(23)], "name": list("x" * 23)})
seeded = settings(derandomize=True, database=None, deadline=None, max_examples=100)


def order(rows, epoch, strategy="random", seed=1):
    return list(EpochOrder(rows, strategy, 4, seed, lambda: epoch))


def test_a_draw_is_a_row_and_a_number():
    draws = Draws(ROWS)
    assert len(draws) == 23
    for number in (0, 22, 23, 46, 23 * 10**6 + 5):
        item = draws[number]
        assert (item["row"], item["draw"]) == (number % 23, number)
        assert item["input_ids"].tolist() == ROWS[number % 23]["input_ids"] and item["name"] == "x"


def test_integers_come_wide_enough_for_tensors():
    small = Dataset.from_dict({"input_ids": [[1, 2], [3, 4]]}, Features({"input_ids": List(Value("int32"))}))
    item = Draws(small)[1]
    assert item["input_ids"].dtype == np.int64 and item["input_ids"].tolist() == [3, 4]


@pytest.mark.parametrize("size", [1, 4, 23])
def test_a_batch_is_read_at_once_and_is_the_rows_one_by_one(size, monkeypatch):
    wide = ROWS.map(lambda row: {"rows": [[len(row["input_ids"])]], "reference": [0.5] * 3, "label": 7})
    wide = wide.cast_column("input_ids", List(Value("int32")))
    draws, numbers = Draws(wide, 25), [*range(20, 20 + size)]
    single = [draws[number] for number in numbers]
    reads = []
    monkeypatch.setattr(draws, "rows", Reads(draws.rows, reads))
    for one, other in zip(draws.__getitems__(numbers), single, strict=True):
        assert list(one) == list(other)
        for name, value in other.items():
            assert np.asarray(one[name]).dtype == np.asarray(value).dtype and np.array_equal(one[name], value)
            assert not isinstance(value, np.ndarray) or (one[name].flags.writeable and one[name].base is None)
    assert len(reads) == 1


class Reads:
    def __init__(self, rows, reads):
        self.rows, self.reads = rows, reads

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, numbers):
        self.reads.append(numbers)
        return self.rows[numbers]


@pytest.mark.parametrize("strategy", ["random", "sequential", "group_by_length"])
@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_an_epoch_draws_every_row_once_under_numbers_of_its_own(strategy, epoch):
    found = order(Draws(ROWS), epoch, strategy)
    assert sorted(found) == list(range(23 * epoch, 23 * (epoch + 1)))


def test_what_fills_a_batch_is_no_draw():
    draws = Draws(ROWS, 26)
    assert [draws[number]["draw"] for number in range(20, 26)] == [20, 21, 22, FILLER, FILLER, FILLER]
    assert [draws[number]["row"] for number in range(20, 26)] == [20, 21, 22, 0, 1, 2]
    assert len(draws) == 26 and len(Draws(ROWS, 23)) == 23
    assert Draws(ROWS)[23]["draw"] == 23, "without a length it is the next epoch"


@seeded
@given(st.integers(0, 2**32 - 1), st.integers(-1, 2**62))
def test_the_numbers_are_a_function_of_seed_and_draw(seed, draw):
    one, other = generator(seed, draw), generator(seed, draw)
    one.random(3)
    assert generator(seed, draw).random(5).tolist() == other.random(5).tolist()
    for near in (generator(seed, draw + 1), generator((seed + 1) % 2**32, draw)):
        assert near.random(5).tolist() != generator(seed, draw).random(5).tolist()


def test_no_two_draws_are_alike():
    found = {tuple(generator(seed, draw).integers(2**62, size=2)) for seed in range(20) for draw in range(-1, 500)}
    assert len(found) == 20 * 501


def test_neighbouring_draws_are_independent():
    first = np.array([generator(7, draw).random(4) for draw in range(4000)])
    assert np.abs(first.mean(axis=0) - 0.5).max() < 5 * np.sqrt(1 / 12 / 4000)
    correlation = np.corrcoef(np.concatenate([first[:-1], first[1:]], axis=1).T)
    assert np.abs(correlation - np.eye(8)).max() < 5 / np.sqrt(4000)


def collated(rows):
    return [(row["row"], row["draw"], generator(3, row["draw"]).random()) for row in rows]


def test_another_process_draws_the_same():
    def loaded(workers):
        draws = Draws(ROWS)
        sampler = EpochOrder(draws, "random", 4, 1, lambda: 2)
        loader = torch.utils.data.DataLoader(draws, 4, sampler=sampler, collate_fn=collated, num_workers=workers)
        return list(loader)

    assert loaded(0) == loaded(2)


def test_rows_of_pairs_can_be_grouped_by_length():
    pairs = Dataset.from_dict({"first": [[1], [1, 2]] * 8, "second": [[3], [4]] * 8, "document": list(range(16))})
    assert sorted(order(Draws(pairs), 0, "group_by_length")) == list(range(16))
