"""Question answering: windows hold what they say, the loss is transformers', the best span is the best of all spans,
and saved folders give the same answers."""

from __future__ import annotations

import json
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from tests.model.helpers import scramble
from tuner.data.draws import FILLER, Draws
from tuner.data.labels import Labels, labels_of
from tuner.data.schema import canonicalize
from tuner.data.sources import load_splits
from tuner.errors import ArgumentError, DataError
from tuner.evaluation.baselines.words import nearest_sentences
from tuner.evaluation.class_report import write_class_report
from tuner.loading.models import build_model
from tuner.objectives import heads
from tuner.objectives.arguments import ClassifyArguments
from tuner.objectives.base import use_objective
from tuner.objectives.question_answering import NOWHERE, QuestionAnswering, _best_spans
from tuner.objectives.records import Examples, Outcome, Predictions, Rows
from tuner.text.train_tokenizer import train_tokenizer

SHAPE = "hidden_size=32,num_hidden_layers=2,num_attention_heads=2,num_key_value_heads=2,intermediate_size=48"


@cache
def rows(count: int = 24) -> Dataset:
    """Questions on paragraphs of news, a third of which cannot be answered."""
    found = load_splits("builtin:bbc-quotes", test_split_size=count)[1]
    return canonicalize(found, "rows", ("question",))[1]


@cache
def tokenizer(algorithm: str = "wordpiece", objective: str = "mlm") -> Any:
    return train_tokenizer([*rows()["context"], *rows()["question"]], algorithm, 600, objective)


def objective_of(tok: Any = None, labels: Labels | None = None, **flags: Any) -> QuestionAnswering:
    args = ClassifyArguments(**{"max_length": 128, "doc_stride": 32, "config_overrides": SHAPE} | flags)
    return QuestionAnswering(args, tok or tokenizer(), labels=labels or labels_of(rows(), "question"))


def model_of(objective: QuestionAnswering) -> Any:
    model, _ = build_model(objective.args, "reader", objective.tokenizer, objective.labels)
    scramble(model)
    objective.check_model(model)
    return model


def batch_of(objective: QuestionAnswering, count: int = 12) -> dict[str, torch.Tensor]:
    draws = Draws(objective.examples(rows(), "rows")[0])
    return objective([draws[number] for number in range(count)])


def inputs_of(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in batch.items() if name not in ("rows", "tokens")}


# ---- windows ----


@pytest.mark.parametrize(("algorithm", "objective"), [("wordpiece", "mlm"), ("bpe", "clm"), ("unigram", "denoise")])
def test_windows_cover_the_context_overlap_and_keep_the_question(algorithm, objective):
    tok = tokenizer(algorithm, objective)
    examples, _ = objective_of(tok).examples(rows(), "rows")
    by_question = {number: [e for e in examples if e["question"] == number] for number in range(len(rows()))}
    for number, windows in by_question.items():
        row, asked = rows()[number], tok(rows()["question"][number], add_special_tokens=False)["input_ids"]
        context = row["context"]
        covered, found = np.zeros(len(context), bool), 0
        for place, window in enumerate(windows):
            ids, starts, ends = window["input_ids"], window["starts"], window["ends"]
            assert len(ids) <= 128 and any(ids[n : n + len(asked)] == asked for n in range(3)), "the whole question"
            inside = [token for token, start in enumerate(starts) if start != NOWHERE]
            for token in inside:
                covered[starts[token] : ends[token]] = True
            if place:  # so many tokens are in the window before, too
                before = windows[place - 1]
                spans = [(s, e) for s, e in zip(before["starts"], before["ends"], strict=True) if s != NOWHERE]
                assert [(starts[t], ends[t]) for t in inside[:32]] == spans[-32:]
            first, last = window["labels"]
            if first != window["null"]:
                found += 1
                assert context[starts[first] : ends[last]].strip().startswith(row["answers"][0]["text"])
            else:
                assert window["null"] == 0
        assert all(covered[n] for n, character in enumerate(context) if not character.isspace())
        assert bool(found) == bool(row["answers"])


def row_of(question: str, context: str, *answers: str) -> dict[str, Any]:
    spans = [{"text": text, "start": context.index(text)} for text in answers]
    return {"question": question, "context": context, "answers": spans, "source_row": 7}


def test_an_answer_that_cannot_be_given_is_named(capfd):
    words = " ".join(f"word{n}" for n in range(300))
    long, short = "word3 " + " ".join(f"word{n}" for n in range(4, 60)), "word9 word10 word11 word12 word13"
    data = Dataset.from_list([row_of("Which?", words, long), row_of("Which?", words, short), row_of("Which?", words)])
    objective = objective_of(max_length=64, doc_stride=16, max_answer_length=4)
    objective.examples(data, "rows")
    said = capfd.readouterr().err
    assert "rows: Of 2 questions' answers 1 lie in no window as a whole" in said
    assert "1 are longer than --max_answer_length 4" in said


def test_of_several_answers_each_window_has_the_first_that_it_holds():
    words = " ".join(f"w{n}" for n in range(200))
    data = Dataset.from_list([row_of("Which?", words, "w190 w191", "w2 w3")])
    examples, _ = objective_of(max_length=64, doc_stride=8).examples(data, "rows")
    given = [
        words[e["starts"][e["labels"][0]] : e["ends"][e["labels"][1]]] for e in examples if e["labels"][0] != e["null"]
    ]
    assert given[0] == "w2 w3" and given[-1] == "w190 w191"


@pytest.mark.parametrize("question", ["word " * 70, "word " * 200])
def test_a_question_that_leaves_no_room_is_named(question):
    data = Dataset.from_list([row_of(question, "a b c", "b")])
    with pytest.raises(
        DataError, match=r"rows, row 7: the question has \d+ tokens, so that --max_length 128 leaves \d+ for"
    ):
        objective_of(doc_stride=60).examples(data, "rows")


# ---- loss, figures, the best span ----


@pytest.mark.parametrize("name", ["ours", "llama"])
def test_the_loss_is_twice_transformers_own(name, tmp_path):
    """Which is the mean of both ends, and leaves padding in: so one row at a time."""
    objective = objective_of(tokenizer() if name == "ours" else tokenizer("bpe", "clm"))
    if name == "llama":
        objective.args.model_name_or_path, objective.args.config_overrides = (
            str(base_of(name, objective.tokenizer, tmp_path)),
            None,
        )
    model, batch = model_of(objective), inputs_of(batch_of(objective))
    totals, count = objective.loss(model, **batch)
    losses = []
    for number, (length, (start, end)) in enumerate(zip(batch["lengths"], batch["labels"], strict=True)):
        positions = {"start_positions": start[None], "end_positions": end[None]}
        types = (
            {"token_type_ids": batch["token_type_ids"][number : number + 1, :length]}
            if "token_type_ids" in batch
            else {}
        )
        losses.append(2 * model(input_ids=batch["input_ids"][number : number + 1, :length], **types, **positions).loss)
    torch.testing.assert_close(totals[0], torch.stack(losses).sum(), rtol=1e-4, atol=1e-4)
    assert count == len(losses)


def test_sums_of_batches_are_those_of_all_windows_and_fillers_do_not_count():
    objective = objective_of()
    model, draws = model_of(objective), Draws(objective.examples(rows(), "rows")[0])
    all_, some, others = ([draws[n] for n in part] for part in (range(12), range(5), range(5, 12)))
    filled = [*some, {**draws[20], "draw": FILLER}]
    whole, *parts = (objective.sums(model, **inputs_of(objective(which))) for which in (all_, filled, others))
    for name, value in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts).float(), value.float())
    found = objective.metrics({name: value.detach().numpy() for name, value in whole.items()})
    assert set(found) == {"loss", "start_accuracy", "end_accuracy", "exact"} and whole["count"] == 12


def test_the_best_span_is_the_best_of_all():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(6, 2, 20)).astype(np.float32)
    scores[3, :, 15:] = -np.inf  # padding
    starts = [[NOWHERE] * 4 + list(range(number, number + 12)) for number in range(6)]
    starts[5] = [NOWHERE] * 16  # a context without a token
    found = _best_spans(scores, {"starts": starts, "null": [0] * 6}, longest=5)
    for (first, last), where, ((none, chance), (best, likely, *span)) in zip(scores, starts, found, strict=True):
        inside = [n for n, start in enumerate(where) if start != NOWHERE]
        spans = {(a, b): first[a] + last[b] for a, b in product(inside, inside) if 0 <= b - a < 5}
        assert none == pytest.approx(first[0] + last[0])
        sums = sum(np.log(np.exp(part.astype(float)).sum()) for part in (first, last))
        assert chance == pytest.approx(np.exp(none - sums), rel=1e-4)
        if spans:
            wanted = max(spans, key=spans.__getitem__)
            assert tuple(span) == wanted and best == pytest.approx(spans[wanted])
            assert likely == pytest.approx(np.exp(best - sums), rel=1e-4)
        else:
            assert best == -np.inf


def outcome_of(objective: QuestionAnswering, model: Any) -> Outcome:
    examples, _ = objective.examples(rows(), "rows")
    logged = {"eval_loss": 1.0}
    return Outcome(model, Rows("question", rows(), rows()), Examples(examples, examples), logged, logged, lambda: model)


def test_the_threshold_decides_between_the_best_answer_and_none():
    said = {}
    for threshold in (-1e6, 0.0, 1e6):
        objective = objective_of(null_score_diff_threshold=threshold)
        said[threshold] = objective.predict(outcome_of(objective, model_of(objective))).said
    assert not any(said[-1e6]) and all(said[1e6])
    assert all(one in ("", other) for one, other in zip(said[0.0], said[1e6], strict=True))
    always = objective_of(labels=Labels((), (24, 0), "question_answering"))
    assert always.predict(outcome_of(always, model_of(always))).said == said[1e6]


def base_of(name: str, tok: Any, folder: Any) -> Any:
    sizes = {"vocab_size": len(tok), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.AutoConfig.for_model(name, **sizes, intermediate_size=48, pad_token_id=tok.pad_token_id)
    transformers.AutoModel.from_config(config).save_pretrained(folder / "base")
    return folder / "base"


@pytest.mark.parametrize("family", ["ours", "bert", "roberta", "llama"])
def test_a_saved_folder_gives_the_answers_that_were_measured(family, tmp_path):
    """By hand, window by window: transformers 5 has no pipeline for it."""
    tok = tokenizer() if family in ("ours", "bert") else tokenizer("bpe", "clm")
    objective = objective_of(tok, max_answer_length=6, null_score_diff_threshold=1e6)
    if family != "ours":
        objective.args.model_name_or_path, objective.args.config_overrides = str(base_of(family, tok, tmp_path)), None
    model = model_of(objective)
    predictions = objective.predict(outcome_of(objective, model))
    model.save_pretrained(tmp_path / "saved")
    tok.save_pretrained(tmp_path / "saved")
    loaded = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "saved").eval()
    reader = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for number in range(4):
        row = rows()[number]
        encoded = reader(
            row["question"], row["context"], truncation="only_second", max_length=128, stride=32,
            return_overflowing_tokens=True, return_offsets_mapping=True,
        )  # fmt: skip
        spans = {}
        for window, ids in enumerate(encoded["input_ids"]):
            inputs = {"input_ids": torch.tensor([ids])}
            if "token_type_ids" in encoded:
                inputs["token_type_ids"] = torch.tensor([encoded["token_type_ids"][window]])
            with torch.no_grad():
                output = loaded(**inputs)
            inside = [n for n, part in enumerate(encoded.sequence_ids(window)) if part == 1]
            offsets = encoded["offset_mapping"][window]
            for first, last in product(inside, inside):
                if 0 <= last - first < 6:
                    text = row["context"][offsets[first][0] : offsets[last][1]].strip()
                    score = float(output.start_logits[0, first] + output.end_logits[0, last])
                    spans[text] = max(score, spans.get(text, score))
        assert predictions.said[number] == max(spans, key=spans.__getitem__)


# ---- a head over features, the report ----


@pytest.mark.parametrize("kept", [True, False])
def test_the_loss_over_features_is_that_of_the_model(kept, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("tuner.loading.features.HF_HOME", tmp_path)
    if not kept:
        monkeypatch.setattr(heads, "HELD", 1e-9)
    full, objective = objective_of(), objective_of(strategy="head")
    model = model_of(objective)
    examples, _ = objective.examples(rows(), "rows")
    use_objective(model, objective)
    found = objective.reference(model, examples, 8)
    assert (found is not None) == kept and ("is computed in each epoch" in capfd.readouterr().err) != kept
    draws = Draws(examples if found is None else examples.add_column("reference", found))
    batch = objective([draws[number] for number in range(8)])
    assert ("states" in batch) == kept
    for name, value in full.sums(model, **inputs_of(batch_of(full, 8))).items():
        torch.testing.assert_close(objective.sums(model, **inputs_of(batch))[name], value, rtol=1e-4, atol=1e-4)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {"qa_outputs.weight", "qa_outputs.bias"}


def test_the_report_and_the_comparison(tmp_path):
    objective = objective_of()
    outcome = outcome_of(objective, model_of(objective))
    outcome.figures = write_class_report(objective.predict(outcome), tmp_path)
    page = (tmp_path / "classes.md").read_text(encoding="utf-8")
    assert "# On 24 questions of 24 validation texts" in page and page.count(", which is ") == min(
        20, page.count("- 0.")
    )
    assert {"exact_match", "f1", "has_answer_f1", "no_answer_f1"} <= set(outcome.figures)
    known = sum(map(bool, rows()["answers"]))
    assert outcome.figures["has_answer_f1"]["n"] == known and outcome.figures["no_answer_f1"]["n"] == 24 - known
    compared = objective.compare(outcome)
    assert set(compared["f1"]) == {"no answer", "sentence with most words", "trained"}
    assert compared["exact_match"]["no answer"] == pytest.approx((24 - known) / 24)


def test_the_baseline_is_the_sentence_that_shares_most_words():
    data = Dataset.from_list([row_of("Where is the tower?", "It rains. The tower is in Paris. Yes.", "Paris")])
    found = nearest_sentences(data, has_unanswerable=False)
    assert found == {
        "exact_match": {"sentence with most words": 0},
        "f1": {"sentence with most words": pytest.approx(2 / 5)},
    }


@pytest.mark.parametrize(
    ("flags", "labels", "message"),
    [
        ({"class_weights": "balanced"}, None, "--class_weights is for texts with a class or tokens"),
        ({"calibrate": True}, None, "--calibrate is for"),
        ({"truncation_mode": "error"}, None, "--truncation_mode is for"),
        ({"strategy": "fewshot"}, None, "--strategy fewshot is for texts with a class; these are questions on a text"),
        (
            {"null_score_diff_threshold": 1.0},
            (5, 0),
            "--null_score_diff_threshold: every training question has an answer",
        ),
    ],
)
def test_flags_without_a_meaning_are_refused(flags, labels, message):
    with pytest.raises(ArgumentError, match=message):
        objective_of(labels=labels and Labels((), labels, "question_answering"), **flags)


def test_what_is_saved_names_no_classes(tmp_path):
    model_of(objective_of()).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["TunerEncoderForQuestionAnswering"]


def test_a_few_questions_have_figures_too(tmp_path):
    """Of which a bootstrap draws none of one kind now and then."""
    found = Predictions(
        ["a", "b", "c"], np.array([0.5, 0.6, 0.7]), [["x"], [], ["y"]], (), "question_answering", np.array(list("123")),
        said=["x", "", "z"],
    )  # fmt: skip
    figures = write_class_report(found, tmp_path)
    assert figures["has_answer_f1"]["value"] == 0.5 and "undefined in" in figures["no_answer_f1"]["method"]
    assert "0.700 for z, which is y: `c`" in (tmp_path / "classes.md").read_text()
