"""`tuner plan`: its counts are those of the model itself, and of torch's own counter."""

from __future__ import annotations

import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, GPTNeoXConfig

from tests.model.test_shapes import decoder, encoder, pair
from tests.processes import ROOT, run_python
from tuner.commands.plan import COMPONENTS, cache_bytes, memory, operations, plan, read_config
from tuner.errors import ModelError
from tuner.estimate.cost import cost, read_training
from tuner.estimate.sizes import parameters_by_component
from tuner.model import TunerEncoderConfig

SHAPES = [
    (decoder, {}),
    (decoder, {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False, "lm_head_bias": True}),
    (decoder, {"num_local_experts": 4}),
    (encoder, {"position_embedding_type": "relative", "type_vocab_size": 2, "embedding_size": 16}),
    (encoder, {"attention_type": "linformer", "norm_position": "both"}),
    (pair, {"position_embedding_type": "learned", "embedding_norm": True}),
]


@pytest.mark.parametrize(("shape", "fields"), SHAPES)
def test_every_parameter_is_counted_once_and_has_a_component(shape, fields):
    model = shape(**fields)
    sizes = parameters_by_component(model, COMPONENTS)
    assert sum(sizes.values()) == sum(p.numel() for p in model.parameters())
    assert "other" not in sizes
    layers = 2 if shape is not pair else 6  # of a pair: encoder, decoder, and its cross-attention
    assert sizes["attention q"] == layers * (32 * 32 + (32 if fields.get("attention_bias") else 0))
    assert ("head" in sizes) == (shape is encoder or not fields.get("tie_word_embeddings", True))


@pytest.mark.parametrize("fields", [{}, {"mlp_type": "plain", "num_key_value_heads": 2}])
def test_operations_are_those_that_torch_counts(fields):
    model, ids = encoder(**fields).eval(), torch.ones(1, 24, dtype=torch.long)
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(ids)
    assert operations(model, 24)["forward"] * 24 == counter.get_total_flops()


def test_a_causal_token_sees_half_and_a_sliding_one_its_window():
    width = 32
    assert operations(decoder(), 40)["attention over 40"] == 2 * 4 * 20 * width
    assert operations(decoder(sliding_window=5), 40)["attention over 40"] == 2 * 4 * 5 * width


def test_only_active_experts_cost():
    few, many = (operations(decoder(num_local_experts=n), 8)["weights"] for n in (2, 8))
    assert few == many
    assert operations(decoder(num_local_experts=8, num_experts_per_tok=4), 8)["weights"] > many


def test_memory_and_cache():
    model = decoder(num_key_value_heads=2)
    count = sum(p.numel() for p in model.parameters())
    held = memory(model, 10)
    assert held["training, float32"] == 16 * count and held["training, --dtype bfloat16"] == 8 * count
    assert cache_bytes(model.config) == 2 * 2 * 2 * 8 * 2
    assert held["inference, bfloat16"] == 2 * count + 10 * cache_bytes(model.config)
    assert cache_bytes(encoder().config) == 0


def test_what_can_be_planned(tmp_path):
    assert read_config("tiny").hidden_size == 256
    BertConfig(hidden_size=48, num_attention_heads=4).save_pretrained(tmp_path)
    for source in (str(tmp_path), str(tmp_path / "config.json")):
        assert isinstance(read_config(source), TunerEncoderConfig)
    GPTNeoXConfig().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="gpt_neox model has no counterpart here"):
        read_config(str(tmp_path))


def test_from_the_command_line(tmp_path):
    command = ("-m", "tuner.cli", "plan")
    done = run_python(*command, "base", "--output", tmp_path / "p.png")
    assert done.returncode == 0, done.stderr
    for word in ("embedding", "attention q", "feed-forward", "training, --dtype bfloat16", "bytes a token", "100.0%"):
        assert word in done.stdout
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    for arguments, message in (
        (["./nothing"], "no such folder"),
        (["tiny", "--context", "0"], "at least 1"),
        (["tiny", "--output", "/nowhere/p.png"], "--output /nowhere/p.png cannot be written"),
    ):
        done = run_python(*command, *arguments)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_the_cost_of_a_recipes_configuration(tmp_path):
    """6 operations a weight and token, of tokens counted by hand."""
    path = tmp_path / "run.yaml"
    path.write_text(
        "objective: mlm+nsp\npreset: small\nmax_steps: 10\nmax_length: 64\ngradient_accumulation_steps: 3\n"
    )
    training = read_training(path)
    assert training.config.type_vocab_size == 2 and training.config.hidden_size == 512
    assert training.tokens == 10 * 8 * 3 * 64
    found = cost(training, 1e9, processes=2)
    assert found["tokens, at most"] == "30,720" and found["operations"] == "3.1e+13"
    assert float(found["A100 hours, at 35% of its peak"]) == pytest.approx(
        30720 * 1e9 / (0.35 * 312e12) / 3600, rel=0.05
    )


@pytest.mark.parametrize("path", sorted((ROOT / "recipes/configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_has_a_cost(path, tmp_path, capsys):
    if not read_training(path).config:
        pytest.skip("it begins with a checkpoint")
    plan(str(path), None, tmp_path / "p.png", processes=8)
    shown = capsys.readouterr().out
    assert "Training by 8 processes" in shown
    head = path.read_text().partition("objective:")[0]
    stated = re.search(r"([\d.]+e\+\d+); about (\d+) A100-hours", head)
    assert bool(stated) == path.stem.endswith("-base")
    if stated:
        assert stated[1] in shown and re.search(rf"A100 hours.*│ +{stated[2]}\.", shown)


@pytest.mark.parametrize(("text", "wrong"), [("- a", "no flags"), ("a: [", "YAML|parsing"), ("preset: huge", "huge")])
def test_a_configuration_that_cannot_be_planned(text, wrong, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ModelError, match=rf"run.yaml cannot be planned: .*({wrong})"):
        read_training(path)
