"""Labels: classes are compared by name, figures are scikit-learn's, predictions are the pipeline's."""

import numpy as np
import pytest
from sklearn import metrics
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from tests.evaluation.tasks.helpers import json_of, run, samples_of, save_decoder, save_with_head, write_rows
from tuner.errors import DataError, ModelError
from tuner.model import TunerEncoderForSequenceClassification, TunerEncoderForTokenClassification

NAMES = ["business", "politics", "sports"]
WORDS = [
    "the",
    "game",
    "of",
    "a",
    "price",
    "and",
    "votes",
    "in",
    "town",
    "was",
    "won",
    "by",
    "many",
    "people",
    "who",
    "said",
    "so",
    "again",
    "today",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_with_head(tmp_path_factory.mktemp("models") / "three", TunerEncoderForSequenceClassification, NAMES)


def texts(count, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(3, 30))) for _ in range(count)]


def labelled(path, count=60, names=NAMES):
    rng = np.random.default_rng(1)
    return write_rows(path, [{"text": text, "label": str(rng.choice(names))} for text in texts(count)])


def test_of_one_class(model, tmp_path):
    path = labelled(tmp_path / "rows.jsonl")
    [outcome] = run("--model_name_or_path", model, "--dataset_name", path, "--output_dir", tmp_path)
    found, figures = samples_of(tmp_path, "classification"), outcome.figures["three"]
    tell = pipeline("text-classification", str(model), top_k=None)
    for sample, scores in zip(found, tell([s["text"] for s in found], truncation=True), strict=True):
        assert sample["prediction"] == scores[0]["label"]
        by_name = dict(zip(NAMES, sample["probabilities"], strict=True))
        assert by_name == pytest.approx({each["label"]: each["score"] for each in scores}, abs=1e-5)
    said, wanted = [s["prediction"] for s in found], [s["reference"] for s in found]
    chances = np.array([s["probabilities"] for s in found])
    one_hot = np.array([[name == label for name in NAMES] for label in wanted])
    expected = {
        "accuracy": metrics.accuracy_score(wanted, said),
        "f1_macro": metrics.f1_score(wanted, said, average="macro"),
        "matthews_correlation": metrics.matthews_corrcoef(wanted, said),
        "roc_auc": metrics.roc_auc_score(one_hot, chances, average="macro"),
        "nll": metrics.log_loss(wanted, chances, labels=NAMES),
    }
    assert {name: figures[name].value for name in expected} == pytest.approx(expected)
    assert figures["accuracy"].method == "Wilson" and figures["f1_macro"].low < figures["f1_macro"].high
    baseline = json_of(tmp_path, "classification")["baselines"]["accuracy"]["most frequent of these rows"]
    assert baseline == max(wanted.count(name) for name in NAMES) / 60


def test_names_are_compared_and_not_places(model, tmp_path):
    """The same head whose labels are written in another order is another model."""
    other = tmp_path / "other"
    tokenizer, loaded = AutoTokenizer.from_pretrained(model), AutoModelForSequenceClassification.from_pretrained(model)
    loaded.config.id2label = {0: "sports", 1: "business", 2: "politics"}
    loaded.config.label2id = {name: number for number, name in loaded.config.id2label.items()}
    loaded.save_pretrained(other)
    tokenizer.save_pretrained(other)
    path = labelled(tmp_path / "rows.jsonl", 20)
    run("--models", model, other, "--dataset_name", path, "--output_dir", tmp_path)
    one, two = (
        [s["prediction"] for s in samples_of(tmp_path, f"classification.{label}")] for label in ("three", "other")
    )
    renamed = {"business": "sports", "politics": "business", "sports": "politics"}
    assert two == [renamed[name] for name in one]


def test_a_label_that_the_model_does_not_know(model, tmp_path):
    path = labelled(tmp_path / "rows.jsonl", 20, ["sports", "weather"])
    with pytest.raises(DataError, match=r"'weather', which .*three does not know: it tells business, politics, sports"):
        run("--model_name_or_path", model, "--dataset_name", path, "--output_dir", tmp_path)


def test_numbers_for_classes_that_nobody_named(tmp_path):
    names = ["LABEL_0", "LABEL_1"]
    model = save_with_head(tmp_path / "two", TunerEncoderForSequenceClassification, names)
    rows = [{"text": text, "label": number % 2} for number, text in enumerate(texts(10))]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    run("--model_name_or_path", model, "--dataset_name", path, "--output_dir", tmp_path)
    assert {s["prediction"] for s in samples_of(tmp_path, "classification")} <= {"0", "1"}


def test_a_figure_that_there_is_not(model, tmp_path):
    path = labelled(tmp_path / "rows.jsonl", 8, ["sports"])
    [outcome] = run("--model_name_or_path", model, "--dataset_name", path, "--output_dir", tmp_path)
    assert "roc_auc" not in outcome.figures["three"] and "accuracy" in outcome.figures["three"]
    assert "no row has the label 'business'" in (tmp_path / "eval" / "report.md").read_text()


def test_of_any_number_of_classes(tmp_path):
    model = save_with_head(
        tmp_path / "any", TunerEncoderForSequenceClassification, NAMES, problem_type="multi_label_classification"
    )
    rng = np.random.default_rng(2)
    rows = [{"text": text, "labels": [n for n in NAMES if rng.random() < 0.5]} for text in texts(40)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    [outcome] = run("--model_name_or_path", model, "--dataset_name", path, "--output_dir", tmp_path)
    found, figures = samples_of(tmp_path, "classification"), outcome.figures["any"]
    said, wanted = ([[n in s[key] for n in NAMES] for s in found] for key in ("prediction", "reference"))
    assert figures["f1_micro"].value == pytest.approx(metrics.f1_score(wanted, said, average="micro"))
    assert figures["accuracy"].value == pytest.approx(metrics.accuracy_score(np.array(wanted), np.array(said)))
    with pytest.raises(DataError, match="texts with any number of classes are needed"):
        flags = ("--tasks", "classification", "--output_dir", tmp_path)
        run("--model_name_or_path", model, "--dataset_name", labelled(tmp_path / "one.jsonl", 5), *flags)


def test_of_a_number(tmp_path):
    model = save_with_head(tmp_path / "number", TunerEncoderForSequenceClassification, ["x"], problem_type="regression")
    rows = [{"text": text, "label": len(text) / 7} for text in texts(30)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    [outcome] = run("--model_name_or_path", model, "--dataset_name", path, "--output_dir", tmp_path)
    found = samples_of(tmp_path, "classification")
    errors = np.array([s["prediction"] - s["reference"] for s in found])
    assert outcome.figures["number"]["rmse"].value == pytest.approx(np.sqrt((errors**2).mean()))
    assert json_of(tmp_path, "classification")["baselines"]["rmse"]["their mean"] > 0


def test_of_tokens(tmp_path):
    names = ["O", "B-X", "I-X"]
    model = save_with_head(tmp_path / "tags", TunerEncoderForTokenClassification, names)
    rng = np.random.default_rng(3)
    rows = [{"tokens": t.split(), "tags": [str(rng.choice(names)) for _ in t.split()]} for t in texts(20)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    [outcome] = run("--model_name_or_path", model, "--dataset_name", path, "--output_dir", tmp_path)
    found = samples_of(tmp_path, "classification")
    tell = pipeline("token-classification", str(model), aggregation_strategy="none", ignore_labels=[])
    for sample in found:  # every word as the pipeline reads it in its text: by its first token
        pieces, starts = tell(" ".join(sample["tokens"])), np.cumsum([0, *(len(word) + 1 for word in sample["tokens"])])
        firsts = [next(piece["entity"] for piece in pieces if piece["end"] > start) for start in starts[:-1].tolist()]
        assert sample["prediction"] == firsts
    assert set(outcome.figures["tags"]) == {"f1", "precision", "recall", "token_accuracy"}


def test_a_causal_model_is_asked(tmp_path):
    """Each class's name is an answer; the likeliest is the prediction."""
    model, path = save_decoder(tmp_path / "nano"), labelled(tmp_path / "rows.jsonl", 12)
    flags = ("--model_name_or_path", model, "--dataset_name", path, "--tasks", "classification")
    [outcome] = run(*flags, "--output_dir", tmp_path)
    found = samples_of(tmp_path, "classification")
    assert all(sum(s["probabilities"]) == pytest.approx(1) for s in found)
    assert all(s["prediction"] == NAMES[int(np.argmax(s["probabilities"]))] for s in found)
    assert outcome.figures["nano"]["accuracy"].n == 12


def test_models_of_two_kinds(model, tmp_path):
    nano, path = save_decoder(tmp_path / "nano"), labelled(tmp_path / "rows.jsonl", 9)
    [outcome] = run("--models", model, nano, "--dataset_name", path, "--output_dir", tmp_path)
    assert outcome.task.name == "classification" and len(outcome.differences) == 1
    with pytest.raises(ModelError, match=r"--tasks perplexity takes a causal language model; .*three is a"):
        run("--models", nano, model, "--tasks", "perplexity", "--output_dir", tmp_path)
