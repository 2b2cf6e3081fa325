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


@pytest.mark.parametrize("what", ["questions", "fewshot"])
def test_rows_with_labels_that_are_read_as_one(tmp_path, what):
    row = {"question": "Who?", "context": "It is Ann.", "answers": {"text": ["Ann"], "answer_start": [6]}}
    rows = [row] * 8 if what == "questions" else [{"text": f"good {n}", "label": "ab"[n % 2]} for n in range(8)]
    names = [tmp_path / f"{name}.jsonl" for name in ("one", "two")]
    for name in names:
        name.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    flags = ["--dataset_name", *names, "--dataset_weights", "1", "1", "--model_name_or_path", "builtin:minilm-l6"]
    flags += ["--strategy", "fewshot"] if what == "fewshot" else []
    done = run_recipe(*flags, "--output_dir", tmp_path / "run", recipe="classify.py")
    assert done.returncode == 2 and "reads all rows alike. Leave it out." in done.stderr


@pytest.mark.parametrize(
    "flags",
    [
        ["--objective", "clm", "--clean", "none"], ["--objective", "clm", "--clean", "light"], ["--objective", "mlm"],
        ["--objective", "mlm+nsp"], ["--objective", "rtd"], ["--objective", "denoise"], ["--objective", "contrastive"],
        ["--objective", "contrastive", "--views", "deletion"],
    ],
    ids=lambda flags: " ".join(flags[1::2]),
)  # fmt: skip
def test_documents_of_several_sets_have_shares(sets, tmp_path, flags):
    flags = [*flags, "--dataset_name", sets / "chats.jsonl", "builtin:chatterbot", "--dataset_weights", "1", "3"]
    flags += [*NANO, "--preset", "tiny", "--vocab_size", "512", "--max_length", "64", "--max_steps", "3"]
    flags += ["--logging_steps", "1", "--eval_strategy", "no"]
    done = run_recipe(*flags, "--output_dir", tmp_path / "run", recipe="pretrain.py")
    assert done.returncode == 0, done.stderr[-2000:]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))["eval"]
    one, other = metrics["chats_loss"], metrics["chatterbot_loss"]
    # A loss of two means, as that of mlm+nsp, is not quite between those of the sets.
    slack = 0.0 if "clm" in flags or "mlm" in flags else 0.05 * metrics["loss"]
    assert one != other and min(one, other) - slack <= metrics["loss"] <= max(one, other) + slack
    dry = run_recipe(*flags, "--dry_run", "--output_dir", tmp_path / "dry", recipe="pretrain.py")
    assert "chatterbot (75.0%" in " ".join(dry.stdout.split())


@pytest.mark.parametrize(
    ("recipe", "rows", "flags"),
    [
        (
            "classify.py",
            lambda n, what: {"text": f"{what} {'good' if n % 2 else 'bad'} {n}", "label": "ab"[n % 2]},
            ["--model_name_or_path", "builtin:minilm-l6", "--strategy", "head"],
        ),
        (
            "seq2seq.py",
            lambda n, what: {"source": f"{what} {n} and one", "target": f"{n + 1} {what}"},
            ["--preset", "tiny"],
        ),
        (
            "reward.py",
            lambda n, what: {"prompt": f"{what} {n}?", "chosen": f"yes {n}", "rejected": f"no {what} {n}"},
            ["--model_name_or_path", "builtin:minilm-l6", "--chat_template_path", "bert", "--max_length", "128"],
        ),
    ],
)
def test_each_method_has_each_sets_loss(tmp_path, recipe, rows, flags):
    for name, count in (("first", 24), ("second", 36)):
        lines = [json.dumps(rows(n, name)) + "\n" for n in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    flags = ["--dataset_name", tmp_path / "first.jsonl", tmp_path / "second.jsonl", *flags]
    flags += ["--dataset_weights", "3", "1", "--max_steps", "2", "--test_split_size", "8", "--eval_strategy", "no"]
    done = run_recipe(*flags, "--output_dir", tmp_path / "run", recipe=recipe)
    assert done.returncode == 0, done.stderr[-2000:]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))["eval"]
    one, other = metrics["first_loss"], metrics["second_loss"]
    assert min(one, other) <= metrics["loss"] <= max(one, other)
    dry = run_recipe(*flags, "--dry_run", "--output_dir", tmp_path / "dry", recipe=recipe)
    assert "first (75.0%" in " ".join(dry.stdout.split())


def test_two_processes_share_each_sets_rows(whole, sets, tmp_path):
    """The first evaluation, before any step, is that of one process; and as many rows come in an epoch."""
    flags = ["--config", sets / "mixture.yaml", *FLAGS, "--per_device_train_batch_size", "2"]
    done = launch_recipe(2, *flags, "--output_dir", tmp_path / "two")
    assert done.returncode == 0, done.stderr[-2000:]
    logs = [json.loads((f / "metrics.json").read_text(encoding="utf-8"))["log"] for f in (whole, tmp_path / "two")]
    for name in ("eval_loss", "eval_chats_loss", "eval_sums_loss"):
        one, two = ([entry[name] for entry in log if name in entry] for log in logs)
        assert two[0] == pytest.approx(one[0], rel=1e-5) and two[-1] == pytest.approx(one[-1], rel=0.05)
