"""Nothing that was trained or saved is lost, and no number stands for what was not counted: whole runs."""

from __future__ import annotations

import json
import math
import shutil

import pytest
from safetensors.torch import load_file

from tests.recipes import NANO, SMALL, equal, launch_recipe, losses_of, metrics_of, run_recipe

pytestmark = pytest.mark.slow

QUICK = [*SMALL, *NANO, "--bf16", "false"]


def same_weights(one, other):
    return equal(load_file(one / "model.safetensors"), load_file(other / "model.safetensors"))


def test_the_best_model_is_reported_kept_and_found_after_a_move(chats, tmp_path):
    """The first checkpoint counts as the best: the one whose loss is the largest is asked for."""
    best = ["--load_best_model_at_end", "--metric_for_best_model", "eval_loss", "--greater_is_better", "true"]
    flags = ["--dataset_name", chats, *QUICK, "--eval_strategy", "steps", "--eval_steps", "4", *best]
    done = run_recipe(*flags, "--output_dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr[-2000:]
    run, metrics = tmp_path / "run", metrics_of(tmp_path / "run")
    logged = {entry["step"]: entry["eval_loss"] for entry in metrics["log"] if "eval_loss" in entry}
    assert metrics["steps"] == 12 and metrics["saved_step"] == 4
    assert metrics["eval"]["loss"] == logged[4] > logged[12]
    assert same_weights(run, run / "checkpoint-4") and not same_weights(run, run / "checkpoint-12")

    shutil.move(run, tmp_path / "moved")
    (tmp_path / "moved" / "model.safetensors").unlink()
    done = run_recipe(*flags, "--output_dir", tmp_path / "moved", "--resume_from_checkpoint", "true")
    assert done.returncode == 0, done.stderr[-2000:]
    assert metrics_of(tmp_path / "moved")["saved_step"] == 4
    assert same_weights(tmp_path / "moved", tmp_path / "moved" / "checkpoint-4")
    for path in (tmp_path / "moved" / "checkpoint-12").glob("*.json"):
        assert str(tmp_path) not in path.read_text(), "paths in a checkpoint are relative"


def test_a_checkpoint_of_a_model_alone_is_not_continued(chats, tmp_path):
    flags = ["--dataset_name", chats, *QUICK, "--output_dir", tmp_path / "run"]
    assert run_recipe(*flags, "--save_only_model", "true", "--max_steps", "4").returncode == 0
    done = run_recipe(*flags, "--resume_from_checkpoint", "true", "--max_steps", "8")
    assert done.returncode == 2 and "without the optimizer's state (--save_only_model true)" in done.stderr
    assert "Traceback" not in done.stderr


def test_another_number_of_processes_is_said(chats, tmp_path):
    flags = ["--dataset_name", chats, *QUICK, "--output_dir", tmp_path / "run", "--resume_from_checkpoint", "true"]
    assert launch_recipe(2, *flags, "--max_steps", "4").returncode == 0
    done = run_recipe(*flags, "--max_steps", "8")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Processes: 2 when the run began, 1 now." in done.stdout + done.stderr


@pytest.mark.parametrize("padding", [[], ["--packing", "false", "--padding_free", "false"]], ids=["packed", "padded"])
def test_a_prompt_that_fills_the_sequence_is_left_out_and_counted(tmp_path, padding):
    """A batch of it alone has nothing to average over."""
    talk = [{"role": "user", "content": "word " * 400}, {"role": "assistant", "content": "yes"}]
    short = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello there, how are you?"}]
    rows = [talk, *[short] * 5]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    flags = ["--dataset_name", data, *QUICK, *padding, "--max_length", "64", "--per_device_train_batch_size", "1"]
    flags += ["--truncation_mode", "keep_start", "--max_labels_lost", "1", "--max_steps", "-1", "--logging_steps", "1"]
    done = run_recipe(*flags, "--seed", "1", "--output_dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr[-2000:]
    metrics = metrics_of(tmp_path / "run")
    reports = metrics["data"]["train"], metrics["data"]["eval"]
    assert sum(report["unlabelled"] for report in reports) == 1
    assert all(math.isfinite(loss) and loss > 0 for loss in losses_of(tmp_path / "run"))


@pytest.mark.parametrize("content", ["hello, how are you?", "word " * 80], ids=["opened by the assistant", "long"])
def test_rows_that_are_no_prompts_end_no_run(tmp_path, content):
    """The assistant opens all validation rows, or positions end before the prompts do."""
    talk = [{"role": "user", "content": content}, {"role": "assistant", "content": "fine"}]
    short = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    rows = [talk, short] * 8 if content.startswith("word") else [talk[1:] + talk[:1]] * 8
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    learned = ["--config_overrides", NANO[1] + ",position_embedding_type=learned,max_position_embeddings=64"]
    flags = [
        "--dataset_name",
        data,
        *QUICK,
        *learned,
        "--max_length",
        "64",
        "--max_steps",
        "2",
        "--max_labels_lost",
        "1",
    ]
    done = run_recipe(*flags, "--output_dir", tmp_path / "run")
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-2000:]
    assert "could not be made" not in done.stderr
    assert metrics_of(tmp_path / "run")["steps"] == 2


def test_the_rest_of_an_epoch_has_no_row_twice(tmp_path):
    """Ten rows in batches of four on two processes: the loss of the last step is that of the two rows that are left."""
    rows = [[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes " * (i + 1)}] for i in range(11)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    flags = ["--dataset_name", data, *QUICK, "--max_steps", "-1", "--num_train_epochs", "2", "--logging_steps", "1"]
    flags += ["--test_split_size", "1", "--packing", "false", "--save_strategy", "no"]
    one = run_recipe(*flags, "--per_device_train_batch_size", "8", "--output_dir", tmp_path / "one")
    two = launch_recipe(2, *flags, "--per_device_train_batch_size", "4", "--output_dir", tmp_path / "two")
    assert one.returncode == two.returncode == 0, one.stderr[-2000:] + two.stderr[-2000:]
    assert len(losses_of(tmp_path / "one")) == 4
    assert losses_of(tmp_path / "one") == pytest.approx(losses_of(tmp_path / "two"), abs=1e-5)


def test_no_step_is_refused_and_evaluation_drops_nothing(chats, tmp_path):
    flags = ["--dataset_name", chats, *QUICK, "--dataloader_drop_last", "true", "--packing", "false"]
    done = run_recipe(
        *flags, "--per_device_train_batch_size", "500", "--max_steps", "-1", "--output_dir", tmp_path / "a"
    )
    assert done.returncode == 2 and "There is no step to train" in done.stderr, done.stderr[-2000:]
    done = run_recipe(*flags, "--max_steps", "-1", "--num_train_epochs", "0", "--output_dir", tmp_path / "a")
    assert done.returncode == 2 and "There is no step to train" in done.stderr, done.stderr[-2000:]
    sizes = ["--per_device_eval_batch_size", "500", "--max_steps", "2"]
    done = run_recipe(*flags, *sizes, "--output_dir", tmp_path / "b")
    assert done.returncode == 0, done.stderr[-2000:]
    assert metrics_of(tmp_path / "b")["eval"]["loss"] > 1


@pytest.mark.parametrize("of", ["one", "both"])
def test_an_error_is_one_message(chats, tmp_path, of):
    """Rows are read by the first process alone, while the other waits; of flags both complain."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(chats.read_text(encoding="utf-8") + '{"messages": 3}\n', encoding="utf-8")
    flags = ["--learning_rate", "-1"] if of == "both" else ["--dataset_name", rows]
    done = launch_recipe(2, *QUICK, "--output_dir", tmp_path / "run", *flags)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-2000:]
    assert done.stderr.count("error: ") == 1
