"""`recipes/classify.py` on tags and on questions as its users run it: every strategy, killed and continued to the same
bits, two processes as one, and folders that others load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from safetensors.torch import load_file

import tuner.model  # noqa: F401
from tests.recipes import NANO, equal, launch_recipe, log_of, metrics_of, run_recipe
from tuner.data.sources import load_splits

pytestmark = pytest.mark.slow

SMALL = ["--test_split_size", "20", "--logging_steps", "2", "--save_steps", "4", "--learning_rate", "1e-3"]
BATCH = ["--num_train_epochs", "2", "--per_device_train_batch_size", "16", "--bf16", "false"]
OF = {
    "names": ["--max_length", "48"],
    "quotes": ["--max_length", "96", "--doc_stride", "24", "--max_answer_length", "8"],
}
FIGURES = {
    "names": {"loss", "accuracy", "precision", "recall", "f1"},
    "quotes": {"loss", "start_accuracy", "end_accuracy", "exact"},
}


def classify(*flags: Any, **how: Any) -> Any:
    done = run_recipe(*flags, recipe="classify.py", **how)
    assert "kill_at" in how or done.returncode == 0, done.stderr[-2000:]
    return done


@pytest.fixture(scope="module", params=OF)
def full(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, list[Any], Any]:
    """A new nano encoder, trained whole."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    rows = load_splits(f"builtin:bbc-{name}", test_split_size=100 if name == "names" else 60)[1]
    short = [{**row, "context": row["context"][:700]} if "context" in row else row for row in rows]
    kept = [row for row in short if all(t in row.get("context", t) for t in row.get("answers", {"text": []})["text"])]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps({k: v for k, v in r.items() if k != "source_row"}) + "\n" for r in kept))
    flags = ["--dataset_name", file, *OF[name], *SMALL, *BATCH]
    return name, folder / "run", flags, classify(*NANO, "--vocab_size", "512", *flags, "--output_dir", folder / "run")


def test_what_is_written(full: Any) -> None:
    name, folder, _, done = full
    found, page = metrics_of(folder), (folder / "classes.md").read_text(encoding="utf-8")
    assert {key for key in found["eval"] if not key.startswith(("epoch", "runtime", "s"))} >= FIGURES[name] - {
        "start_accuracy"
    }
    assert found["eval"]["loss"] < found["untrained"]["loss"] and ", which is " in page
    if name == "names":
        assert "token_classification: B-NAME, I-NAME, O." in done.stdout and found["objective"] == "tagging"
        assert found["comparison"]["f1"]["trained"] == pytest.approx(found["classes"]["f1"]["value"])
        assert found["classes"]["f1"]["value"] == pytest.approx(found["eval"]["f1"])
        pipe = transformers.pipeline("token-classification", model=str(folder), aggregation_strategy="simple")
        assert {each["entity_group"] for each in pipe("the leader of new york met bill gates")} <= {"NAME"}
        assert set(pipe.model.config.label2id) == {"B-NAME", "I-NAME", "O"}
    else:
        assert "question_answering: no classes." in done.stdout and found["objective"] == "question_answering"
        assert found["comparison"]["f1"]["trained"] == found["classes"]["f1"]["value"]
        assert "no answer" in found["comparison"]["f1"]
        transformers.AutoModelForQuestionAnswering.from_pretrained(folder)


def test_the_dry_run_names_the_task(full: Any, tmp_path: Path) -> None:
    name, folder, flags, _ = full
    done = classify(*flags, "--model_name_or_path", folder, "--output_dir", tmp_path / "none", "--dry_run")
    known = ("Data: token_classification", "B-NAME") if name == "names" else ("Data: question_answering", "is to give")
    assert all(line in done.stdout for line in known) and not (tmp_path / "none").exists()


@pytest.mark.parametrize("strategy", ["full", "head", "lora", "upper"])
def test_killed_it_goes_on_to_the_same_bits(strategy: str, full: Any, tmp_path: Path) -> None:
    _, base, flags, _ = full
    upper, strategy = strategy == "upper", "lora" if strategy == "upper" else strategy
    flags = [*flags, "--model_name_or_path", base, "--strategy", strategy]
    if strategy == "lora":
        flags += ["--merge", "true", "--lora_layers", "upper" if upper else "all"]
    classify(*flags, "--output_dir", tmp_path / "whole")
    again = [*flags, "--output_dir", tmp_path / "killed", "--resume_from_checkpoint", "true"]
    assert classify(*again, kill_at="step:6").returncode == -9
    classify(*again)
    file = "adapter_model.safetensors" if strategy == "lora" else "model.safetensors"
    one, other = (load_file(tmp_path / run / file) for run in ("whole", "killed"))
    assert equal(one, other)
    assert metrics_of(tmp_path / "whole")["classes"] == metrics_of(tmp_path / "killed")["classes"]
    if strategy == "head":
        before = load_file(base / "model.safetensors")
        assert {key.split(".")[0] for key in before if not before[key].equal(one[key])} <= {"score", "qa_outputs"}
    if strategy == "lora":
        names = json.loads((tmp_path / "whole" / "merged" / "config.json").read_text()).get("id2label")
        assert names == json.loads((base / "config.json").read_text()).get("id2label")
        merged = load_file(tmp_path / "whole" / "merged" / "model.safetensors")
        heads = [key for key in merged if key.startswith(("score", "qa_outputs"))]
        trained = {key.removeprefix("base_model.model."): value for key, value in one.items()}
        assert len(heads) == 2 and all(merged[key].equal(trained[key]) for key in heads)


def test_two_processes_are_one(full: Any, tmp_path: Path) -> None:
    _, folder, flags, _ = full
    halved = [*NANO, "--vocab_size", "512", *("8" if value == "16" else value for value in flags)]
    done = launch_recipe(2, *halved, "--output_dir", tmp_path / "two", recipe="classify.py")
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = (log_of(sorted(place.glob("checkpoint-*"))[-1]) for place in (folder, tmp_path / "two"))
    for first, second in zip(one, two, strict=True):
        for key in first.keys() & {"loss", *(f"eval_{name}" for name in FIGURES[full[0]])}:
            assert second[key] == pytest.approx(first[key], rel=1e-3, abs=1e-6), key
    for name, figure in metrics_of(folder)["classes"].items():
        if isinstance(figure, dict):
            assert metrics_of(tmp_path / "two")["classes"][name]["value"] == pytest.approx(figure["value"], rel=1e-3)


def test_the_best_by_the_entities_is_kept(full: Any, tmp_path: Path) -> None:
    name, base, flags, _ = full
    best = "f1" if name == "names" else "exact"
    more = ["--early_stopping_patience", "2", "--metric_for_best_model", best, "--greater_is_better", "true"]
    classify(*flags, "--model_name_or_path", base, "--output_dir", tmp_path, *more)
    found = metrics_of(tmp_path)
    values = [entry[f"eval_{best}"] for entry in found["log"] if f"eval_{best}" in entry and entry["step"]]
    assert found["eval"][best] == max(values)


def test_bad_rows_end_without_a_traceback(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(
        json.dumps({"tokens": ["a", "b"], "tags": ["O"]}) + "\n" + json.dumps({"tokens": ["a"], "tags": ["X"]})
    )
    done = run_recipe(*NANO, "--dataset_name", file, "--output_dir", tmp_path / "run", recipe="classify.py")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "column 'tokens' has 2 tokens and column 'tags' 1 tags: one each is needed" in done.stderr
