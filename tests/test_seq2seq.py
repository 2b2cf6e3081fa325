"""`recipes/seq2seq.py` as its users run it: killed and continued to the same bits, on two processes as on one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, T5Config, T5ForConditionalGeneration

import tuner.model  # noqa: F401
from tests.objectives.test_seq2seq import ENDS, T5
from tests.processes import run_python
from tests.recipes import (
    NANO,
    ROOT,
    assert_same_run,
    eval_loss_of,
    launch_recipe,
    losses_of,
    metrics_of,
    run_recipe,
    untrained_loss_of,
)
from tests.text.samples import texts
from tuner.text.train_tokenizer import train_tokenizer

CONFIG = ROOT / "recipes" / "configs" / "seq2seq" / "tiny.yaml"
# Twelve steps on short real texts, with checkpoints between log lines and evaluations.
SMALL = [
    *("--vocab_size", "600", "--max_length", "48", "--max_steps", "12", "--per_device_train_batch_size", "8"),
    *("--learning_rate", "2e-3", "--logging_steps", "3", "--save_steps", "4", "--eval_strategy", "steps"),
    *("--eval_steps", "6", "--test_split_size", "20", "--max_predict_samples", "8", "--bf16", "false"),
    *("--dropout", "0.1", "--label_smoothing_factor", "0.1"),
]
# Training losses, logged every 3 of 12 steps; other CPUs sum in another order.
PINNED = [6.3868, 6.3034, 6.2024, 6.1103]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real texts in lower case, and as they were written."""
    said = [text for text in texts() if 10 < len(text) < 80][:150]
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("".join(json.dumps({"source": text.lower(), "target": text}) + "\n" for text in said))
    return path


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("seq2seq")
    flags = [*SMALL, *NANO, "--dataset_name", data]
    done = run_recipe(*flags, "--output_dir", folder, recipe="seq2seq.py")
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, flags, done


@pytest.mark.slow
def test_it_learns_compares_and_is_loaded(finished):
    folder, _, done = finished
    metrics = metrics_of(folder)
    assert losses_of(folder) == pytest.approx(PINNED, rel=1e-2)
    assert eval_loss_of(folder) < untrained_loss_of(folder) and "Warning" not in done.stderr
    assert set(metrics["comparison"]) == {"BLEU", "chrF", "ROUGE-1", "ROUGE-2", "ROUGE-L", "nats a target token"}
    assert set(metrics["comparison"]["chrF"]) == {"copying", "untrained", "trained"}
    assert metrics["comparison"]["chrF"]["copying"] > 80
    assert metrics["data"]["train"]["supervised"] > 0
    samples = (folder / "samples.md").read_text()
    assert samples.count("**prompt:**") == 3 and "**step 0:**" in samples and "**step 12:**" in samples
    assert (folder / "loss.png").stat().st_size > 5000
    model, info = AutoModelForSeq2SeqLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    own = model.generate(**tokenizer("hello there", return_tensors="pt"), max_new_tokens=12, do_sample=False)
    asked = run_python(
        "-m", "tuner.cli", "generate", str(folder), "hello there", "--temperature", "0", "--max_new_tokens", "12"
    )
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.strip() == tokenizer.decode(own[0], skip_special_tokens=True).strip()


@pytest.mark.slow
def test_killed_it_goes_on_to_the_same_bits(finished, tmp_path):
    folder, flags, _ = finished
    again = [*flags, "--output_dir", tmp_path, "--resume_from_checkpoint", "true"]
    assert run_recipe(*again, recipe="seq2seq.py", kill_at="step:6").returncode == -9
    done = run_recipe(*again, recipe="seq2seq.py")
    assert done.returncode == 0, done.stderr[-2000:]
    assert_same_run(folder, tmp_path)
    assert metrics_of(tmp_path)["comparison"] == metrics_of(folder)["comparison"]


@pytest.mark.slow
def test_two_processes_are_one(finished, tmp_path):
    _, flags, _ = finished
    flags = [*flags, "--dropout", "0", "--max_steps", "4", "--train_sampling_strategy", "random"]
    one = run_recipe(*flags, "--output_dir", tmp_path / "1", recipe="seq2seq.py")
    half = ["--per_device_train_batch_size", "4"]
    two = launch_recipe(2, *flags, *half, "--output_dir", tmp_path / "2", recipe="seq2seq.py")
    assert one.returncode == two.returncode == 0, two.stderr[-2000:]
    assert losses_of(tmp_path / "2") == pytest.approx(losses_of(tmp_path / "1"), rel=1e-4)
    assert eval_loss_of(tmp_path / "2") == pytest.approx(eval_loss_of(tmp_path / "1"), rel=1e-4)
    ours, theirs = (load_file(tmp_path / n / "model.safetensors") for n in ("1", "2"))
    for name, weight in ours.items():
        torch.testing.assert_close(theirs[name], weight, rtol=1e-2, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("own", ["false", "true"])
def test_a_t5_of_transformers_with_a_prefix_and_beams(data, tmp_path, own):
    """Its own class unless asked otherwise; the prefix is kept with the model, and `tuner generate` reads it there."""
    tokenizer = train_tokenizer(texts(), "bpe", 600, "seq2seq")
    base = tmp_path / "base"
    torch.manual_seed(0)
    T5ForConditionalGeneration(T5Config(**T5, vocab_size=600, decoder_start_token_id=0, **ENDS)).save_pretrained(base)
    tokenizer.save_pretrained(base)
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    translations = tmp_path / "translations.jsonl"
    lines = ({"translation": {"xx": row["source"], "en": row["target"]}} for row in rows)
    translations.write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = [*SMALL[2:-4], "--dataset_name", translations, "--source_lang", "xx", "--target_lang", "en"]
    flags += ["--model_name_or_path", base, "--own_model", own, "--source_prefix", "restore: ", "--num_beams", "2"]
    done = run_recipe(*flags, "--output_dir", tmp_path / "run", recipe="seq2seq.py")
    assert done.returncode == 0, done.stderr[-2000:]
    assert eval_loss_of(tmp_path / "run") < untrained_loss_of(tmp_path / "run")
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "run")
    assert type(model).__name__.startswith("Tuner" if own == "true" else "T5")
    assert model.config.prefix == "restore: " and model.generation_config.num_beams == 2
    inputs = tokenizer("restore: hello there", return_tensors="pt")
    written = model.generate(**inputs, max_new_tokens=12)[0]
    asked = run_python(
        "-m", "tuner.cli", "generate", str(tmp_path / "run"), "hello there",
        "--temperature", "0", "--max_new_tokens", "12",
    )  # fmt: skip
    assert asked.stdout.strip() == tokenizer.decode(written, skip_special_tokens=True).strip()


@pytest.mark.slow
def test_mistakes_are_one_message(tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"source": "a", "target": "b"}\n{"source": "a", "target": 3}\n')
    (tmp_path / "by_language.jsonl").write_text('{"translation": {"de": "ja", "en": "yes"}}\n' * 4)
    for data, flags, said in (
        ("bad.jsonl", [], "bad.jsonl, row 1: column 'target' must be a string, not int 3"),
        ("by_language.jsonl", [], "--source_lang and --target_lang say which"),
        ("by_language.jsonl", ["--source_lang", "fr", "--target_lang", "de"], "has no text in 'fr': de, en"),
        ("by_language.jsonl", ["--source_lang", "en"], "--source_lang and --target_lang go together"),
        ("bad.jsonl", ["--truncation_mode", "split"], "--truncation_mode"),
        ("bad.jsonl", ["--packing", "true"], "--packing is for causal models"),
    ):
        words = ["--dataset_name", tmp_path / data, "--output_dir", tmp_path / "run", *flags]
        done = run_recipe(*words, recipe="seq2seq.py")
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr[-2000:]
        assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.long
def test_the_tiny_configuration_beats_copying(tmp_path):
    done = run_recipe("--config", CONFIG, "--output_dir", tmp_path, recipe="seq2seq.py", timeout=3000)
    assert done.returncode == 0, done.stderr[-2000:]
    found = metrics_of(tmp_path)["comparison"]
    assert found["BLEU"]["trained"] > found["BLEU"]["copying"] + 15
    assert all(found[name]["trained"] > found[name]["copying"] for name in ("chrF", "ROUGE-1", "ROUGE-L"))
