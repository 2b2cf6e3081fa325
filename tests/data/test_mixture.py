"""Several data sets: what they are, and which examples an epoch has of each."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from tuner.config.arguments import RecipeArguments
from tuner.data.mixture import Shares, Source, data_sources, names_of
from tuner.errors import ArgumentError


def arguments(*names, weights=(), config=None, mapping=None):
    return SimpleNamespace(
        dataset_name=list(names), dataset_weights=list(weights), dataset_config=config, column_mapping=mapping
    )


def test_shares_are_kept_and_rows_of_a_set_are_drawn_alike():
    sizes, weights = (10, 400, 90), (0.5, 0.3, 0.2)
    shares = Shares(sizes, weights, seed=3)
    drawn, seen = Counter(), set[int]()
    for epoch in range(40):
        draws = shares(epoch)
        assert len(seen & set(draws.tolist())) == 0
        seen.update(draws.tolist())
        found = draws % 500
        assert len(found) == 500
        sets = np.searchsorted(np.cumsum(sizes), found, side="right")
        assert np.bincount(sets).tolist() == [250, 150, 100]
        drawn.update(found.tolist())
    for first, size in zip((0, 10, 410), sizes, strict=True):
        times = [drawn[number] for number in range(first, first + size)]
        assert max(times) - min(times) <= 1 and min(times) > 0


def test_an_epoch_is_a_function_of_seed_and_epoch():
    """Of nothing that another epoch left behind; and a set's order is a new one each time it is through."""
    one, other = Shares((7, 5), (0.75, 0.25), 0), Shares((7, 5), (0.75, 0.25), 0)
    whole = [one(epoch).tolist() for epoch in range(6)]
    assert [other(epoch).tolist() for epoch in reversed(range(6))] == whole[::-1]
    assert Shares((7, 5), (0.75, 0.25), 1)(0).tolist() != whole[0]
    first = [number % 12 for epoch in whole for number in epoch if number % 12 < 7]
    assert sorted(first[:7]) == sorted(first[7:14]) == list(range(7)) and first[:7] != first[7:14]


@pytest.mark.parametrize("weights", [(1 / 3, 1 / 3, 1 / 3), (0.999, 0.0005, 0.0005), (0.1, 0.2, 0.7)])
def test_whole_examples_add_up(weights):
    shares = Shares((11, 13, 17), weights, 0)
    assert shares.counts.sum() == 41 and all(abs(shares.counts - np.array(weights) * 41) < 1)


def test_names_weights_and_objects():
    assert data_sources(arguments("a", "b")) == [Source("a"), Source("b")]
    assert data_sources(arguments("a", "b", weights=(1, 3))) == [Source("a", weight=0.25), Source("b", weight=0.75)]
    mapping = '{"What, exactly?": "prompt"}'
    row = f'{{"name": "b.jsonl", "weight": 0.5, "column_mapping": {mapping}}}'
    assert data_sources(arguments('{"name": "a", "weight": 1}', row, config="c")) == [
        Source("a", "c", None, 1 / 1.5),
        Source("b.jsonl", "c", mapping, 0.5 / 1.5),
    ]
    assert [Source(name).short for name in ("builtin:chitchat", "x/chats.jsonl.gz", "org/name")] == [
        "chitchat",
        "chats",
        "name",
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (arguments(), "name each data set once, and one at least"),
        (arguments("a", "a"), "--dataset_name a a: name each data set once"),
        (arguments("a", "b", weights=(1,)), "--dataset_weights 1: one above 0 for each of a, b is needed"),
        (arguments("a", "b", weights=(1, 0)), "--dataset_weights 1 0: one above 0"),
        (arguments("a", "b", weights=(1, float("nan"))), "--dataset_weights 1 nan: one above 0"),
        (arguments("a", weights=(1,)), "a is the only data set"),
        (arguments("a", '{"name": "b", "weight": 1}'), "--dataset_weights none 1: one above 0 for each of a, b"),
        (arguments('{"name": "b", "wieght": 1}'), r"'wieght' is none of name, .*\. Did you mean weight"),
        (arguments('{"name": "b", "weight": "1"}'), "a 'weight' is a number"),
        (arguments("{broken"), "--dataset_name {broken: "),
    ],
)
def test_what_does_not_go_together(given, message):
    with pytest.raises(ArgumentError, match=message):
        data_sources(given)


def test_one_name_is_a_list_of_one():
    args = RecipeArguments(dataset_name="a.jsonl")
    assert (args.dataset_name, names_of(args), args.values()["dataset_name"]) == (["a.jsonl"], "a.jsonl", "a.jsonl")
    args = RecipeArguments(dataset_name=["a.jsonl", "b.jsonl"])
    assert (names_of(args), args.values()["dataset_name"]) == ("a.jsonl, b.jsonl", ["a.jsonl", "b.jsonl"])
    args = RecipeArguments(dataset_name='{"name": "/home/me/a.jsonl", "column_mapping": {"question": "prompt"}}')
    assert names_of(args) == "/home/me/a.jsonl"
