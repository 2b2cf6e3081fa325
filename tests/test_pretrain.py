"""The pretraining recipe as its user runs it: every objective, killed and continued, and loaded by transformers."""

from __future__ import annotations

import json
import runpy
import shutil
import signal
import sys

import pytest
import torch
import transformers
from transformers import AutoTokenizer

import tuner.model
from tests.recipes import (
    NANO,
    ROOT,
    assert_same_run,
    eval_loss_of,
    launch_recipe,
    log_of,
    losses_of,
    metrics_of,
    run_recipe,
    untrained_loss_of,
)
from tuner.loading.checkpoints import resolve
from tuner.train.checkpoint import commit

# A dozen steps of a 4.5 M model on short real conversations, with checkpoints between log lines and evaluations.
SMALL = [
    *("--vocab_size", "600", "--max_length", "64", "--max_steps", "12", "--per_device_train_batch_size", "8"),
    *("--learning_rate", "2e-3", "--logging_steps", "3", "--save_steps", "4", "--eval_strategy", "steps"),
    *("--eval_steps", "6", "--test_split_size", "30", "--resume_from_checkpoint", "true", "--optim", "muon"),
]
OBJECTIVES = {
    "clm": ("bpe", "AutoModelForCausalLM"),
    "mlm": ("wordpiece", "AutoModelForMaskedLM"),
    "mlm+nsp": ("wordpiece", "AutoModelForPreTraining"),
    "rtd": ("bpe", None),
    "denoise": ("unigram", "AutoModelForSeq2SeqLM"),
    "contrastive": ("wordpiece", "AutoModel"),
}


# Training losses in float32, logged every 3 of 12 steps. Muon's products are in bfloat16 where that is fast, and other
# CPUs sum in another order: hence a tolerance, but less than a mistake in the data or the loss would take.
PINNED = {
    "clm": [6.4023, 6.0542, 5.784, 5.7088],
    "mlm": [6.4226, 6.1892, 6.1307, 6.0832],
    "mlm+nsp": [7.23, 6.7681, 6.8062, 6.7343],
    "rtd": [40.1791, 27.0287, 26.4095, 26.1145],
    "denoise": [6.2244, 5.176, 4.4582, 4.3722],
    "contrastive": [4.088, 3.9195, 2.8085, 2.2664],
}


def flags(objective, chats, folder):
    kind = OBJECTIVES[objective][0]
    return [
        *SMALL,
        "--objective",
        objective,
        "--train_tokenizer",
        kind,
        "--dataset_name",
        chats,
        "--output_dir",
        folder,
    ]


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_learns_compares_and_is_loaded(objective, chats, tmp_path):
    words = [*flags(objective, chats, tmp_path / "run"), "--bf16", "false"]
    done = run_recipe(*words, recipe="pretrain.py", fresh=objective == "clm")
    assert done.returncode == 0, done.stderr[-2000:]
    metrics = metrics_of(tmp_path / "run")
    assert losses_of(tmp_path / "run") == pytest.approx(PINNED[objective], rel=1e-2)
    assert eval_loss_of(tmp_path / "run") < untrained_loss_of(tmp_path / "run")
    assert metrics["comparison"] and all("trained" in values for values in metrics["comparison"].values())
    assert (tmp_path / "run" / "loss.png").stat().st_size > 5000
    assert (tmp_path / "run" / "samples.md").exists() == (objective == "clm")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    auto = OBJECTIVES[objective][1]
    kind = getattr(transformers, auto) if auto else tuner.model.TunerEncoderForReplacedTokenDetection
    model, info = kind.from_pretrained(tmp_path / "run", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    inputs = tokenizer("How are you today?", return_tensors="pt", return_token_type_ids=False)
    extra = {"decoder_input_ids": inputs["input_ids"]} if objective == "denoise" else {}
    with torch.no_grad():
        assert all(torch.isfinite(t).all() for t in model(**inputs, **extra).values() if isinstance(t, torch.Tensor))


@pytest.mark.slow
def test_an_encoder_without_heads_gets_new_ones(chats, tmp_path):
    own = [
        "--objective",
        "mlm+nsp",
        "--dataset_name",
        chats,
        "--output_dir",
        tmp_path / "run",
        "--test_split_size",
        "30",
    ]
    quick = [*SMALL[2:], "--max_length", "48", "--max_steps", "6", "--learning_rate", "1e-4"]
    done = run_recipe(*quick, *own, "--model_name_or_path", "builtin:minilm-l6", recipe="pretrain.py")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "these are new: prediction, lm_head, seq_relationship." in done.stdout
    found = tuner.model.TunerEncoderForPreTraining.from_pretrained(tmp_path / "run")
    before = transformers.AutoModel.from_pretrained(resolve("builtin:minilm-l6")[0])
    key = before.encoder.layer[0].attention.self.key.weight
    assert 0 < (found.model.layers[0].self_attn.k_proj.weight - key).abs().max() < 0.01, "trained, and from there"


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["mlm", "rtd, streamed"])
def test_a_killed_run_ends_in_the_same_bits(objective, chats, tmp_path):
    """Masks and the generator's choices are drawn again as they were; a stream, here of so few documents that it is
    read several times, goes on in the middle of one."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    objective, _, streamed = objective.partition(", ")
    more = [*NANO, *(["--streaming", "true", "--test_split_size", "100", "--shuffle_buffer", "30"] if streamed else [])]
    assert run_recipe(*flags(objective, chats, whole), *more, recipe="pretrain.py").returncode == 0
    done = run_recipe(*flags(objective, chats, killed), *more, recipe="pretrain.py", kill_at="step:7")
    assert done.returncode == -signal.SIGKILL, done.stderr[-1500:]
    done = run_recipe(*flags(objective, chats, killed), *more, recipe="pretrain.py")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Continuing from" in done.stdout
    assert_same_run(whole, killed)
    if streamed:
        last = json.loads((killed / "checkpoint-12" / "progress.json").read_text(encoding="utf-8"))["stream"]
        assert last["epoch"] >= 1 and last["blocks"] == 12 * 8


@pytest.mark.slow
def test_a_stream_without_its_place_is_not_continued(chats, tmp_path):
    """As an older version left it."""
    more = [*NANO, "--streaming", "true", "--test_split_size", "100", "--eval_strategy", "no"]
    words = [*flags("clm", chats, tmp_path / "run"), *more]
    assert run_recipe(*words, recipe="pretrain.py", kill_at="step:7").returncode == -signal.SIGKILL
    checkpoint = tmp_path / "run" / "checkpoint-4"
    kept = json.loads((checkpoint / "progress.json").read_text(encoding="utf-8"))
    del kept["stream"]
    (checkpoint / "progress.json").write_text(json.dumps(kept), encoding="utf-8")
    (checkpoint / "manifest.json").unlink()
    shutil.move(checkpoint, tmp_path / "staged")
    commit(tmp_path / "staged", checkpoint)
    done = run_recipe(*words, recipe="pretrain.py")
    assert done.returncode == 2 and "keeps no place of its stream" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_two_processes_read_one_stream(chats, tmp_path):
    """Sources of infilling are of any length; one process reads for both."""
    more = [*NANO, "--streaming", "true", "--corruption", "infilling", "--max_steps", "4", "--eval_strategy", "no"]
    done = launch_recipe(2, *flags("denoise", chats, tmp_path / "run"), *more, recipe="pretrain.py")
    assert done.returncode == 0, done.stderr[-2000:]
    progress = json.loads((tmp_path / "run" / "checkpoint-4" / "progress.json").read_text(encoding="utf-8"))
    assert progress["stream"]["blocks"] == 4 * 8 * 2


@pytest.mark.slow
def test_two_processes_evaluate_as_one(chats, tmp_path):
    """Rows that fill the last batch do not count."""
    few = [*flags("mlm", chats, tmp_path / "run"), *NANO, "--max_steps", "1", "--per_device_eval_batch_size", "7"]
    assert run_recipe(*few, "--output_dir", tmp_path / "one", recipe="pretrain.py").returncode == 0
    where = few.index("--vocab_size")
    same = [*few[:where], *few[where + 2 :], "--tokenizer_name_or_path", tmp_path / "one"]
    done = launch_recipe(2, *same, "--output_dir", tmp_path / "two", recipe="pretrain.py")
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = (log_of(tmp_path / name / "checkpoint-1")[0] for name in ("one", "two"))
    for name in ("eval_loss", "eval_accuracy"):
        assert two[name] == pytest.approx(one[name], rel=2e-3)


@pytest.mark.slow
def test_minutes_end_a_run_and_the_same_command_goes_on(chats, tmp_path):
    folder = tmp_path / "run"
    ends = [*NANO, "--max_steps", "100000", "--max_minutes", "0.05", "--eval_strategy", "no"]
    limit = [*flags("clm", chats, folder), *ends]
    steps = []
    for _ in range(2):
        done = run_recipe(*limit, recipe="pretrain.py")
        assert done.returncode == 0, done.stderr[-2000:]
        steps.append(metrics_of(folder)["steps"])
    assert "Continuing from" in done.stdout and steps[0] < steps[1] < 100000
    assert f"Stopped by --max_minutes 0.05 at step {steps[1]:,} of 100,000." in done.stdout
    assert "will not equal" not in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--objective", "mlm", "--vocab_size", "20"], "--vocab_size"),
        (["--objective", "clmm"], "clmm"),
        (["--streaming", "true"], "needs --max_steps"),
        (
            [*("--streaming", "true", "--max_steps", "1", "--test_split_size", "5"), "--dataloader_num_workers", "1"],
            "leave out --dataloader_num_workers",
        ),
        (["--objective", "mlm", "--tokenizer_name_or_path", "builtin:smollm2-135m-instruct"], "cls_token"),
    ],
)
def test_mistakes_are_one_message(words, message, chats, tmp_path, monkeypatch, capsys):
    own = ["--dataset_name", str(chats), "--output_dir", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["pretrain.py", *own, *words])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "recipes" / "pretrain.py"), run_name="__main__")
    assert stop.value.code == 2 and message in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.slow
def test_the_dry_run_shows_what_is_asked_and_writes_nothing(chats, tmp_path):
    words = [*flags("denoise", chats, tmp_path / "run"), "--clean", "light", "--dry_run", "true"]
    done = run_recipe(*words, recipe="pretrain.py")
    assert done.returncode == 0, done.stderr[-2000:]
    for expected in ("exact_duplicates", "bytes a token", "<extra_id_0>", "is to give", "Estimates"):
        assert expected in done.stdout
    assert not (tmp_path / "run").exists()
