"""`make ladder`: each step goes on from what the one before it wrote, down to the table."""

import json
import re
import subprocess

import pytest
import yaml

from tests.processes import ROOT, run_python
from tests.recipes import run_recipe

CONFIGS = ROOT / "recipes" / "configs"
STEPS = {"pretrain": "ladder", "sft": "ladder", "reward": "tiny", "ppo": "ladder"}


def config(recipe):
    return yaml.safe_load((CONFIGS / recipe / f"{STEPS[recipe]}.yaml").read_text(encoding="utf-8"))


def test_the_command_is_a_chain():
    said = subprocess.run(["make", "-n", "ladder"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"--config recipes/configs/(\w+)/(\w+)\.yaml", said) == list(STEPS.items())
    known = {recipe: config(recipe) for recipe in STEPS}
    assert known["sft"]["model_name_or_path"] == known["pretrain"]["output_dir"]
    assert known["ppo"]["model_name_or_path"] == known["sft"]["output_dir"]
    assert known["ppo"]["reward_model_path"] == known["reward"]["output_dir"]
    [compared] = re.findall(r"tuner compare ([\w/ ]+) --untrained", said)
    assert compared.split() == [known[recipe]["output_dir"] for recipe in ("pretrain", "sft", "ppo")]
    assert f"--reward_model_path {known['reward']['output_dir']} " in said


@pytest.mark.slow
def test_every_step_goes_on_from_the_last(tmp_path):
    small = ["--max_steps", "2", "--max_length", "64"]
    more = {
        "pretrain": small,
        "sft": [*small, "--model_name_or_path", tmp_path / "pretrain", "--max_labels_lost", "1"],
        "reward": ["--max_steps", "2"],
        "ppo": [
            *("--max_steps", "2", "--model_name_or_path", tmp_path / "sft", "--reward_model_path", tmp_path / "reward"),
            *("--per_device_train_batch_size", "4", "--response_length", "8", "--max_prompt_length", "96"),
            *("--test_split_size", "40"),
        ],
    }
    for recipe, name in STEPS.items():
        flags = ["--config", CONFIGS / recipe / f"{name}.yaml", "--output_dir", tmp_path / recipe, *more[recipe]]
        done = run_recipe(*flags, recipe=f"{recipe}.py")
        assert done.returncode == 0, (recipe, done.stderr[-2000:])
    words = [*(tmp_path / each for each in ("pretrain", "sft", "ppo")), "--untrained", "--reference", tmp_path / "sft"]
    words += ["--reward_model_path", tmp_path / "reward", "--dataset_name", "builtin:chitchat"]
    words += ["--max_eval_samples", "40", "--max_prompt_length", "96", "--response_length", "8"]
    done = run_python("-m", "tuner.cli", "compare", *words, "--output", tmp_path / "table.json")
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))
    assert len(rows) == 4 and rows[2]["kl"] == pytest.approx(0, abs=1e-5)
    assert all(row["perplexity"] > 1 and row["reward"] for row in rows)
