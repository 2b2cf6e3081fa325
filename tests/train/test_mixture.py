"""A run on several data sets: shares, each set's own loss, and the same bits after kills and on two processes."""

import json

import pytest
import yaml

from tests.recipes import NANO, SMALL, assert_same_run, launch_recipe, run_recipe

pytestmark = pytest.mark.slow

FLAGS = [*SMALL, *NANO, "--max_steps", "-1", "--num_train_epochs", "2", "--max_labels_lost", "1"]
FLAGS += ["--resume_from_checkpoint", "true"]


@pytest.fixture(scope="module")
def sets(chats, tmp_path_factory):
    """A set of conversations, and a smaller one with columns of its own."""
    folder = tmp_path_factory.mktemp("sets")
    lines = chats.read_text(encoding="utf-8").splitlines()
    (folder / "chats.jsonl").write_text("\n".join(lines[:40]) + "\n", encoding="utf-8")
    rows = [{"question": f"What is {n} and one?", "answer": f"It is {n + 1}."} for n in range(20)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = {
        "dataset_name": [
            {"name": str(folder / "chats.jsonl"), "weight": 1},
            {
                "name": str(folder / "sums.jsonl"),
                "weight": 3,
                "column_mapping": {"question": "prompt", "answer": "completion"},
            },
        ]
    }
    (folder / "mixture.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def whole(sets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    done = run_recipe("--config", sets / "mixture.yaml", *FLAGS, "--output_dir", folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def test_each_set_has_a_loss_and_together_they_are_the_loss(whole):
    log = json.loads((whole / "metrics.json").read_text(encoding="utf-8"))["log"]
    evaluated = [entry for entry in log if "eval_loss" in entry]
    assert len(evaluated) >= 2
    for entry in evaluated:
        one, other = entry["eval_chats_loss"], entry["eval_sums_loss"]
        assert min(one, other) <= entry["eval_loss"] <= max(one, other)
    # Three quarters of the steps were sums, and those are easy.
    fallen = {name: evaluated[0][name] - evaluated[-1][name] for name in ("eval_chats_loss", "eval_sums_loss")}
    assert fallen["eval_sums_loss"] > fallen["eval_chats_loss"]


def test_killed_it_ends_in_the_same_bits(whole, sets, tmp_path):
    flags = ["--config", sets / "mixture.yaml", *FLAGS, "--output_dir", tmp_path / "killed"]
    for point in ("step:5", "open:optimizer.pt@1", "step:13"):
        assert run_recipe(*flags, kill_at=point).returncode == -9
    assert run_recipe(*flags).returncode == 0
    assert_same_run(whole, tmp_path / "killed")


def test_the_dry_run_says_what_each_set_has(sets, tmp_path):
    done = run_recipe("--config", sets / "mixture.yaml", *FLAGS, "--dry_run", "--output_dir", tmp_path / "dry")
    assert done.returncode == 0, done.stderr[-2000:]
    said = " ".join(done.stdout.split())
    assert "chats (25.0%" in said and "sums (75.0%" in said
    assert "70.8% of rows" in said and "29.2% of rows" in said  # 34 and 14


def test_without_shares_each_row_comes_once(sets, tmp_path):
    flags = ["--dataset_name", sets / "chats.jsonl", "builtin:chitchat-small", *FLAGS, "--num_train_epochs", "1"]
    done = run_recipe(*flags, "--dry_run", "--output_dir", tmp_path / "dry")
    assert done.returncode == 0 and "% of an epoch" not in done.stdout
    refused = run_recipe(*flags, "--dataset_weights", "1", "--output_dir", tmp_path / "dry")
    assert refused.returncode == 2 and refused.stderr.startswith("error: --dataset_weights 1: one above 0 for each of")


def test_sets_of_other_rows_are_refused(sets, tmp_path):
    flags = ["--dataset_name", sets / "chats.jsonl", "builtin:bbc-quotes", *FLAGS]
    done = run_recipe(*flags, "--output_dir", tmp_path / "run")
    assert done.returncode == 2 and "builtin:bbc-quotes: its rows are" in done.stderr and "are needed" in done.stderr


def test_shares_for_a_method_that_reads_all_alike(sets, tmp_path):
    flags = ["--dataset_name", sets / "chats.jsonl", "builtin:chitchat-small", "--dataset_weights", "1", "1"]
    done = run_recipe(*flags, "--preset", "tiny", "--output_dir", tmp_path / "run", recipe="pretrain.py")
    assert done.returncode == 2 and "--dataset_weights: clm reads all rows alike" in done.stderr


def test_two_processes_share_each_sets_rows(whole, sets, tmp_path):
    """The first evaluation, before any step, is that of one process; and as many rows come in an epoch."""
    flags = ["--config", sets / "mixture.yaml", *FLAGS, "--per_device_train_batch_size", "2"]
    done = launch_recipe(2, *flags, "--output_dir", tmp_path / "two")
    assert done.returncode == 0, done.stderr[-2000:]
    logs = [json.loads((f / "metrics.json").read_text(encoding="utf-8"))["log"] for f in (whole, tmp_path / "two")]
    for name in ("eval_loss", "eval_chats_loss", "eval_sums_loss"):
        one, two = ([entry[name] for entry in log if name in entry] for log in logs)
        assert two[0] == pytest.approx(one[0], rel=1e-5) and two[-1] == pytest.approx(one[-1], rel=0.05)
