"""`tuner plan` from the command line, and the cost of a recipe's configuration."""

from __future__ import annotations

import re

import pytest
from transformers import BertConfig, GPTNeoXConfig

from tests.processes import ROOT
from tuner.cli import main
from tuner.config.arguments import parse_arguments
from tuner.config.recipes import arguments_of, find_recipe
from tuner.errors import ArgumentError, ModelError
from tuner.estimate.plan import cost, read_config, read_plan
from tuner.model import TunerEncoderConfig

PRETRAIN = "# accelerate launch recipes/pretrain.py --config run.yaml\n"


def test_what_can_be_planned(tmp_path):
    assert read_config("tiny").hidden_size == 256
    BertConfig(hidden_size=48, num_attention_heads=4).save_pretrained(tmp_path)
    for source in (str(tmp_path), str(tmp_path / "config.json")):
        assert isinstance(read_config(source), TunerEncoderConfig)
    GPTNeoXConfig().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="gpt_neox model has no counterpart here"):
        read_config(str(tmp_path))


def test_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    main(["plan", "--output", str(tmp_path / "new" / "folder" / "p.png"), "base"])
    shown = capsys.readouterr().out
    for word in ("embedding", "attention q", "feed-forward", "training, --dtype bfloat16", "bytes a token", "100.0%"):
        assert word in shown
    assert (tmp_path / "new" / "folder" / "p.png").read_bytes().startswith(b"\x89PNG")
    for arguments, message in (
        (["./nothing"], "no such folder"),
        (["tiny", "--context", "0"], "at least 1"),
        (["tiny", "--output", "README.md/p.png"], "--output README.md/p.png cannot be written"),
        (["tiny", "--output", str(tmp_path / "p.doc")], "p.doc cannot be written"),
        (["run.yaml"], "error: run.yaml: No such file"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["plan", *arguments])
        assert stop.value.code == 2 and message in capsys.readouterr().err


def test_the_cost_of_a_recipes_configuration(tmp_path):
    """6 operations a weight and token, of tokens counted by hand."""
    path = tmp_path / "run.yaml"
    path.write_text(
        PRETRAIN + "objective: mlm+nsp\npreset: small\nmax_steps: 10\nmax_length: 64\ngradient_accumulation_steps: 3\n"
    )
    model, context, tokens = read_plan(str(path))
    assert model.config.type_vocab_size == 2 and model.config.hidden_size == 512
    assert (tokens, context) == (10 * 8 * 3 * 64, 64)
    found = cost(2 * tokens, 1e9)
    assert found["tokens, at most"] == "30,720" and found["operations"] == "3.1e+13"
    assert float(found["A100 hours, at 35% of its peak"]) == pytest.approx(
        30720 * 1e9 / (0.35 * 312e12) / 3600, rel=0.05
    )


@pytest.mark.parametrize("path", sorted((ROOT / "recipes/configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_has_a_cost(path, tmp_path, capsys):
    if parse_arguments(arguments_of(find_recipe(path)), ["--config", str(path)]).model_name_or_path:
        pytest.skip("it begins with a checkpoint")
    main(["plan", str(path), "--output", str(tmp_path / "p.png"), "--processes", "8"])
    shown = capsys.readouterr().out
    assert "Training by 8 processes" in shown
    head = path.read_text().partition("objective:")[0]
    stated = re.search(r"operations: ([\d.]+e\+\d+)\.", head)
    assert bool(stated) == path.stem.endswith("-base")
    assert not stated or stated[1] in shown
    assert not re.search(r"A100|H100|hours|on a GPU", head), "a time that nobody measured"


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("- a", ": expected 'name: value' lines, found a sequence."),
        ("a: [", ", line 2, column 5: while parsing"),
        ("preset: huge", ", line 2: --preset: invalid choice: 'huge'"),
        ("max_stps: 3", ", line 2: unknown flag or key 'max_stps'. Did you mean max_steps?"),
        ("seed: 1\nmax_steps: many", ", line 3: --max_steps: invalid int value: 'many'"),
        ("per_device_train_batch_size: 0", ", line 2: --per_device_train_batch_size: expected a number of at least 1"),
    ],
)
def test_a_configuration_that_its_recipe_would_refuse(text, wrong, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(PRETRAIN + text)
    with pytest.raises(ArgumentError, match=re.escape(f"--config {path}{wrong}")):
        read_plan(str(path))


def test_a_quoted_number_is_a_number(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(PRETRAIN + "max_steps: '7'\nmax_length: \"32\"\nvocab_size: '1000'\n")
    model, _, tokens = read_plan(str(path))
    assert tokens == 7 * 8 * 32 and model.config.vocab_size == 1000


def test_a_shape_that_no_model_has(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(PRETRAIN + "config_overrides: num_attention_heads=5\n")
    with pytest.raises(SystemExit) as stop:
        main(["plan", str(path), "--output", str(tmp_path / "p.png")])
    assert stop.value.code == 2 and "No model has this shape" in capsys.readouterr().err


def test_a_configuration_begins_with_its_recipe(tmp_path):
    """Or lies in its folder."""
    path = tmp_path / "run.yaml"
    path.write_text("max_steps: 3\n")
    with pytest.raises(ArgumentError, match=r"run.yaml, line 1: its first line names no recipe. Expected .* sft"):
        read_plan(str(path))
    path.write_text("# accelerate launch recipes/pretrian.py --config run.yaml\nmax_steps: 3\n")
    with pytest.raises(ArgumentError, match=r"no recipe 'pretrian'\. Did you mean pretrain\? Expected"):
        read_plan(str(path))
    folder = tmp_path / "configs" / "pretrain"
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text("objective: mlm\nmax_steps: 3\n")
    assert read_plan(str(folder / "run.yaml"))[2] == 3 * 8 * 1024
    (folder / "run.yaml").write_text("# accelerate launch recipes/sft.py --config run.yaml\nobjective: mlm\n")
    with pytest.raises(ArgumentError, match="line 2: unknown flag or key 'objective'"):
        read_plan(str(folder / "run.yaml"))
