"""An evaluation as a whole: which tasks fit, gates, several models, two processes, memory, and what is written."""

import json
import tracemalloc

import pytest
import yaml
from huggingface_hub import parse_eval_result_entries
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.evaluation.tasks.helpers import json_of, run, samples_of, save_decoder, save_with_head, write_rows
from tests.processes import ROOT, run_fresh, run_python, run_together
from tests.text import samples
from tuner.config.arguments import parse_arguments
from tuner.config.evaluation import TASKS, EvaluationArguments
from tuner.errors import ArgumentError, DataError, GateError, ModelError, TunerError
from tuner.evaluation.plan import plan_evaluation, task_class
from tuner.evaluation.run import evaluate
from tuner.model import TunerEncoderForSequenceClassification

RECIPE = ROOT / "recipes" / "evaluate.py"


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    return save_decoder(tmp_path_factory.mktemp("models") / "nano")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    rows = [{"text": text, "author": f"author {number // 3}"} for number, text in enumerate(samples.texts()[:24])]
    return write_rows(tmp_path_factory.mktemp("data") / "texts.jsonl", rows)


def plan(*flags):
    return plan_evaluation(parse_arguments(EvaluationArguments, [str(flag) for flag in flags]))


# ---- what fits ----


def test_the_tasks_that_take_the_rows(nano, texts, chats, tmp_path):
    pairs = write_rows(tmp_path / "pairs.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 3)
    classes = write_rows(tmp_path / "classes.csv", [])
    classes.write_text("text,label\ngood,yes\nbad,no\n")
    asked = {"question": "what?", "context": "It is this.", "answers": {"text": ["this"], "answer_start": [6]}}
    questions = write_rows(tmp_path / "questions.jsonl", [asked] * 2)
    for path, expected in (
        (texts, ["perplexity", "generation"]),
        (chats, ["perplexity", "generation"]),
        (pairs, ["preference"]),
        (classes, ["perplexity", "generation", "classification"]),
        (questions, ["qa"]),
    ):
        found = plan("--model_name_or_path", nano, "--dataset_name", path)
        assert [task.name for task in found.tasks] == expected, path


def test_without_rows_all_tasks_that_take_the_model(nano):
    assert {task.name for task in plan("--model_name_or_path", nano).tasks} == set(TASKS)


def test_a_file_is_evaluated_whole_and_a_built_in_as_it_was_set_aside(nano, texts):
    [perplexity, _] = plan("--model_name_or_path", nano, "--dataset_name", texts).tasks
    assert len(perplexity.data.rows) == 24 and "all of its rows" in perplexity.data.what
    [perplexity, _] = plan("--model_name_or_path", nano, "--dataset_name", texts, "--test_split_size", 4).tasks
    assert len(perplexity.data.rows) == 4
    found = plan("--model_name_or_path", nano, "--tasks", "perplexity", "--dataset_name", "builtin:chitchat-small")
    assert len(found.tasks[0].data.rows) == 10 and "training sets aside" in found.tasks[0].data.what


def test_a_run_is_evaluated_on_what_it_was_validated_on(chats, tmp_path):
    folder = save_decoder(tmp_path / "run")
    (folder / "run.yaml").write_text(f"dataset_name: {chats}\ntest_split_size: 7\n")
    [task] = plan("--model_name_or_path", folder, "--tasks", "perplexity").tasks
    assert len(task.data.rows) == 7 and "was validated on" in task.data.what


def test_few_rows_are_spread_over_all(nano, texts, tmp_path):
    flags = ("--model_name_or_path", nano, "--dataset_name", texts, "--tasks", "perplexity")
    run(*flags, "--max_eval_samples", 6, "--output_dir", tmp_path)
    lines = [json.loads(line)["text"] for line in texts.read_text().splitlines()]
    assert [s["text"] for s in samples_of(tmp_path, "perplexity")] == lines[2::4]


@pytest.mark.parametrize(
    ("flags", "error", "said"),
    [
        (("--tasks", "perplxity"), ArgumentError, "Did you mean perplexity"),
        (("--tasks", "perplexity", "--max_new_tokens", "3"), ArgumentError, "--max_new_tokens is for generation, qa"),
        (("--tasks", "safety", "--dataset_name", "builtin:bbc-news"), ArgumentError, "--dataset_name is for "),
        (("--tasks", "preference", "--dataset_name", "builtin:chitchat"), DataError, "pairs of answers are needed"),
        (("--tasks", "perplexity", "--dataset_name", "no.jsonl"), DataError, "no such file"),
        (("--tasks", "generation", "--top_p", "0.5"), ArgumentError, "pass --temperature above 0"),
        (("--learning_rate", "1"), ArgumentError, "unknown flag or key 'learning_rate'"),
        (("--tasks", "perplexity", "--cluster_column", "who"), DataError, "--cluster_column who: .* has the columns"),
        (("--models", "a", "b"), ArgumentError, "--models is in place of --model_name_or_path"),
        (("--gate", "good"), ArgumentError, "--gate 'good': expected a figure"),
        (("--tasks", "perplexity", "--gate", "accuracy>0.5"), ArgumentError, "the figures are perplexity, word_perp"),
        (("--gate", "chess.elo>1"), ArgumentError, "there is no task 'chess'"),
        (("--tasks", "perplexity", "--gate", "qa.f1>0.5"), ArgumentError, "--gate qa.f1>0.5: evaluated are perplexity"),
    ],
)  # fmt: skip
def test_what_is_refused_before_a_model_is_loaded(flags, error, said, nano, monkeypatch):
    monkeypatch.setattr("tuner.evaluation.run.load_subject", None)
    with pytest.raises(error, match=said):
        run("--model_name_or_path", nano, *flags)


def test_models_that_no_task_takes(nano, tmp_path):
    with pytest.raises(ModelError, match="minilm-l6 is a BertModel: no task evaluates that"):
        plan("--model_name_or_path", "builtin:minilm-l6")
    with pytest.raises(ModelError, match="nowhere: no such folder"):
        plan("--model_name_or_path", "./nowhere")
    alone = save_decoder(tmp_path / "alone")
    for file in alone.glob("*token*"):
        file.unlink()
    with pytest.raises(ModelError, match=r"--tokenizer_name_or_path"):
        run("--model_name_or_path", alone, "--tasks", "safety")
    run("--model_name_or_path", alone, "--tasks", "safety", "--tokenizer_name_or_path", nano, "--max_eval_samples", 4)


def test_adapters_as_peft_saves_them(nano, texts, tmp_path):
    """Without a tokenizer beside them; one that cannot be merged is named."""
    for name, config in (
        ("lora", LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False)),
        ("prompt", PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)),
    ):
        adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(nano), config)
        adapted.peft_config["default"].base_model_name_or_path = str(nano)
        adapted.save_pretrained(tmp_path / name)
    flags = ("--dataset_name", texts, "--tasks", "perplexity", "--max_eval_samples", 4, "--output_dir", tmp_path)
    [outcome] = run("--models", nano, tmp_path / "lora", *flags)
    assert outcome.figures["lora"]["perplexity"].value != outcome.figures["nano"]["perplexity"].value
    with pytest.raises(ModelError, match="prompt is a prompt or prefix, which no weights can take"):
        run("--model_name_or_path", tmp_path / "prompt", *flags)


def test_an_empty_file(nano, tmp_path):
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match=r"empty.jsonl is empty"):
        plan("--model_name_or_path", nano, "--dataset_name", tmp_path / "empty.jsonl")


def test_every_task_says_which_way_its_figures_are_better():
    for name in TASKS:
        kind = task_class(name)
        assert kind.name == name and set(kind.figures.values()) <= {"higher", "lower", ""}
        assert set(kind.by_row) <= set(kind.figures)


# ---- what comes of it ----


def test_two_models_on_the_same_rows(nano, texts, tmp_path):
    other = save_decoder(tmp_path / "other", seed=5)
    flags = ("--models", nano, other, "--dataset_name", texts, "--tasks", "perplexity", "--cluster_column", "author")
    [outcome] = run(*flags, "--output_dir", tmp_path / "out")
    found = {difference.score: difference for difference in outcome.differences}["nats_a_token"]
    assert (found.first, found.other) == ("nano", "other") and found.test == "paired permutation of clusters"
    folder = tmp_path / "out" / "eval"
    ones, others = (
        [json.loads(line)["scores"]["nats_a_token"] for line in (folder / f"perplexity.{m}.samples.jsonl").open()]
        for m in ("nano", "other")
    )
    assert found.estimate.value == pytest.approx(sum(others) / 24 - sum(ones) / 24)
    report = (folder / "report.md").read_text()
    assert "|  | nano | other |" in report and "bootstrap of 8 clusters" in report
    assert (folder / "models.png").is_file() and (folder / "perplexity.png").is_file()
    assert f"p = {found.p:.3g}" in report


def test_the_same_model_twice_differs_in_nothing(nano, texts, tmp_path):
    copy = save_decoder(tmp_path / "copy")
    [outcome] = run("--models", nano, copy, "--dataset_name", texts, "--tasks", "perplexity", "--output_dir", tmp_path)
    assert all(d.estimate.value == 0 and d.p == 1 for d in outcome.differences) and outcome.differences


def test_the_hubs_form(nano, texts, tmp_path):
    run("--model_name_or_path", nano, "--dataset_name", texts, "--tasks", "perplexity", "--output_dir", tmp_path)
    entries = parse_eval_result_entries(yaml.safe_load((tmp_path / ".eval_results" / "perplexity.yaml").read_text()))
    figures = json_of(tmp_path, "perplexity")["models"]["nano"]["figures"]
    assert {entry.task_id: entry.value for entry in entries} == {
        f"perplexity.{name}": round(figure["value"], 6) for name, figure in figures.items()
    }
    assert entries[0].dataset_id == str(texts) and "n = 24" in entries[0].notes and "seed 42" in entries[0].notes


def test_a_later_task_joins_the_report(nano, texts, tmp_path):
    flags = ("--model_name_or_path", nano, "--output_dir", tmp_path, "--max_eval_samples", 4)
    run(*flags, "--dataset_name", texts, "--tasks", "perplexity")
    run(*flags, "--tasks", "safety")
    report = (tmp_path / "eval" / "report.md").read_text()
    assert "## perplexity" in report and "## safety" in report and report.count("# Evaluation of nano") == 1


def test_the_report_lies_in_the_models_folder(texts, tmp_path):
    folder = save_decoder(tmp_path / "run")
    run("--model_name_or_path", folder, "--dataset_name", texts, "--tasks", "perplexity")
    assert (folder / "eval" / "report.md").is_file()
    AutoTokenizer.from_pretrained(folder)


def test_memory_does_not_grow_with_the_rows(tmp_path):
    """Texts of many rows are never held at once: four times the rows, and not their bytes more."""
    model = save_with_head(tmp_path / "model", TunerEncoderForSequenceClassification, ["no", "yes"])
    text = "some words of a text " * 400

    def peak(count):
        path = write_rows(tmp_path / f"{count}.jsonl", [{"text": f"{n} {text}", "label": "yes"} for n in range(count)])
        found = plan("--model_name_or_path", model, "--dataset_name", path, "--max_length", 8, "--output_dir", tmp_path)
        tracemalloc.start()
        try:
            evaluate(found)
            return tracemalloc.get_traced_memory()[1], path.stat().st_size
        finally:
            tracemalloc.stop()

    peak(64)  # what is loaded at the first use
    (few, small), (many, large) = peak(150), peak(600)
    assert large - small > 3_500_000 and many - few < (large - small) / 4


# ---- gates ----


def test_gates(nano, texts, tmp_path):
    flags = ("--model_name_or_path", nano, "--dataset_name", texts, "--tasks", "perplexity", "--output_dir", tmp_path)
    run(*flags, "--gate", "bits_per_byte>0.1", "perplexity.perplexity<1e9")
    with pytest.raises(GateError, match=r"bits_per_byte<0.1: nano has perplexity.bits_per_byte \d"):
        run(*flags, "--gate", "bits_per_byte<0.1")
    assert (tmp_path / "eval" / "report.md").is_file()


def test_a_gate_of_a_figure_that_nobody_made(nano, tmp_path):
    flags = ("--model_name_or_path", nano, "--tasks", "safety", "--max_eval_samples", 4, "--output_dir", tmp_path)
    with pytest.raises(ArgumentError, match=r"--gate score_gap<1: the figures are association"):
        run(*flags, "--gate", "score_gap<1")


@pytest.mark.slow
def test_exit_codes(nano, texts, tmp_path):
    flags = ("--model_name_or_path", nano, "--dataset_name", texts, "--tasks", "perplexity", "--output_dir", tmp_path)
    for gate, code, said in (
        ("perplexity>1", 0, ""),
        ("perplexity<1", 1, "has perplexity.perplexity"),
        ("f2>1", 2, "f2"),
    ):
        done = run_python(RECIPE, *flags, "--gate", gate)
        assert done.returncode == code, done.stderr[-2000:]
        last = done.stderr.strip().splitlines()[-1] if code else ""
        assert said in last and last.startswith("error: --gate" if code else "")


@pytest.mark.slow
def test_two_processes_are_one(nano, tmp_path):
    """All tasks: the same samples to the byte, and the same figures."""
    flags = ["--model_name_or_path", nano, "--max_eval_samples", 30, "--per_device_eval_batch_size", 2]
    flags += ["--max_new_tokens", 6, "--temperature", 1]
    one = run_python(RECIPE, *map(str, flags), "--output_dir", tmp_path / "1")
    two = run_together(2, RECIPE, *map(str, flags), "--output_dir", tmp_path / "2")
    assert one.returncode == two.returncode == 0, (one.stderr[-1000:], two.stderr[-2000:])
    for name in TASKS:
        ones, twos = (tmp_path / n / "eval" / f"{name}.samples.jsonl" for n in ("1", "2"))
        assert ones.read_text() == twos.read_text(), name
        first, second = (json_of(tmp_path / n, name)["models"]["nano"]["figures"] for n in ("1", "2"))
        assert first == second, name
    assert not list((tmp_path / "2" / "eval").glob(".*")), "no shard is left"
    assert two.stdout.count("Written to") == 1


def test_the_library_evaluate_is_not_the_recipe():
    """A script's folder comes first on Python's path, and the recipe has the library's name."""
    code = f"import sys; sys.path.insert(0, {str(RECIPE.parent)!r}); import tuner, evaluate; print(evaluate.__file__)"

    done = run_fresh("-c", code)
    assert done.returncode == 0 and "site-packages" in done.stdout, done.stderr[-500:]


def test_a_flag_of_another_type(nano):
    with pytest.raises(TunerError, match="--max_eval_samples: expected a number of at least 1"):
        plan("--model_name_or_path", nano, "--max_eval_samples", 0)
