"""Classification: losses and figures are the libraries', a head over features is the head of the whole model, what was
saved is what pipelines load."""

from __future__ import annotations

import json
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from sklearn.metrics import f1_score
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import tuner.model as ours
from tests.model.helpers import scramble
from tests.text import samples
from tuner.data.draws import FILLER, Draws
from tuner.data.labels import Labels, labels_of
from tuner.data.schema import canonicalize
from tuner.data.sources import load_splits
from tuner.errors import ArgumentError, DataError, ModelError
from tuner.loading import features as frozen
from tuner.loading.features import freeze, kept_features, pooling_of
from tuner.loading.models import build_model
from tuner.objectives.arguments import ClassifyArguments
from tuner.objectives.base import use_objective
from tuner.objectives.classification import Classification
from tuner.optim.layerwise import decay_by_layer

LENGTH = 48
KINDS = ("class", "classes", "score")
SIZES = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "num_labels": 3, "pad_token_id": 0}


@cache
def rows_of(kind: str) -> Dataset:
    """Thirty news articles, with a class, classes, or a number."""
    rows = load_splits("builtin:bbc-news", test_split_size=30, stratify=True)[1]
    made = {
        "class": lambda row: row["label"],
        "classes": lambda row: [row["label"]] + ["long"] * (len(row["text"]) > 2000),
        "score": lambda row: len(row["text"]) / 1000 + 0.001,
    }
    column = "labels" if kind == "classes" else "label"
    given = [{"text": row["text"][: 30 + 9 * number], column: made[kind](row)} for number, row in enumerate(rows)]
    found, canonical, _ = canonicalize(Dataset.from_list(given), "rows", (kind,))
    assert found == kind
    return canonical


def objective_of(kind: str = "class", labels: Labels | None = None, **flags: Any) -> Classification:
    extra = flags.pop("extra", {})
    args = ClassifyArguments(max_length=LENGTH, **flags)
    args.extra = extra
    return Classification(args, samples.small(), labels=labels or labels_of(rows_of(kind), kind))


def model_of(objective: Classification, **flags: Any) -> Any:
    """A new nano encoder with a head for the objective's labels."""
    shape = "hidden_size=32,num_hidden_layers=2,num_attention_heads=2,num_key_value_heads=2,intermediate_size=48"
    args = ClassifyArguments(config_overrides=shape, max_length=LENGTH, **flags)
    model, _ = build_model(args, "classifier", objective.tokenizer, objective.labels)
    objective.check_model(model)
    return scramble(model)


def batch_of(objective: Classification, kind: str = "class") -> dict[str, torch.Tensor]:
    draws = Draws(objective.examples(rows_of(kind), "rows")[0])
    return objective([draws[number] for number in range(len(draws))])


def loss_of(objective: Classification, model: Any, batch: dict[str, torch.Tensor]) -> Any:
    inputs = {name: value for name, value in batch.items() if name not in ("rows", "tokens")}
    return objective.loss(model, **inputs)


# ---- losses and figures ----


def test_the_loss_of_a_class_is_the_cross_entropy():
    objective = objective_of()
    model, batch = model_of(objective).eval(), batch_of(objective)
    logits = model(batch["input_ids"], batch["attention_mask"]).logits
    totals, count = loss_of(objective, model, batch)
    torch.testing.assert_close(totals[0] / count, F.cross_entropy(logits, batch["labels"]))
    numbers = [objective.labels.names.index(label) for label in rows_of("class")["label"]]
    assert batch["labels"].tolist() == numbers


def test_balanced_weights_are_scikit_learns_and_smoothing_torchs():
    objective = objective_of(class_weights="balanced", extra={"label_smoothing_factor": 0.1})
    model, batch = model_of(objective).eval(), batch_of(objective)
    labels = batch["labels"].numpy()
    weights = torch.tensor(compute_class_weight("balanced", classes=np.unique(labels), y=labels)).float()
    logits = model(batch["input_ids"], batch["attention_mask"]).logits
    totals, count = loss_of(objective, model, batch)
    wanted = F.cross_entropy(logits, batch["labels"], weights, label_smoothing=0.1)
    torch.testing.assert_close(totals[0] / count, wanted)


@pytest.mark.parametrize("kind", ["classes", "score"])
def test_other_losses_are_transformers(kind):
    objective = objective_of(kind)
    model, batch = model_of(objective).eval(), batch_of(objective, kind)
    totals, count = loss_of(objective, model, batch)
    wanted = model(batch["input_ids"], batch["attention_mask"], labels=batch["labels"]).loss
    torch.testing.assert_close(totals[0] / count, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_what_only_fills_a_batch_does_not_count(kind):
    objective = objective_of(kind)
    model, draws = model_of(objective).eval(), Draws(objective.examples(rows_of(kind), "rows")[0])
    some = [draws[number] for number in range(5)]
    filled = [*some, {**draws[7], "draw": FILLER}]
    one, other = (objective.sums(model, **inputs_of(objective(rows))) for rows in (some, filled))
    for name in one:
        torch.testing.assert_close(one[name].float(), other[name].float())
    assert objective.counts(objective(some)) == objective.counts(objective(filled))


def inputs_of(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in batch.items() if name not in ("rows", "tokens")}


def test_figures_of_sums_are_scikit_learns():
    objective = objective_of()
    model, batch = model_of(objective).eval(), batch_of(objective)
    said = model(batch["input_ids"], batch["attention_mask"]).logits.argmax(-1)
    found = objective.metrics({k: v.detach().numpy() for k, v in objective.sums(model, **inputs_of(batch)).items()})
    assert found["accuracy"] == pytest.approx(float((said == batch["labels"]).float().mean()))
    wanted = f1_score(batch["labels"], said, average="macro", labels=range(5), zero_division=0)
    assert found["f1_macro"] == pytest.approx(wanted)


def test_figures_of_several_classes_are_scikit_learns():
    objective = objective_of("classes")
    model, batch = model_of(objective).eval(), batch_of(objective, "classes")
    said = model(batch["input_ids"], batch["attention_mask"]).logits > 0
    found = objective.metrics({k: v.detach().numpy() for k, v in objective.sums(model, **inputs_of(batch)).items()})
    for average in ("micro", "macro"):
        wanted = f1_score(batch["labels"], said, average=average, zero_division=0)
        assert found[f"f1_{average}"] == pytest.approx(wanted)


def test_flags_of_one_class_are_refused_elsewhere():
    with pytest.raises(ArgumentError, match="--class_weights is for texts with a class or tokens"):
        objective_of("classes", class_weights="balanced")
    with pytest.raises(ArgumentError, match="--calibrate is for texts with a class"):
        objective_of("score", calibrate=True)


def test_an_empty_text_is_named():
    rows = Dataset.from_list([{"text": "", "text_pair": None, "label": "x", "source_row": 17}])
    objective = objective_of(labels=Labels(("x", "y"), (1, 1), "single_label_classification"))
    with pytest.raises(DataError, match="rows, row 17: column 'text' is empty"):
        objective.examples(rows, "rows")


# ---- a head over features ----

FAMILIES = {
    "Llama": (transformers.LlamaConfig(**SIZES), "last"),
    "GPT-2": (transformers.GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=2, pad_token_id=0), "last"),
    "BERT": (transformers.BertConfig(**SIZES), "cls"),
    "RoBERTa": (transformers.RobertaConfig(**SIZES | {"pad_token_id": 1}), "cls"),
    "DistilBERT": (transformers.DistilBertConfig(vocab_size=100, dim=32, hidden_dim=64, n_layers=2, n_heads=2), "cls"),
    "ModernBERT": (transformers.ModernBertConfig(**SIZES, classifier_pooling="mean"), "mean"),
    "our encoder": (ours.TunerEncoderConfig(**SIZES), "cls"),
    "our encoder, mean": (ours.TunerEncoderConfig(**SIZES, classifier_pooling="mean"), "mean"),
    "our decoder": (ours.TunerDecoderConfig(**SIZES), "last"),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_over_features_is_the_head_of_the_model(family):
    config, pooling = FAMILIES[family]
    model = scramble(AutoModelForSequenceClassification.from_config(config)).eval()
    freeze(model)
    assert pooling_of(model, type(model).forward) == pooling
    pad = config.pad_token_id or 0
    sequences = [[5, 9, 11, 4], [7, 8], [12, 13, 14, 15, 16, 17, 18]]
    states = frozen.features(model.base_model, sequences, None, pad, pooling)
    ids = torch.tensor([row + [pad] * (7 - len(row)) for row in sequences])
    mask = (torch.arange(7) < torch.tensor([[len(row)] for row in sequences])).long()
    wanted = model(input_ids=ids, attention_mask=mask).logits
    with frozen.replayed(model, torch.tensor(np.stack(states))) as inputs:
        found = model(**inputs).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert "forward" not in vars(model.base_model)
    found.sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, parameter in model.named_parameters() if parameter.requires_grad} != set()


def test_a_head_that_reads_more_is_refused():
    config = transformers.BartConfig(
        vocab_size=100, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, pad_token_id=1,
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(ModelError, match="the head of BartForSequenceClassification needs more than the vectors"):
        pooling_of(model, type(model).forward)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_the_loss_over_features_is_that_of_the_model(pooling, tmp_path, monkeypatch):
    monkeypatch.setattr(frozen, "HF_HOME", str(tmp_path))
    whole, head = objective_of(classifier_pooling=pooling), objective_of(classifier_pooling=pooling, strategy="head")
    model = model_of(whole, classifier_pooling=pooling)
    use_objective(model, head)
    head.check_model(model)
    examples = head.examples(rows_of("class"), "rows")[0]
    draws = Draws(examples.add_column("reference", head.reference(model, examples, 8)))
    batch = head([draws[number] for number in range(len(draws))])
    assert batch["states"].shape == (30, 1, 32) and "input_ids" not in batch
    model.eval()
    found = head.sums(model, **inputs_of(batch))
    wanted = whole.sums(model, **inputs_of(batch_of(whole)))
    for name in wanted:
        torch.testing.assert_close(found[name].float(), wanted[name].float(), rtol=1e-4, atol=1e-4)


def test_features_are_computed_once_for_weights_texts_and_pooling(tmp_path, monkeypatch):
    monkeypatch.setattr(frozen, "HF_HOME", str(tmp_path))
    model = AutoModelForSequenceClassification.from_config(transformers.BertConfig(**SIZES)).base_model
    calls = []
    monkeypatch.setattr(model, "forward", lambda *a, f=model.forward, **k: calls.append(1) or f(*a, **k))
    sequences = [[5, 6, 7], [8, 9]]
    first = kept_features(model, sequences, None, 0, "mean")
    count = len(calls)
    again = kept_features(model, sequences, None, 0, "mean")
    assert len(calls) == count and all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    for change in ("texts", "pooling", "weights"):
        if change == "weights":
            model.encoder.layer[0].output.dense.bias.data += 1
        texts = [[5, 6, 7], [8, 10]] if change == "texts" else sequences
        kept_features(model, texts, None, 0, "cls" if change == "pooling" else "mean")
        assert len(calls) == count + 1, change
        count += 1
    file = next((tmp_path / "tuner" / "features").iterdir())
    file.write_bytes(file.read_bytes()[:100])  # a damaged one is computed again
    kept = [kept_features(model, sequences, None, 0, "mean") for _ in range(2)]
    assert all(np.array_equal(a, b) for a, b in zip(*kept, strict=True))


# ---- labels of a checkpoint ----


def saved(tmp_path, names: list[str]) -> str:
    tokenizer = samples.small()
    names_of = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    sizes = {**SIZES, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id} | names_of
    sizes.pop("num_labels")
    folder = tmp_path / "-".join(names)
    AutoModelForSequenceClassification.from_config(transformers.BertConfig(**sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def loaded(folder: str, names: tuple[str, ...]) -> tuple[Any, str, Classification]:
    labels = Labels(names, tuple(range(1, len(names) + 1)), "single_label_classification")
    objective = objective_of(labels=labels)
    args = ClassifyArguments(model_name_or_path=folder, max_length=LENGTH)
    model, new = build_model(args, "classifier", objective.tokenizer, labels)
    objective.check_model(model)
    return model, new, objective


def test_a_checkpoints_own_order_of_the_same_classes_stays(tmp_path):
    folder = saved(tmp_path, ["pos", "neg"])
    model, new, objective = loaded(folder, ("neg", "pos"))
    assert new == "" and model.config.id2label == {0: "pos", 1: "neg"}
    assert (objective.labels.names, objective.labels.counts) == (("pos", "neg"), (2, 1))
    before = AutoModelForSequenceClassification.from_pretrained(folder).classifier.weight
    assert torch.equal(model.classifier.weight, before)


@pytest.mark.parametrize("names", [("bad", "good"), ("a", "b", "c")])
def test_other_classes_get_a_new_head(names, tmp_path):
    folder = saved(tmp_path, ["pos", "neg"])
    model, new, _ = loaded(folder, names)
    assert "these are new" in new and "classifier" in new and tuple(model.config.id2label.values()) == names
    before = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.classifier.weight.shape[0] == len(names)
    assert not torch.equal(model.classifier.weight[:2], before.classifier.weight)
    assert torch.equal(model.bert.pooler.dense.weight, before.bert.pooler.dense.weight)


def test_a_masked_model_gets_a_head_and_a_torn_one_is_refused(tmp_path):
    tokenizer, folder = samples.small(), tmp_path / "bert"
    config = transformers.BertConfig(**SIZES | {"vocab_size": len(tokenizer)})
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    model, new, _ = loaded(str(folder), ("x", "y"))
    assert "classifier" in new and "pooler" in new and model.config.num_labels == 2
    torn = transformers.BertForMaskedLM(config)
    state = {name: value for name, value in torn.state_dict().items() if "layer.1.attention" not in name}
    torn.save_pretrained(tmp_path / "torn", state_dict=state)
    with pytest.raises(ModelError, match=r"lacks weights of a BertForSequenceClassification: bert\.encoder\.layer\.1"):
        loaded(str(tmp_path / "torn"), ("x", "y"))


def test_pooling_is_only_a_choice_where_it_is_one(tmp_path):
    folder = saved(tmp_path, ["pos", "neg"])
    args = {"model_name_or_path": folder, "max_length": LENGTH, "classifier_pooling": "mean"}
    labels = Labels(("neg", "pos"), (1, 1), "single_label_classification")
    with pytest.raises(ModelError, match=r"--classifier_pooling mean: .* pools as its class does"):
        build_model(
            ClassifyArguments(**args, model_revision="main"),
            "classifier",
            samples.small(),
            Labels(("a", "b"), (1, 1), labels.problem),
        )
    model, _ = build_model(ClassifyArguments(**args, own_model=True), "classifier", samples.small(), labels)
    assert type(model).__name__ == "TunerEncoderForSequenceClassification" and model.model.pooler is None


# ---- what was trained ----


def test_calibration_divides_the_head_and_changes_no_decision():
    objective = objective_of(calibrate=True)
    model = model_of(objective)
    examples = SimpleNamespace(eval=objective.examples(rows_of("class"), "rows")[0])
    before, targets = objective.held_out_logits(model, examples)
    assert "temperature" in objective.finish(model, examples)
    after, _ = objective.held_out_logits(model, examples)
    assert (before.argmax(1) == after.argmax(1)).all()

    def nll(logits: np.ndarray) -> float:
        return float(F.cross_entropy(torch.tensor(logits), torch.tensor(targets)))

    assert nll(after) < nll(before) - 1e-3
    ratio = before / after
    assert ratio.std() < 1e-3 * abs(ratio.mean())


def test_rates_fall_with_depth_and_nothing_is_lost():
    model = AutoModelForSequenceClassification.from_config(transformers.BertConfig(**SIZES))
    optimizer = torch.optim.AdamW([{"params": list(model.parameters()), "weight_decay": 0.1}], lr=1.0)
    decay_by_layer(optimizer, model, 0.5)
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(list(model.parameters())) and all(g["weight_decay"] == 0.1 for g in optimizer.param_groups)
    assert rates[model.classifier.weight] == rates[model.bert.pooler.dense.weight] == 1
    assert rates[model.bert.encoder.layer[1].output.dense.bias] == 0.5
    assert rates[model.bert.encoder.layer[0].output.dense.bias] == 0.25
    assert rates[model.bert.embeddings.LayerNorm.weight] == 0.125
    with pytest.raises(ModelError, match="are in no numbered layers"):
        decay_by_layer(torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), 1.0), torch.nn.Linear(2, 2), 0.5)


@pytest.mark.parametrize("own", [True, False])
def test_a_pipeline_loads_it(own, tmp_path):
    objective = objective_of()
    if own:
        model = model_of(objective)
    else:
        model, _, objective = loaded(saved(tmp_path, ["pos", "neg"]), ("x", "y"))
    model.save_pretrained(tmp_path / "saved")
    objective.tokenizer.save_pretrained(tmp_path / "saved")
    pipe = transformers.pipeline("text-classification", model=str(tmp_path / "saved"))
    found = pipe("Shares rose again.", top_k=None)
    assert {each["label"] for each in found} == set(objective.labels.names)
    assert sum(each["score"] for each in found) == pytest.approx(1, abs=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").pad_token_id == objective.tokenizer.pad_token_id
    names = json.loads((tmp_path / "saved" / "config.json").read_text())["id2label"]
    assert tuple(names.values()) == objective.labels.names
