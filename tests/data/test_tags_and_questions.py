"""Tags of tokens and questions on a text: the spellings that are understood, and what is refused, as a recipe reads
them."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from tuner.data.labels import labels_of
from tuner.data.schema import canonicalize
from tuner.data.sources import load_splits
from tuner.errors import DataError
from tuner.objectives.arguments import ClassifyArguments
from tuner.objectives.registry import METHODS
from tuner.train.prepare import load_labelled_rows

TEXT = "The tower is in Paris."


def tags(*names: Any, words: int | None = None) -> dict[str, Any]:
    return {"tokens": [f"w{n}" for n in range(len(names) if words is None else words)], "tags": list(names)}


def asked(text: Any = "Paris", start: Any = 16, context: Any = TEXT) -> dict[str, Any]:
    return {"question": "Where is it?", "context": context, "answers": {"text": [text], "answer_start": [start]}}


NONE = {"question": "Why is it?", "context": TEXT, "answers": {"text": [], "answer_start": []}}
GOOD_TAGS, GOOD_QUESTIONS = [tags("B-X", "O"), tags("O", "I-X")] * 4, [asked(), NONE] * 4


def read(*files: list[dict[str, Any]], folder: Any, **flags: Any) -> Any:
    for name, rows in zip(("train", "test"), files, strict=False):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    name = str(folder / "train.jsonl" if len(files) == 1 else folder)
    run: Any = SimpleNamespace(args=ClassifyArguments(dataset_name=name, **flags), method=METHODS["class"])
    return run, load_labelled_rows(run)


def test_the_columns_name_the_task(tmp_path):
    for rows, kind, problem in (
        (GOOD_TAGS, "tags", "token_classification"),
        (GOOD_QUESTIONS, "question", "question_answering"),
    ):
        run, found = read(rows, folder=tmp_path)
        assert (found.kind, run.labels.problem, run.method) == (kind, problem, METHODS[kind])
    assert run.labels.counts[0] + run.labels.counts[1] == len(found.train) and run.labels.names == ()


@pytest.mark.parametrize("column", ["tags", "ner_tags", "pos_tags", "labels"])
def test_tags_have_the_names_that_the_file_gives_them(column):
    names = Features({"tokens": List(Value("string")), column: List(ClassLabel(names=["O", "B-X"]))})
    rows = Dataset.from_list([{"tokens": ["a", "b"], column: [1, 0]}], names)
    assert canonicalize(rows, "rows", ("tags",))[1][0]["tags"] == ["B-X", "O"]
    numbers = Dataset.from_list([{"tokens": ["a", "b"], column: [10, 9]}])
    assert labels_of(canonicalize(numbers, "rows", ("tags",))[1], "tags").names == ("9", "10")


BAD = {
    "misaligned": ([tags("O", "B-X"), tags("O", words=3)], "column 'tokens' has 3 tokens and column 'tags' 1 tags"),
    "no tag": ([tags("O", None)], "column 'tags' must name a class, not null"),
    "blank tag": ([tags("O", " ")], "column 'tags' must name a class, not str ' '"),
    "half a tag": ([tags(0.5, 1.5)], "column 'tags' must name a class, not float 0.5"),
    "no words": ([tags()], "column 'tokens' must be a list, not list []"),
    "words in a text": ([{"tokens": "one two", "tags": ["O", "O"]}], "'tokens' must be a list, not str 'one two'"),
    "a word that is none": ([{"tokens": ["a", None], "tags": ["O", "O"]}], "token 1 must be a string, not null"),
    "one tag": ([tags("O", "O")], "the training rows have only the class 'O'"),
    "outside the text": ([asked("Paris", 40)], "'Paris' is not what column 'context' has at 40: str ''"),
    "partly outside": ([asked("Paris.x", 16)], "is not what column 'context' has at 16: str 'Paris.'"),
    "before the text": ([asked("Paris", -6)], "is not what column 'context' has at -6"),
    "another place": ([asked("Paris", 3)], "'Paris' is not what column 'context' has at 3"),
    "not in the text": ([asked("Rome", 16)], "'Rome' is not what column 'context' has at 16: str 'Pari'"),
    "no place": ([asked("Paris", None)], "column 'answers': str 'Paris' at null is no answer and its place"),
    "blank answer": ([asked(" ", 3)], "is no answer and its place"),
    "fewer places": ([{**NONE, "answers": {"text": ["a"], "answer_start": []}}], "lists 'text' and 'answer_start'"),
    "a text as answer": ([{**NONE, "answers": "Paris"}], "'answers' must be lists 'text' and 'answer_start'"),
    "no context": ([asked(context=None)], "column 'context'"),
    "nothing answered": ([NONE, NONE], "no training question has an answer: there is nothing to learn"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_learnt_is_refused(case, tmp_path):
    rows, message = BAD[case]
    with pytest.raises(DataError) as said:
        read(rows * 4, folder=tmp_path)
    assert message in str(said.value) and "train.jsonl" in str(said.value)


def test_what_only_validation_has_is_refused(tmp_path):
    with pytest.raises(DataError, match="validation rows have 'I-Y', which no training row has"):
        read(GOOD_TAGS, [tags("I-Y", "O")], folder=tmp_path)
    with pytest.raises(DataError, match="validation questions lack an answer, and no training question does"):
        read([asked()] * 4, GOOD_QUESTIONS, folder=tmp_path)


def test_names_of_news_are_where_the_capitals_were():
    train, held_out = load_splits("builtin:bbc-names", test_split_size=0.2)
    row = next(row for row in train if "blair" in row["tokens"])
    assert row["tags"][row["tokens"].index("blair")] in ("B-NAME", "I-NAME")
    both = {(*row["tokens"],) for row in train} & {(*row["tokens"],) for row in held_out}
    assert all(len(words) < 12 for words in both), "no article is on both sides"
    assert all(word == word.lower() for row in held_out for word in row["tokens"])


def test_quotations_have_their_speaker_or_none():
    train, held_out = load_splits("builtin:bbc-quotes", test_split_size=0.2)
    for row in (*train, *held_out):
        words = row["question"].removeprefix('Who said "').removesuffix('"?')
        assert (" ".join(words.split()) in " ".join(row["context"].split())) == bool(row["answers"]["text"])
    assert not set(train["context"]) & set(held_out["context"])
