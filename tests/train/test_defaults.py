"""What a run chooses where nothing is said: attention, and how sequences lie in a batch."""

from types import SimpleNamespace

import pytest
import torch
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    MambaConfig,
    MambaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)
from transformers.masking_utils import sdpa_mask

from tests.model.helpers import scramble, tiny_decoder, token_ids
from tests.text import samples
from tests.train.test_probe import one_row_only
from tests.train.zoo import build
from tuner.config.arguments import RecipeArguments
from tuner.errors import ModelError
from tuner.loading.models import build_model
from tuner.objectives.base import use_objective
from tuner.objectives.causal_lm import SFT
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


def test_an_attention_that_mixes_rows_is_packed_where_a_batch_is_one_row(monkeypatch):
    """As flash attention does where rows are not joined."""
    monkeypatch.setitem(AttentionInterface._global_mapping, "block_attention_one_row", one_row_only)
    monkeypatch.setitem(AttentionMaskInterface._global_mapping, "block_attention_one_row", sdpa_mask)
    model = tiny_decoder("block_attention_one_row")
    layout = choose_layout(run_of(RecipeArguments()), model)
    assert layout.packing and layout.padding_free
    layout = choose_layout(run_of(RecipeArguments(padding_free=False)), model)
    assert not layout.packing and not layout.padding_free
    with pytest.raises(
        ModelError, match="--packing true: TunerDecoderForCausalLM with block_attention_one_row attention"
    ):
        choose_layout(run_of(RecipeArguments(padding_free=False, packing=True)), model)


def test_a_loss_that_cannot_be_chunked_is_the_models_own(capsys):
    """Falcon-H1 multiplies its logits by a field of its own."""
    model, ids = scramble(build("falcon_h1")).eval(), token_ids(2, 9, vocab_size=64)
    own = model(input_ids=ids, labels=ids).loss
    layout = choose_layout(run_of(RecipeArguments()), model)
    assert not layout.chunked_loss and "it keeps its own loss" in capsys.readouterr().out
    use_objective(model, SFT(RecipeArguments(), SimpleNamespace(pad_token_id=0), layout))
    torch.testing.assert_close(model.train()(input_ids=ids, labels=ids).loss, own)


def test_attention_that_is_linear_in_time_is_not_packed():
    performer = NANO + ",attention_type=performer"
    args = RecipeArguments(preset="tiny", config_overrides=performer, max_length=64, use_cpu=True)
    model, _ = build_model(args, "decoder", samples.small())
    assert not choose_layout(run_of(args), model).packing


def test_the_choice_is_not_saved_with_the_model(tmp_path):
    _, model = model_of()
    model.save_pretrained(tmp_path)
    assert "block_attention" not in (tmp_path / "config.json").read_text()
