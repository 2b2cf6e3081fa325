"""What a run chooses where nothing is said: attention, and how sequences lie in a batch."""

from types import SimpleNamespace

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM, OPTConfig, OPTForCausalLM

from tests.text import samples
from tuner.config.arguments import RecipeArguments
from tuner.errors import ModelError
from tuner.loading.models import build_model
from tuner.train.prepare import choose_layout

NANO = "hidden_size=64,num_hidden_layers=2,num_attention_heads=2,num_key_value_heads=1,intermediate_size=128"


def run_of(args, n_gpu=0):
    how = {"n_gpu": n_gpu, "fsdp": None, "deepspeed": None, "device": torch.device("cpu"), "bf16": False}
    return SimpleNamespace(args=args, training=SimpleNamespace(**how))


def model_of(**changes):
    args = RecipeArguments(preset="tiny", config_overrides=NANO, max_length=64, use_cpu=True, **changes)
    return args, build_model(args, "decoder", samples.small())[0]


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
    layout = choose_layout(run_of(args), model)
    assert layout.padding_free is joined and layout.packing and layout.chunked_loss and not layout.masks


def test_rows_are_not_joined_where_one_process_feeds_several_devices():
    args, model = model_of()
    assert not choose_layout(run_of(args, n_gpu=2), model).padding_free


def test_a_model_that_leaks_between_packed_sequences_is_padded_and_refused_by_hand(capsys):
    opt = OPTForCausalLM(
        OPTConfig(vocab_size=64, hidden_size=32, ffn_dim=32, word_embed_proj_dim=32, num_hidden_layers=1,
                  num_attention_heads=2, max_position_embeddings=64)
    )  # fmt: skip
    layout = choose_layout(run_of(RecipeArguments()), opt)
    assert not layout.packing and not layout.padding_free
    assert "OPTForCausalLM" in capsys.readouterr().out
    for flag in ("packing", "padding_free"):
        with pytest.raises(ModelError, match=f"--{flag} true: OPTForCausalLM"):
            choose_layout(run_of(RecipeArguments(**{flag: True})), opt)
    recurrent = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=32, state_size=8, num_hidden_layers=1))
    assert not choose_layout(run_of(RecipeArguments()), recurrent).packing


def test_attention_that_is_linear_in_time_is_not_packed():
    performer = NANO + ",attention_type=performer"
    args = RecipeArguments(preset="tiny", config_overrides=performer, max_length=64, use_cpu=True)
    model, _ = build_model(args, "decoder", samples.small())
    assert not choose_layout(run_of(args), model).packing


def test_the_choice_is_not_saved_with_the_model(tmp_path):
    _, model = model_of()
    model.save_pretrained(tmp_path)
    assert "block_attention" not in (tmp_path / "config.json").read_text()
