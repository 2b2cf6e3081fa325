"""`recipes/classify.py` as its users run it: every strategy learns, tells what it found, and continues to the same
bits."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import transformers
import yaml
from safetensors.torch import load_file

import tuner.model  # noqa: F401
from tests.recipes import NANO, equal, launch_recipe, log_of, metrics_of, run_recipe
from tuner.data.sources import load_splits

pytestmark = pytest.mark.slow

SMALL = ["--vocab_size", "512", "--max_length", "48", "--test_split_size", "40", "--logging_steps", "2"]
STEPS = [
    "--num_train_epochs",
    "2",
    "--per_device_train_batch_size",
    "16",
    "--save_steps",
    "4",
    "--learning_rate",
    "1e-3",
]


@pytest.fixture(scope="module")
def news(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The beginnings of 140 news articles, with their class."""
    rows = load_splits("builtin:bbc-news", test_split_size=140, stratify=True)[1]
    file = tmp_path_factory.mktemp("news") / "news.jsonl"
    lines = [json.dumps({"text": row["text"][:300], "label": row["label"]}) for row in rows]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def classify(*flags: Any, **how: Any) -> Any:
    done = run_recipe(*flags, recipe="classify.py", **how)
    assert "kill_at" in how or done.returncode == 0, done.stderr[-2000:]
    return done


@pytest.fixture(scope="module")
def full(news: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any], Any]:
    """A new nano encoder, trained whole."""
    folder = tmp_path_factory.mktemp("full")
    flags = [*NANO, "--dataset_name", news, *SMALL, *STEPS, "--classifier_pooling", "mean"]
    return folder / "run", flags, classify(*flags, "--output_dir", folder / "run")


def test_what_is_written(full: tuple[Path, list[Any], Any]) -> None:
    folder, _, done = full
    found, page = metrics_of(folder), (folder / "classes.md").read_text(encoding="utf-8")
    assert "single_label_classification: business, entertainment, politics, sports, tech." in done.stdout
    who = found["comparison"]["accuracy"]
    assert set(who) == {"most frequent", "TF-IDF + SVM", "untrained", "trained"}
    said = re.search(r"The model loses to TF-IDF \+ SVM", done.stdout)
    assert bool(said) == (who["trained"] < who["TF-IDF + SVM"])
    figures = found["classes"]
    assert figures["accuracy"]["value"] == pytest.approx(who["trained"]) and figures["accuracy"]["n"] == 40
    assert figures["accuracy"]["low"] < figures["accuracy"]["value"] < figures["accuracy"]["high"]
    assert (folder / "confusion.png").read_bytes()[:4] == b"\x89PNG"
    wrong = round(40 * (1 - who["trained"]))
    assert f"The {min(wrong, 20)} most confident mistakes" in page and page.count(", which is ") == min(wrong, 20)
    pipe = transformers.pipeline("text-classification", model=str(folder))
    assert pipe("Shares fell.")[0]["label"] in ("business", "entertainment", "politics", "sports", "tech")


def test_the_dry_run_names_the_task(full: tuple[Path, list[Any], Any], tmp_path: Path) -> None:
    done = classify(*full[1], "--output_dir", tmp_path / "none", "--dry_run")
    for line in ("Data: single_label_classification", "cut at --max_length", "is to give", "business"):
        assert line in done.stdout, line
    assert not (tmp_path / "none").exists()


def strategy(name: str, base: Path, news: Path) -> list[Any]:
    flags = ["--model_name_or_path", base, "--dataset_name", news, *SMALL[2:], "--strategy", name, "--save_steps", "3"]
    rounds = {"lora": "2", "head": "6", "fewshot": "6"}[name]
    return [*flags, "--num_train_epochs", rounds, "--per_device_train_batch_size", "16" if name == "lora" else "64"]


@pytest.mark.parametrize("name", ["full", "head", "lora", "fewshot"])
def test_killed_it_goes_on_to_the_same_bits(name: str, full: Any, news: Path, tmp_path: Path) -> None:
    folder, flags, _ = full
    if name != "full":
        flags, folder = strategy(name, folder, news), tmp_path / "whole"
        classify(*flags, "--output_dir", folder)
    again = [*flags, "--output_dir", tmp_path / "killed", "--resume_from_checkpoint", "true"]
    assert classify(*again, kill_at="step:5").returncode == -9
    classify(*again)
    file = "adapter_model.safetensors" if name == "lora" else "model.safetensors"
    assert equal(load_file(folder / file), load_file(tmp_path / "killed" / file))
    assert metrics_of(folder)["comparison"] == metrics_of(tmp_path / "killed")["comparison"]


def test_fewshot_goes_on_from_a_checkpoint_by_name(full: Any, news: Path, tmp_path: Path) -> None:
    """It is the head's; the encoder's own is in its folder."""
    flags = [*strategy("fewshot", full[0], news), "--output_dir", tmp_path, "--adam_beta2", "0.9"]
    classify(*flags)
    saved = load_file(tmp_path / "model.safetensors")
    stage = yaml.safe_load((tmp_path / "encoder" / "run.yaml").read_text(encoding="utf-8"))
    assert stage["adam_beta2"] == 0.9, "what is given holds for both"
    classify(*flags, "--resume_from_checkpoint", tmp_path / "checkpoint-9")
    assert equal(saved, load_file(tmp_path / "model.safetensors"))


def test_a_frozen_backbone_stays_and_the_head_moves(full: Any, news: Path, tmp_path: Path) -> None:
    classify(*strategy("head", full[0], news), "--output_dir", tmp_path)
    before, after = (load_file(folder / "model.safetensors") for folder in (full[0], tmp_path))
    moved = {name for name in before if not before[name].equal(after[name])}
    assert moved == {"score.weight", "score.bias"}


def test_two_processes_are_one(full: Any, news: Path, tmp_path: Path) -> None:
    folder, flags, _ = full
    halved = ["8" if value == "16" else value for value in flags]
    done = launch_recipe(2, *halved, "--output_dir", tmp_path / "two", recipe="classify.py")
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = (log_of(sorted(place.glob("checkpoint-*"))[-1]) for place in (folder, tmp_path / "two"))
    for first, second in zip(one, two, strict=True):
        for key in {"loss", "eval_loss", "eval_accuracy"} & set(first):
            assert second[key] == pytest.approx(first[key], rel=1e-3), key
    assert metrics_of(folder)["classes"]["accuracy"] == metrics_of(tmp_path / "two")["classes"]["accuracy"]


def test_it_stops_early_keeps_the_best_and_knows_that_it_is_done(full: Any, tmp_path: Path) -> None:
    flags = [*full[1], "--num_train_epochs", "40", "--learning_rate", "0.5", "--early_stopping_patience", "2"]
    classify(*flags, "--output_dir", tmp_path)
    found = metrics_of(tmp_path)
    losses = {entry["step"]: entry["eval_loss"] for entry in found["log"] if "eval_loss" in entry}
    assert found["steps"] < 40 * 7 and found["saved_step"] == min((s for s in losses if s), key=losses.__getitem__)
    done = classify(*flags, "--output_dir", tmp_path, "--resume_from_checkpoint", "true")
    assert "is the end of this run: nothing is left to train" in done.stdout
    assert metrics_of(tmp_path)["eval"]["loss"] == pytest.approx(found["eval"]["loss"])
