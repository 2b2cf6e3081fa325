"""The shape of a new model: a preset's or a file's, with fields replaced."""

import json
from types import SimpleNamespace

import pytest

from tests.model.helpers import tiny_decoder
from tests.text import samples
from tuner.errors import ModelError
from tuner.loading.checkpoints import beyond_positions
from tuner.loading.shapes import base_shape, new_shape
from tuner.model import PRESETS, TunerDecoderConfig


def arguments(**given):
    defaults = {"preset": None, "model_config": None, "config_overrides": None, "max_length": 64, "dropout": 0.0}
    return SimpleNamespace(**(defaults | given))


def test_a_saved_configuration_is_a_shape(tmp_path):
    """As `save_pretrained` writes it; the tokenizer's ids and size count, not its own."""
    config = TunerDecoderConfig(hidden_size=64, num_hidden_layers=3, num_attention_heads=2, vocab_size=77)
    config.save_pretrained(tmp_path)
    tokenizer = samples.small()
    given = arguments(model_config=str(tmp_path / "config.json"), config_overrides="intermediate_size=96")
    shape = new_shape(given, tokenizer)
    assert (shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"]) == (64, 96, len(tokenizer))
    assert shape["eos_token_id"] == tokenizer.eos_token_id
    TunerDecoderConfig(**shape)


def test_without_a_file_it_is_a_preset():
    assert base_shape(arguments()) == PRESETS["tiny"]
    assert base_shape(arguments(preset="small", config_overrides="hidden_act=relu2")) == {
        **PRESETS["small"],
        "hidden_act": "relu2",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"config\.json: cannot be read: No such file"),
        ("{", "not JSON: "),
        ("[1]", "an object of fields is expected"),
        (json.dumps({"hiden_size": 3}), r"'hiden_size' is no field of our models\. Did you mean hidden_size"),
    ],
)
def test_a_file_that_is_no_shape(tmp_path, text, message):
    file = tmp_path / "config.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ModelError, match=message):
        base_shape(arguments(model_config=str(file)))
    with pytest.raises(ModelError, match="--preset and --model_config are two shapes"):
        base_shape(arguments(model_config=str(file), preset="tiny"))


def test_sequences_beyond_the_positions_are_said():
    model = tiny_decoder(max_position_embeddings=128)
    assert beyond_positions(model, 128) is None
    said = (
        "--max_length 1,129 is beyond the 128 positions that the model was trained on: it has never seen what stands "
    )
    assert beyond_positions(model, 1129) == said + "behind them."
