"""The decoder's configuration: presets, defaults, and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tests.model.helpers import SHAPE, tiny_config, tiny_decoder, token_ids
from tuner.model import PRESETS, TunerDecoderConfig, TunerDecoderForCausalLM

ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 500000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
    "yarn": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32},
    "longrope": {
        "rope_type": "longrope", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32,
        "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 2.5, 3.0, 3.5],
    },
    "llama3": {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "proportional": {"rope_type": "proportional", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
}  # fmt: skip


@pytest.mark.parametrize(("name", "millions"), [("tiny", 5.5), ("small", 30), ("base", 126)])
def test_preset_sizes(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = TunerDecoderForCausalLM(TunerDecoderConfig.from_preset(name))
    # `parameters()` counts the tied matrix once.
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(millions * 1e6, rel=0.05)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_take_overrides_and_stay_as_they_are(name: str) -> None:
    before = json.dumps(PRESETS)
    config = TunerDecoderConfig.from_preset(name, vocab_size=99, hidden_dropout=0.1)
    assert (config.vocab_size, config.hidden_dropout) == (99, 0.1)
    assert config.hidden_size == PRESETS[name]["hidden_size"]
    # Kaplan's flat range, and whole groups of query heads: what the comment over the presets says.
    assert 40 <= config.hidden_size / config.num_hidden_layers <= 64
    assert config.num_attention_heads / config.num_key_value_heads in (2, 3)
    assert json.dumps(PRESETS) == before


def test_unknown_preset() -> None:
    with pytest.raises(KeyError, match="huge"):
        TunerDecoderConfig.from_preset("huge")


def test_defaults_become_numbers() -> None:
    config = TunerDecoderConfig(hidden_size=96, num_attention_heads=6)
    assert (config.num_key_value_heads, config.head_dim) == (6, 16)
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}
    given_ = TunerDecoderConfig(hidden_size=96, num_attention_heads=6, num_key_value_heads=1, head_dim=32)
    assert (given_.num_key_value_heads, given_.head_dim) == (1, 32)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        *(
            ({name: 0}, f"{name} must be at least 1, not 0")
            for name in (
                "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                "num_key_value_heads", "head_dim", "max_position_embeddings",
            )
        ),
        ({"num_hidden_layers": -1}, "num_hidden_layers must be at least 1, not -1"),
        ({"hidden_size": 2}, "head_dim must be at least 1, not 0"),  # two dimensions over four heads
        ({"num_key_value_heads": 3}, r"num_attention_heads \(4\) .* multiple of num_key_value_heads \(3\)"),
        ({"num_key_value_heads": 8}, r"num_attention_heads \(4\) .* multiple of num_key_value_heads \(8\)"),
        ({"head_dim": 3}, r"head_dim \(3\) must be even"),
        ({"hidden_size": 36}, r"head_dim \(9\) must be even"),
        ({"attention_dropout": 1.0}, r"attention_dropout must lie in \[0, 1\), not 1.0"),
        ({"hidden_dropout": -0.1}, r"hidden_dropout must lie in \[0, 1\), not -0.1"),
        ({"hidden_dropout": float("nan")}, "hidden_dropout must lie in"),
        ({"pad_token_id": 101}, r"pad_token_id \(101\) must be below vocab_size \(101\)"),
        ({"hidden_act": "swoosh"}, "hidden_act 'swoosh' is none of .*silu"),
        ({"rope_parameters": {"rope_type": "spiral"}}, "rope_type 'spiral' is none of default, .*yarn"),
        # Exists in transformers, but only for image models.
        ({"rope_parameters": {"rope_type": "axial"}}, "rope_type 'axial' is none of"),
    ],
)  # fmt: skip
def test_impossible_combinations_are_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_config(**overrides)


@pytest.mark.parametrize("rope_type", ["linear", "llama3"])
def test_incomplete_rope_parameters_are_refused(rope_type: str) -> None:
    with pytest.raises(KeyError, match=f"Missing required keys .*{rope_type}.*factor"):
        tiny_config(rope_parameters={"rope_type": rope_type})


@pytest.mark.parametrize(
    ("field", "value"), [("hidden_size", 32.0), ("hidden_size", "32"), ("use_cache", "yes"), ("rope_parameters", 1e4)]
)
def test_wrong_types_are_refused_at_construction_and_on_assignment(field: str, value: object) -> None:
    """Annotations kept as strings (`from __future__ import annotations`) would switch this check off in silence."""
    with pytest.raises(StrictDataclassFieldValidationError, match=field):
        tiny_config(**{field: value})
    with pytest.raises(StrictDataclassFieldValidationError, match=field):
        setattr(tiny_config(), field, value)


def test_whole_number_dropouts_from_yaml_pass() -> None:
    assert tiny_config(hidden_dropout=0, attention_dropout=0).hidden_dropout == 0


def test_saved_configuration_is_the_same(tmp_path: Any) -> None:
    config = tiny_config(
        attention_bias=True, mlp_bias=True, use_qk_norm=False, hidden_act="gelu", tie_word_embeddings=False,
        attention_dropout=0.25, hidden_dropout=0.5, pad_token_id=0, bos_token_id=1, eos_token_id=[2, 3],
        rope_parameters=ROPES["llama3"], rms_norm_eps=1e-5, initializer_range=0.03, use_cache=False,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    reloaded = AutoConfig.from_pretrained(tmp_path)
    assert type(reloaded) is TunerDecoderConfig
    assert {**reloaded.to_dict(), "_name_or_path": ""} == config.to_dict()


def test_defaults_are_written_out(tmp_path: Any) -> None:
    """A default that changes later, and a number that was derived, must not change a model that was saved."""
    config = TunerDecoderConfig()
    config.save_pretrained(tmp_path)
    on_disk = json.loads((tmp_path / "config.json").read_text())
    assert on_disk["model_type"] == "tuner_decoder"
    own = set(TunerDecoderConfig.__annotations__)
    assert own <= on_disk.keys()
    assert {name: on_disk[name] for name in own} == {name: getattr(config, name) for name in own}


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)
def test_rope_parameters_round_trip_and_stay_the_callers(rope: dict[str, Any], tmp_path: Any) -> None:
    given_ = dict(rope)
    config = tiny_config(rope_parameters=given_)
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == config.rope_parameters
    assert rope.items() <= config.rope_parameters.items()
    assert given_ == rope
    # One dictionary for two shapes: the first must not leave its own length in it.
    shared = {key: value for key, value in rope.items() if key != "original_max_position_embeddings"}
    lengths = [tiny_config(rope_parameters=shared, max_position_embeddings=n).rope_parameters for n in (64, 128)]
    if "original_max_position_embeddings" in lengths[0]:
        assert [each["original_max_position_embeddings"] for each in lengths] == [64, 128]


def test_every_rope_type_of_transformers_is_tried() -> None:
    assert set(ROPES) == {"default", *ROPE_INIT_FUNCTIONS}


def test_old_names_of_rope_parameters_are_read() -> None:
    assert tiny_config(rope_theta=5e5).rope_parameters == {"rope_type": "default", "rope_theta": 5e5}


@pytest.mark.parametrize("activation", ["silu", "gelu", "relu2", "gelu_pytorch_tanh"])
def test_activation_is_the_one_named(activation: str) -> None:
    mlp = tiny_decoder(hidden_act=activation).model.layers[0].mlp
    hidden = torch.randn(3, SHAPE["hidden_size"], generator=torch.Generator().manual_seed(0))
    expected = mlp.down_proj(ACT2FN[activation](mlp.gate_proj(hidden)) * mlp.up_proj(hidden))
    assert torch.equal(mlp(hidden), expected)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    heads=st.sampled_from([1, 2, 3, 6]), groups=st.sampled_from([1, 2, 3]), half=st.integers(1, 5), tied=st.booleans(),
    bias=st.booleans(), qk_norm=st.booleans(), width=st.integers(1, 40),
)  # fmt: skip
def test_what_is_accepted_can_be_built_and_run(
    heads: int, groups: int, half: int, tied: bool, bias: bool, qk_norm: bool, width: int
) -> None:
    """Any shape that validates runs: heads need not divide the width once `head_dim` is given."""
    model = tiny_decoder(
        hidden_size=width, num_attention_heads=heads * groups, num_key_value_heads=heads, head_dim=2 * half,
        attention_bias=bias, mlp_bias=bias, use_qk_norm=qk_norm, tie_word_embeddings=tied,
    )  # fmt: skip
    logits = model(token_ids(2, 5)).logits
    assert logits.shape == (2, 5, SHAPE["vocab_size"])
    assert logits.isfinite().all()
