"""`recipes/lora.py` as its users run it: the adapter learns, is saved alone, merged, and continued to the same bits."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import tuner.model  # noqa: F401
from tests.recipes import (
    NANO,
    ROOT,
    SMALL,
    equal,
    eval_loss_of,
    launch_recipe,
    losses_of,
    run_recipe,
    untrained_loss_of,
)
from tuner.loading.checkpoints import difference, load_pretrained

pytestmark = pytest.mark.slow

# 12 steps of 16 sequences are more than an epoch.
UPPER = ["--lora_layers", "upper", "--per_device_train_batch_size", "16"]
HALVED = ["--per_device_train_batch_size", "8"]
KINDS = {
    "dora": ["--use_dora"],
    "ia3": ["--peft_type", "ia3"],
    "prompt_tuning": ["--peft_type", "prompt_tuning"],
    "prefix_tuning": ["--peft_type", "prefix_tuning"],
    "pissa": ["--init_lora_weights", "pissa"],
    "eva": ["--init_lora_weights", "eva", "--lora_r", "8"],
    "upper half": UPPER,
    "4 bits": ["--load_in_4bit"],
}


@pytest.fixture(scope="module")
def base(chats, tmp_path_factory):
    """A nano model after a few steps, and its run's flags."""
    folder = tmp_path_factory.mktemp("base")
    done = run_recipe("--dataset_name", chats, *SMALL, *NANO, "--max_steps", "4", "--output_dir", folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def finished(base, chats, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    flags = ["--model_name_or_path", base, "--dataset_name", chats, *SMALL[2:], "--learning_rate", "1e-2"]
    flags += ["--lora_dropout", "0.1", "--merge"]
    done = run_recipe(*flags, "--output_dir", folder, recipe="lora.py")
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, flags, done


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    rows = [{"prompt": f"say {n}", "chosen": "yes " * 3, "rejected": "no"} for n in range(30)]
    data = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data


def test_the_adapter_learns_and_is_saved_alone(base, finished):
    folder, _, done = finished
    assert "parameters are trained" in done.stdout and "Warning" not in done.stderr
    assert eval_loss_of(folder) < untrained_loss_of(folder)
    weights = load_file(folder / "adapter_model.safetensors")
    assert not (folder / "model.safetensors").exists() and all("lora" in name for name in weights)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)


def test_merged_it_is_the_same_model(finished):
    folder, _, done = finished
    assert "Merged in" in done.stdout
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged")
    assert difference(load_pretrained(AutoModelForCausalLM, str(folder), torch.float32), merged) < 1e-4
    assert AutoTokenizer.from_pretrained(folder / "merged").chat_template


def test_killed_it_goes_on_to_the_same_bits(finished, tmp_path):
    folder, flags, _ = finished
    again = [*flags, "--output_dir", tmp_path, "--resume_from_checkpoint", "true"]
    assert run_recipe(*again, recipe="lora.py", kill_at="step:6").returncode == -9
    done = run_recipe(*again, recipe="lora.py")
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("adapter_model.safetensors", "merged/model.safetensors"):
        assert equal(load_file(folder / name), load_file(tmp_path / name)), name
    assert losses_of(tmp_path) == losses_of(folder)


@pytest.mark.parametrize("recipe", ["lora.py", "dpo.py"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_learns_and_goes_on_to_the_same_bits(kind, recipe, base, chats, pairs, tmp_path):
    flags = ["--use_peft", "--model_name_or_path", base, "--dataset_name", chats if recipe == "lora.py" else pairs]
    flags += [*SMALL[2:], "--learning_rate", "3e-2", *KINDS[kind]]
    extra = {}
    if kind == "4 bits":
        folder = Path(pytest.importorskip("bitsandbytes").__file__).parents[1]
        extra["PYTHONPATH"] = f"{ROOT}:{folder}"
    whole, killed = (
        tmp_path / "whole",
        [*flags, "--output_dir", tmp_path / "killed", "--resume_from_checkpoint", "true"],
    )
    done = run_recipe(*flags, "--output_dir", whole, recipe=recipe, **extra)
    assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr[-2000:]
    assert eval_loss_of(whole) < untrained_loss_of(whole)
    if recipe == "dpo.py" and "tuning" not in kind:  # they are nothing as they begin, but a prompt is something
        assert untrained_loss_of(whole) == pytest.approx(math.log(2), abs=1e-3)
    if kind == "upper half":
        once = "The frozen half of the layers is computed once" if recipe == "lora.py" else "computed in every epoch"
        assert once in done.stdout and not list(whole.glob(".frozen*"))
    done = run_recipe(*killed, recipe=recipe, kill_at="step:6", **extra)
    assert done.returncode == -9, done.stderr[-2000:]
    done = run_recipe(*killed, recipe=recipe, **extra)
    assert done.returncode == 0, done.stderr[-2000:]
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (whole, tmp_path / "killed"))
    assert equal(ours, theirs) and losses_of(whole) == losses_of(tmp_path / "killed")


def test_a_lower_half_kept_changes_nothing(base, chats, tmp_path):
    flags = ["--model_name_or_path", base, "--dataset_name", chats, *SMALL[2:], "--learning_rate", "1e-2", *UPPER]
    kept = [run_recipe(*flags, "--output_dir", tmp_path / "kept", recipe="lora.py")]
    kept.append(launch_recipe(2, *flags, *HALVED, "--output_dir", tmp_path / "two", recipe="lora.py"))
    not_kept = ["--frozen_states_gib", "0", "--output_dir", tmp_path / "not"]
    done = run_recipe(*flags, *not_kept, recipe="lora.py")
    assert [each.returncode for each in (*kept, done)] == [0, 0, 0], kept[1].stderr[-2000:]
    assert "kept, it would take" in done.stdout and all("computed once" in each.stdout for each in kept)
    assert losses_of(tmp_path / "kept") == pytest.approx(losses_of(tmp_path / "not"), rel=1e-5)
    assert losses_of(tmp_path / "kept") == pytest.approx(losses_of(tmp_path / "two"), rel=1e-4)


def test_two_processes_begin_from_the_same_data(base, chats, tmp_path):
    flags = ["--model_name_or_path", base, "--dataset_name", chats, *SMALL[2:], *KINDS["eva"], "--max_steps", "2"]
    one = run_recipe(*flags, "--output_dir", tmp_path / "1", recipe="lora.py")
    two = launch_recipe(
        2, *flags, "--per_device_train_batch_size", "2", "--output_dir", tmp_path / "2", recipe="lora.py"
    )
    assert one.returncode == two.returncode == 0, two.stderr[-2000:]
    assert losses_of(tmp_path / "2") == pytest.approx(losses_of(tmp_path / "1"), rel=1e-4)
    ours, theirs = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("1", "2"))
    assert {name: w.shape for name, w in ours.items()} == {name: w.shape for name, w in theirs.items()}


def test_over_bfloat16_weights(base, chats, tmp_path):
    flags = ["--model_name_or_path", base, "--dataset_name", chats, *SMALL[2:], "--learning_rate", "1e-2"]
    flags += ["--per_device_train_batch_size", "1", "--max_steps", "4", "--eval_strategy", "no"]
    done = run_recipe(*flags, "--dtype", "bfloat16", "--output_dir", tmp_path, recipe="lora.py")
    assert done.returncode == 0, done.stderr[-2000:]
    assert {w.dtype for w in load_file(tmp_path / "adapter_model.safetensors").values()} == {torch.float32}


def test_an_adapter_by_dpo_whose_reference_is_without_it(base, pairs, tmp_path):
    """The first loss is log 2, the reference being the model as it is; and the next adapter begins from the first."""
    flags = ["--use_peft", "--dataset_name", pairs, *SMALL[2:], "--max_steps", "8", "--logging_steps", "1"]
    first, second = tmp_path / "first", tmp_path / "second"
    for model, folder in ((base, first), (first, second)):
        done = run_recipe(
            *flags, "--model_name_or_path", model, "--learning_rate", "1e-2", "--output_dir", folder, recipe="dpo.py"
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert losses_of(folder)[0] == pytest.approx(0.6931, abs=1e-3) and losses_of(folder)[-1] < 0.6
    assert json.loads((second / "adapter_config.json").read_text())["base_model_name_or_path"] == str(first)


def test_two_processes_are_one(base, chats, tmp_path):
    flags = ["--model_name_or_path", base, "--dataset_name", chats, *SMALL[2:], "--learning_rate", "1e-2"]
    flags += ["--max_steps", "4", "--bf16", "false", "--eval_strategy", "no", "--merge"]
    one = run_recipe(*flags, "--output_dir", tmp_path / "1", recipe="lora.py")
    half = ["--per_device_train_batch_size", "2"]
    two = launch_recipe(2, *flags, *half, "--output_dir", tmp_path / "2", recipe="lora.py")
    assert one.returncode == two.returncode == 0, two.stderr[-2000:]
    assert losses_of(tmp_path / "2") == pytest.approx(losses_of(tmp_path / "1"), rel=1e-4)
    ours, theirs = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("1", "2"))
    for name, weight in ours.items():
        torch.testing.assert_close(theirs[name], weight, rtol=1e-2, atol=1e-4)
