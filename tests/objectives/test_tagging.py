"""Tagging: a label at each word's first token whatever the tokenizer, losses and figures as the libraries have them,
and folders that the pipeline loads."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from sklearn.metrics import f1_score
from tokenizers import pre_tokenizers
from torch.nn import functional as F

from tests.model.helpers import scramble
from tuner.data.collate import IGNORED
from tuner.data.draws import FILLER, Draws
from tuner.data.entities import marks_entities
from tuner.data.labels import labels_of
from tuner.data.schema import canonicalize
from tuner.data.sources import load_splits
from tuner.errors import ArgumentError, DataError, ModelError
from tuner.evaluation.baselines.words import word_tags
from tuner.evaluation.class_report import write_class_report
from tuner.evaluation.metrics import load_metric
from tuner.loading.models import build_model
from tuner.objectives import heads
from tuner.objectives.arguments import ClassifyArguments
from tuner.objectives.base import use_objective
from tuner.objectives.records import Examples, Outcome, Rows
from tuner.objectives.tagging import Tagging
from tuner.text.train_tokenizer import train_tokenizer

SHAPE = "hidden_size=32,num_hidden_layers=2,num_attention_heads=2,num_key_value_heads=2,intermediate_size=48"


@cache
def rows(count: int = 30) -> Dataset:
    """Sentences of news with names."""
    found = load_splits("builtin:bbc-names", test_split_size=count)[1]
    return canonicalize(found, "rows", ("tags",))[1]


@cache
def tokenizer(algorithm: str = "wordpiece", objective: str = "mlm") -> Any:
    return train_tokenizer([" ".join(words) for words in rows()["tokens"]], algorithm, 500, objective)


def plain() -> Dataset:
    """The same words, tagged by their length."""
    names = [
        [("long" if len(word) > 6 else "short" if len(word) > 2 else "tiny") for word in w] for w in rows()["tokens"]
    ]
    return rows().remove_columns("tags").add_column("tags", names)


def objective_of(data: Dataset | None = None, tok: Any = None, **flags: Any) -> Tagging:
    extra = flags.pop("extra", {})
    args = ClassifyArguments(**{"max_length": 64, "config_overrides": SHAPE} | flags)
    args.extra = extra
    return Tagging(args, tok or tokenizer(), labels=labels_of(rows() if data is None else data, "tags"))


def model_of(objective: Tagging) -> Any:
    model, _ = build_model(objective.args, "tagger", objective.tokenizer, objective.labels)
    scramble(model)
    objective.check_model(model)
    return model


def batch_of(objective: Tagging, data: Dataset | None = None, count: int = 12) -> dict[str, torch.Tensor]:
    draws = Draws(objective.examples(rows() if data is None else data, "rows")[0])
    return objective([draws[number] for number in range(count)])


def inputs_of(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in batch.items() if name not in ("rows", "tokens")}


def arrays(sums: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in sums.items()}


# ---- labels at tokens ----


def roberta() -> Any:
    tok = train_tokenizer([" ".join(words) for words in rows()["tokens"]], "bpe", 500, "mlm")
    tok.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, trim_offsets=False)
    return tok


TOKENIZERS = {
    "WordPiece": tokenizer,
    "bytes, as GPT-2's": lambda: tokenizer("bpe", "clm"),
    "bytes with a space before": roberta,
    "Unigram": lambda: tokenizer("unigram", "mlm"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_first_token_of_each_word_has_its_tag(name):
    tok = TOKENIZERS[name]()
    objective = objective_of(tok=tok, max_length=256)
    examples, _ = objective.examples(rows(), "rows")
    for example, row in zip(examples, rows(), strict=True):
        offsets = tok(" ".join(row["tokens"]), return_offsets_mapping=True)["offset_mapping"]
        starts = np.cumsum([0, *(len(word) + 1 for word in row["tokens"])])
        labelled = [(token, label) for token, label in enumerate(example["labels"]) if label != IGNORED]
        assert [objective.labels.names[label] for _, label in labelled] == row["tags"]
        for (token, _), start in zip(labelled, starts, strict=False):
            assert offsets[token][0] <= start < offsets[token][1]


def test_of_words_as_bert_splits_them_the_labels_are_those_of_run_ner():
    objective, tok = objective_of(max_length=256), tokenizer()
    for example, row in zip(objective.examples(rows(), "rows")[0], rows(), strict=True):
        encoded = tok(row["tokens"], is_split_into_words=True)
        assert example["input_ids"] == encoded["input_ids"]
        words, wanted = encoded.word_ids(), []
        for place, word in enumerate(words):
            first = word is not None and word != words[place - 1]
            wanted.append(objective.labels.names.index(row["tags"][word]) if first else IGNORED)
        assert example["labels"] == wanted


def test_what_is_cut_is_named(capfd):
    objective = objective_of(max_length=16)
    examples, _ = objective.examples(rows(), "rows")
    lost, cut = sum(examples["lost"]), sum(examples["cut"])
    assert lost and cut and max(map(len, examples["input_ids"])) == 16
    said = capfd.readouterr().err
    assert f"rows: {lost:,} of {sum(map(len, rows()['tokens'])):,} words have no token" in said
    assert f"{cut:,} of 30 rows ({cut / 30:.1%}) are cut at --max_length" in said
    with pytest.raises(DataError, match=r"rows, row \d+: \d+ tokens, longer than --max_length 16"):
        objective_of(max_length=16, truncation_mode="error").examples(rows(), "rows")
    with pytest.raises(DataError, match="Nothing is left"):
        objective_of(max_length=2).examples(rows(), "rows")


def test_a_tokenizer_that_knows_no_places_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match="Slow does not say where in a text its tokens are"):
        objective_of(tok=Slow())


# ---- losses and figures ----


def test_the_loss_is_transformers_own():
    objective = objective_of()
    model, batch = model_of(objective), batch_of(objective)
    totals, count = objective.loss(model, **inputs_of(batch))
    torch.testing.assert_close(totals[0] / count, model(**inputs_of(batch)).loss)


def test_weights_and_smoothing_are_torchs():
    objective = objective_of(class_weights="balanced", extra={"label_smoothing_factor": 0.1})
    model, batch = model_of(objective), batch_of(objective)
    logits = model(batch["input_ids"], batch["attention_mask"]).logits.flatten(0, 1)
    counts = torch.tensor(objective.labels.counts).float()
    weights = counts.sum() / (3 * counts)
    wanted = F.cross_entropy(logits, batch["labels"].flatten(), weights, label_smoothing=0.1)
    totals, count = objective.loss(model, **inputs_of(batch))
    torch.testing.assert_close(totals[0] / count, wanted)


def test_sums_of_batches_give_the_metric_of_all_entities():
    objective = objective_of()
    model, batch = model_of(objective), batch_of(objective)
    halves = [
        arrays(objective.sums(model, **{k: v[part] for k, v in inputs_of(batch).items()}))
        for part in (slice(0, 5), slice(5, 12))
    ]
    found = objective.metrics({name: halves[0][name] + halves[1][name] for name in halves[0]})
    said = model(batch["input_ids"], batch["attention_mask"]).logits.argmax(-1)
    real = batch["labels"] != IGNORED
    names = objective.labels.names
    tags = [
        [[names[n] for n in row[mask]] for row, mask in zip(which, real, strict=True)]
        for which in (said, batch["labels"])
    ]
    wanted = load_metric("entity_f1").compute(predictions=tags[0], references=tags[1])
    assert {key: found[key] for key in ("precision", "recall", "f1")} == pytest.approx(
        {k: wanted[k] for k in ("precision", "recall", "f1")}
    )
    assert 0 < found["f1"] < 1 and found["accuracy"] == pytest.approx(
        float((said == batch["labels"])[real].float().mean())
    )


def test_of_tags_that_mark_no_entities_it_is_accuracy_and_macro_f1():
    objective = objective_of(plain())
    assert objective.main == "accuracy" and objective.labels.names == ("long", "short", "tiny")
    model, batch = model_of(objective), batch_of(objective, plain())
    found = objective.metrics(arrays(objective.sums(model, **inputs_of(batch))))
    real = batch["labels"] != IGNORED
    said = model(batch["input_ids"], batch["attention_mask"]).logits.argmax(-1)[real]
    assert set(found) == {"loss", "accuracy", "f1_macro"}
    assert found["f1_macro"] == pytest.approx(f1_score(batch["labels"][real], said, average="macro", zero_division=0))


@pytest.mark.parametrize(
    ("names", "is_so"),
    [
        (["O", "B-PER", "I-PER"], True), (["B-NP", "I-NP"], True), (["O", "S-X", "E-X", "B-X"], True),
        (["O", "B", "I"], True), (["NOUN", "VERB"], False), (["O", "PER"], False), (["B", "I"], False), (["O"], False),
        (["0", "1"], False),
    ],
)  # fmt: skip
def test_which_tags_mark_entities(names, is_so):
    assert marks_entities(names) is is_so


def test_what_only_fills_a_batch_does_not_count():
    objective = objective_of()
    model, draws = model_of(objective), Draws(objective.examples(rows(), "rows")[0])
    some = [draws[number] for number in range(5)]
    filled = [*some, {**draws[7], "draw": FILLER}]
    one, other = (objective.sums(model, **inputs_of(objective(which))) for which in (some, filled))
    for name in one:
        torch.testing.assert_close(one[name].float(), other[name].float())
    assert objective.counts(objective(some)) == objective.counts(objective(filled))


# ---- a head over features ----


@pytest.mark.parametrize("kept", [True, False])
def test_the_loss_over_features_is_that_of_the_model(kept, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("tuner.loading.features.HF_HOME", tmp_path)
    if not kept:
        monkeypatch.setattr(heads, "HELD", 1e-9)
    full, objective = objective_of(), objective_of(strategy="head", dropout=0.3)
    model = model_of(objective)
    examples, _ = objective.examples(rows(), "rows")
    use_objective(model, objective)
    found = objective.reference(model, examples, 8)
    assert (found is not None) == kept and (
        "The frozen backbone is computed in each epoch" in capfd.readouterr().err
    ) != kept
    draws = Draws(examples if found is None else examples.add_column("reference", found))
    batch = objective([draws[number] for number in range(8)])
    assert ("states" in batch) == kept
    wanted = full.sums(model.eval(), **inputs_of(batch_of(full, count=8)))
    with torch.no_grad():
        model.train()  # only the head learns, so only it has dropout
        for module in model.dropout.modules():
            module.eval()
        loss = objective.sums(model, **inputs_of(batch))["loss"]
    torch.testing.assert_close(loss, wanted["loss"], rtol=1e-4, atol=1e-4)


# ---- baselines, the report, the pipeline ----


def test_the_baseline_is_each_words_most_frequent_tag():
    train = Dataset.from_list(
        [
            {"tokens": ["Paris", "is", "Paris"], "tags": ["B-LOC", "O", "B-LOC"]},
            {"tokens": ["paris", "is"], "tags": ["O", "O"]},
        ]
    )
    words, tags = [["Paris", "was", "PARIS"]], [["B-LOC", "O", "O"]]
    assert word_tags(train, words, tags, "accuracy") == {
        "most frequent": pytest.approx(2 / 3),  # O: three of five
        "most frequent of the word": pytest.approx(2 / 3),  # PARIS is read as paris, mostly a place
    }
    assert word_tags(train, words, tags, "f1")["most frequent of the word"] == pytest.approx(2 / 3)


def outcome_of(objective: Tagging, model: Any, data: Dataset) -> Outcome:
    examples, _ = objective.examples(data, "rows")
    draws = {"eval_f1": 0.5, "eval_accuracy": 0.5, "eval_loss": 1.0}
    return Outcome(model, Rows("tags", data, data), Examples(examples, examples), draws, draws, lambda: model)


@pytest.mark.parametrize("kind", ["entities", "plain"])
def test_the_report_shows_types_tags_and_mistakes_in_their_place(kind, tmp_path):
    data = rows() if kind == "entities" else plain()
    objective = objective_of(data, max_length=24)
    outcome = outcome_of(objective, model_of(objective), data)
    predictions = objective.predict(outcome)
    figures = write_class_report(predictions, tmp_path)
    page = (tmp_path / "classes.md").read_text(encoding="utf-8")
    count = int((outcome.examples.eval.with_format("numpy")["labels"][0] != IGNORED).sum())
    assert len(predictions.shown) == len(predictions.logits) > count
    assert predictions.shown[:count] == data["tokens"][0][:count]
    assert f"# On {len(predictions.logits):,} words of 30 validation rows" in page and "are cut at --max_length" in page
    assert page.count(", which is ") == 20 and page.count("[") >= 20
    assert ("| NAME |" in page) == (kind == "entities") and ("f1_macro" in figures) == (kind == "plain")
    assert figures["accuracy"]["n"] == len(predictions.logits) and (tmp_path / "confusion.png").exists()
    if kind == "entities":
        sums = [objective.sums(outcome.model, **inputs_of(b)) for b in objective.held_out(outcome.examples, 7)]
        of_sums = objective.metrics({k: sum(s[k].detach().numpy() for s in sums) for k in sums[0]})
        assert figures["f1"]["value"] == pytest.approx(of_sums["f1"])
        assert figures["f1"]["low"] <= figures["f1"]["value"] <= figures["f1"]["high"]
    compared = objective.compare(outcome)[objective.main]
    assert set(compared) == {"most frequent", "most frequent of the word", "untrained", "trained"}


@pytest.mark.parametrize("family", ["ours", "bert", "roberta", "llama"])
def test_the_pipeline_gives_the_tags_that_were_measured(family, tmp_path):
    tok = tokenizer() if family in ("ours", "bert") else tokenizer("bpe", "clm")
    objective = objective_of(tok=tok, max_length=128)
    if family != "ours":
        sizes = {"vocab_size": len(tok), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = transformers.AutoConfig.for_model(family, **sizes, intermediate_size=48, pad_token_id=tok.pad_token_id)
        transformers.AutoModel.from_config(config).save_pretrained(tmp_path / "base")
        objective.args.model_name_or_path, objective.args.config_overrides = str(tmp_path / "base"), None
    model = model_of(objective)
    predictions = objective.predict(outcome_of(objective, model, rows()))
    model.save_pretrained(tmp_path / "saved")
    tok.save_pretrained(tmp_path / "saved")
    names = json.loads((tmp_path / "saved" / "config.json").read_text())["id2label"]
    assert tuple(names.values()) == objective.labels.names
    pipe = transformers.pipeline("token-classification", model=str(tmp_path / "saved"), aggregation_strategy="first")
    for number in range(3):
        words = rows()["tokens"][number]
        said = [objective.labels.names[n] for n in predictions.logits[predictions.clusters == number].argmax(1)]
        marked = {place for place, tag in enumerate(said) if tag != "O"}
        starts = np.cumsum([0, *(len(word) + 1 for word in words)])
        found = {
            place
            for each in pipe(" ".join(words))
            for place in range(len(words))
            if each["start"] <= starts[place] < each["end"]
        }
        assert found == marked and marked


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"doc_stride": 8}, "--doc_stride is for questions on a text; these are tokens with tags"),
        ({"max_answer_length": 8}, "--max_answer_length is for questions"),
        ({"null_score_diff_threshold": 0.0}, "--null_score_diff_threshold is for questions"),
        ({"classifier_pooling": "mean"}, "--classifier_pooling is for texts with a class"),
        ({"strategy": "fewshot"}, "--strategy fewshot is for texts with a class; these are tokens with tags"),
    ],
)
def test_flags_without_a_meaning_are_refused(flags, message):
    with pytest.raises(ArgumentError, match=message):
        objective_of(**flags)


def test_a_calibrated_head_has_the_temperature_in_it():
    objective = objective_of(calibrate=True)
    model = model_of(objective)
    examples, _ = objective.examples(rows(), "rows")
    before = objective.held_out_logits(model, Examples(examples, examples))[0]
    said = objective.finish(model, Examples(examples, examples))
    heat = float(said.split()[-1].rstrip("."))
    after = objective.held_out_logits(model, Examples(examples, examples))[0]
    np.testing.assert_allclose(after * heat, before, rtol=1e-2, atol=1e-3)
