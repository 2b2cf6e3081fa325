"""What a run chooses where nothing is said: attention, and whether a batch's rows are joined."""

from types import SimpleNamespace

import pytest

from tests.text import samples
from tuner.config.arguments import RecipeArguments
from tuner.train.prepare import load_model
from tuner.train.run import joins_rows


def model_of(**changes):
    args = RecipeArguments(preset="tiny", max_length=64, use_cpu=True, **changes)
    return args, load_model(args, samples.small())


@pytest.mark.parametrize(
    ("changes", "attention", "joined"),
    [
        ({}, "block_attention", True),
        ({"dropout": 0.1}, "block_attention", True),
        ({"attn_implementation": "sdpa"}, "sdpa", False),
        ({"attn_implementation": "eager", "padding_free": True}, "eager", True),
        ({"padding_free": False}, "block_attention", False),
        ({"torch_compile": True}, "block_attention", False),
    ],
)
def test_on_a_cpu(changes, attention, joined):
    args, model = model_of(**changes)
    assert model.config._attn_implementation == attention
    run = SimpleNamespace(args=args, training=SimpleNamespace(n_gpu=0))
    assert joins_rows(run, model) is joined


def test_rows_are_not_joined_where_one_process_feeds_several_devices():
    args, model = model_of()
    assert not joins_rows(SimpleNamespace(args=args, training=SimpleNamespace(n_gpu=2)), model)


def test_the_choice_is_not_saved_with_the_model(tmp_path):
    _, model = model_of()
    model.save_pretrained(tmp_path)
    assert "block_attention" not in (tmp_path / "config.json").read_text()
