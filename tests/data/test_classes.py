"""Labels of texts, in every spelling: what kind they are, which names they have, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from tuner.data.labels import PROBLEMS, check_labels, labels_of
from tuner.data.schema import canonicalize
from tuner.data.sources import load_splits, split_rows
from tuner.data.unused import sentence
from tuner.errors import ArgumentError, DataError
from tuner.objectives.arguments import ClassifyArguments
from tuner.objectives.registry import METHODS
from tuner.train.prepare import load_labelled_rows

KINDS = ("class", "classes", "score")


def canonical(rows: list[dict[str, Any]], features: Any = None, kinds: Any = KINDS) -> tuple[str, list[dict[str, Any]]]:
    kind, found, _ = canonicalize(Dataset.from_list(rows, features), "rows", kinds)
    return kind, list(found.remove_columns("source_row"))


@pytest.mark.parametrize(
    ("row", "kind", "label"),
    [
        ({"text": "a", "label": "good"}, "class", "good"),
        ({"text": "a", "label": 3}, "class", "3"),
        ({"text": "a", "label": True}, "class", "true"),
        ({"sentence": "a", "category": "x"}, "class", "x"),
        ({"text": "a", "labels": ["x", "y", "x"]}, "classes", ["x", "y"]),
        ({"text": "a", "labels": []}, "classes", []),
        ({"text": "a", "labels": '["x"]'}, "classes", ["x"]),
        ({"text": "a", "label": 0.5}, "score", 0.5),
        ({"sentence1": "a", "sentence2": "b", "score": 4.5}, "score", 4.5),
    ],
)
def test_what_a_label_is_is_seen(row, kind, label):
    found, (first, _) = canonical([row, row])
    assert found == kind and first["labels" if kind == "classes" else "label"] == label
    assert first["text"] == "a" and first["text_pair"] == ("b" if "sentence2" in row else None)


@pytest.mark.parametrize("names", [("premise", "hypothesis"), ("question1", "question2"), ("text", "text_pair")])
def test_pairs_keep_their_order(names):
    _, (row,) = canonical([{names[0]: "first", names[1]: "second", "label": "x"}])
    assert (row["text"], row["text_pair"]) == ("first", "second")


def test_numbers_have_the_names_that_the_file_gives_them():
    classes = ClassLabel(names=["neg", "pos"])
    one = Features({"text": Value("string"), "label": classes})
    assert [row["label"] for row in canonical([{"text": "a", "label": 1}, {"text": "b", "label": 0}], one)[1]] == [
        *("pos", "neg")
    ]
    several = Features({"text": Value("string"), "labels": List(classes)})
    assert canonical([{"text": "a", "labels": [1, 0]}], several)[1][0]["labels"] == ["pos", "neg"]
    with pytest.raises(DataError, match="row 0: column 'label' must name a class, not null"):
        canonical([{"text": "a", "label": -1}], one)


def test_the_problem_may_be_named():
    rows = [{"text": "a", "label": number} for number in range(4)]
    assert canonical(rows)[0] == "class" and canonical(rows, kinds=PROBLEMS["regression"])[0] == "score"


def test_numbers_are_sorted_as_numbers_and_counted():
    rows = Dataset.from_list([{"label": name} for name in ("10", "9", "9")])
    assert (labels_of(rows, "class").names, labels_of(rows, "class").counts) == (("9", "10"), (2, 1))


def test_other_columns_are_named():
    _, _, unused = canonicalize(Dataset.from_list([{"text": "a", "label": "x", "tools": "hammer"}]), "rows", KINDS)
    assert sentence(unused, "rows") == "rows: not used are column 'tools' (100 % of the rows)."


def test_each_class_keeps_its_share():
    train, held_out = load_splits("builtin:bbc-news", test_split_size=0.2, stratify=True)
    all_, some = Counter([*train["label"], *held_out["label"]]), Counter(held_out["label"])
    assert len(held_out) == 445 and all(abs(some[name] - 0.2 * all_[name]) <= 1 for name in all_)
    assert not set(train["source_row"]) & set(held_out["source_row"]) and len(train) + len(held_out) == 2225
    again = load_splits("builtin:bbc-news", test_split_size=0.2, stratify=True)[1]
    other = load_splits("builtin:bbc-news", test_split_size=0.2, stratify=True, split_seed=1)[1]
    assert again["source_row"] == held_out["source_row"] != other["source_row"]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_class_of_one_row_can_be_split(size):
    rows = Dataset.from_list([{"text": str(n), "label": "ab"[n == 0]} for n in range(7)])
    train, held_out = split_rows(rows, size, "rows", stratify=True)
    assert len(held_out) == size and len(train) == 7 - size


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def many(label: Any, count: int = 12) -> list[dict[str, Any]]:
    return [{"text": f"text {n}", "label": label(n)} for n in range(count)]


# Content of a file, flags, and the message.
BAD = {
    "no label": (
        [*many(lambda n: "ab"[n % 2], 5), *([{"text": "a", "label": None}] * 7)],
        {},
        "column 'label' must name a class, not null",
    ),
    "blank label": (many(lambda n: ["a", "b", " "][n % 3]), {}, "must name a class, not str ' '"),
    "one class": (many(lambda n: "a"), {}, "the training rows have only the class 'a'"),
    "no classes at all": ([{"text": "a", "labels": []}] * 9, {}, "the training rows have no class at all"),
    "floats that look like classes": (
        many(lambda n: float(n % 3), 60),
        {},
        "holds the floats 0, 1, 2, ..., which look like classes",
    ),
    "floats for classes": (
        many(lambda n: n + 0.5),
        {"problem_type": "single_label_classification"},
        "its rows are texts with a number",
    ),
    "names for numbers": (
        many(lambda n: "ab"[n % 2]),
        {"problem_type": "regression"},
        "its rows are texts with a class",
    ),
    "every row its class": (many(lambda n: f"c{n}", 60), {}, "classes in 48 training rows"),
    "no text": ([{"text": "", "label": "a"}] * 3 + many(lambda n: "ab"[n % 2]), {}, None),
    "a number as text": (
        [*many(lambda n: "ab"[n % 2], 2), *([{"text": None, "label": "a"}] * 9)],
        {},
        "column 'text' must be a string, not null",
    ),
    "not a number": (
        [*many(lambda n: 0.1 + n, 9), {"text": "a", "label": float("inf")}],
        {},
        "column 'label' must be a number",
    ),
    "conversations": ([{"messages": [{"role": "user", "content": "a"}]}] * 4, {}, "its rows are conversations"),
    "nothing known": ([{"q": "a"}] * 4, {}, "no known shape has the columns q"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_learnt_is_refused(case, tmp_path):
    rows, flags, message = BAD[case]
    file = tmp_path / "rows.jsonl"
    file.write_text(lines(rows).replace("Infinity", "1e999"))
    run: Any = SimpleNamespace(args=ClassifyArguments(dataset_name=str(file), **flags), method=METHODS["class"])
    if message is None:
        load_labelled_rows(run)  # an encoder has ends to embed even then
        return
    with pytest.raises(DataError) as said:
        load_labelled_rows(run)
    assert message in str(said.value) and str(file) in str(said.value)


def test_a_class_that_only_validation_has_is_refused():
    train = Dataset.from_list([{"label": name} for name in "aabb"])
    with pytest.raises(DataError, match="validation rows have 'c', which no training row has"):
        check_labels(train, Dataset.from_list([{"label": name} for name in "abc"]), "class", "rows")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"use_peft": True}, "--use_peft: here it is --strategy lora"),
        ({"strategy": "head", "layerwise_lr_decay": 0.9}, "--layerwise_lr_decay is for --strategy full"),
        ({"strategy": "fewshot", "max_minutes": 1.0}, "--max_minutes: a head cannot be trained on half"),
        ({"strategy": "full", "lora_r": 4}, "--lora_r: it is for --use_peft"),
    ],
)
def test_flags_without_a_use_are_refused(flags, message):
    with pytest.raises(ArgumentError, match=message):
        ClassifyArguments(model_name_or_path="builtin:minilm-l6", **flags)


def test_a_strategy_has_its_own_defaults():
    full = ClassifyArguments(model_name_or_path="x")
    head = ClassifyArguments(model_name_or_path="x", strategy="head", learning_rate=0.1)
    assert (full.num_train_epochs, full.learning_rate, full.per_device_train_batch_size) == (3, 5e-5, 16)
    assert (head.num_train_epochs, head.learning_rate, head.per_device_train_batch_size) == (30, 0.1, 128)
