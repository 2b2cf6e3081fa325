"""Shapes: every accepted one becomes the canonical one, and what breaks it is named by row and column."""

import json
import re

import pytest
from datasets import Dataset, Features

from tests.text.samples import talk
from tuner.data.schema import canonicalize, unused_sentence
from tuner.errors import DataError

USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}


def canonical(*rows):
    kind, converted, _ = canonicalize(Dataset.from_list(list(rows)), "rows.jsonl")
    assert converted["source_row"][:] == list(range(len(rows)))
    assert sorted(converted.column_names) == sorted([kind, "source_row"])
    return kind, converted[kind][:]


def sharegpt(*turns):
    return {"conversations": [{"from": speaker, "value": text} for speaker, text in turns]}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": talk("q", "a")}, talk("q", "a")),
        ({"messages": talk("q", "a", "q2", "a2", system="s")}, talk("q", "a", "q2", "a2", system="s")),
        ({"messages": [{**USER, "weight": 1.0}, {**ASSISTANT, "name": "x"}], "id": 7}, talk("q", "a")),
        ({"messages": [{"role": "User", "content": "q"}, {"role": "ASSISTANT", "content": "a"}]}, talk("q", "a")),
        ({"messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, talk("q", "a")),
        (sharegpt(("human", "q"), ("gpt", "a")), talk("q", "a")),
        (sharegpt(("system", "s"), ("user", "q"), ("assistant", "a")), talk("q", "a", system="s")),
        (sharegpt(("human", "q"), ("chatgpt", "a")), talk("q", "a")),
        (sharegpt(("human", "q"), ("bing", "a"), ("human", "q2"), ("bard", "a2")), talk("q", "a", "q2", "a2")),
        (sharegpt(("human", "q"), ("model", "a")), talk("q", "a")),
        ({"conversations": talk("q", "a")}, talk("q", "a")),
        ({"prompt": "q", "completion": "a"}, talk("q", "a")),
        ({"prompt": "", "completion": ""}, talk("", "")),
        ({"prompt": [USER], "completion": [ASSISTANT]}, talk("q", "a")),
        (
            {"prompt": talk("q", "a", "q2", system="s"), "completion": [ASSISTANT]},
            talk("q", "a", "q2", "a", system="s"),
        ),
        ({"instruction": "q", "output": "a"}, talk("q", "a")),
        ({"instruction": "q", "input": "", "output": "a"}, talk("q", "a")),
        ({"instruction": "q", "input": None, "output": "a"}, talk("q", "a")),
        ({"instruction": "q", "input": "i", "output": "a"}, talk("q\n\ni", "a")),
        ({"messages": talk("", "")}, talk("", "")),
    ],
)
def test_every_shape_of_conversation(row, expected):
    assert canonical(row, row) == ("messages", [expected, expected])


def test_text():
    assert canonical({"text": "one", "label": 1}, {"text": "", "label": 0}) == ("text", ["one", ""])


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"messages": talk("q", "a"), "text": "t", "prompt": "p", "completion": "c"}, "messages"),
        ({"prompt": "p", "completion": "c", "text": "t"}, "messages"),
        ({"instruction": "i", "output": "o", "text": "t"}, "messages"),
        ({"instruction": "i", "text": "t"}, "text"),
    ],
)
def test_the_richest_shape_counts(row, kind):
    """Alpaca carries `text` beside `instruction`: what is said by whom is not thrown away."""
    assert canonical(row)[0] == kind


def test_batches_and_order():
    rows = [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(2500)]
    assert canonical(*rows)[1] == [talk(f"q{i}", f"a{i}") for i in range(2500)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": None}, "column 'messages' must be a list of turns, not null."),
        ({"messages": []}, "column 'messages' must be a list of turns, not list []."),
        ({"messages": "hi"}, "column 'messages' must be a list of turns, not str 'hi'."),
        ({"messages": ["hi"]}, "column 'messages', turn 0 must be an object, not str 'hi'."),
        ({"messages": [USER, None]}, "column 'messages', turn 1 must be an object, not null."),
        ({"messages": [USER]}, "column 'messages' has no assistant turn, so there is nothing to learn."),
        ({"messages": [SYSTEM]}, "column 'messages' has no assistant turn, so there is nothing to learn."),
        (
            {"messages": [{"content": "q"}]},
            "column 'messages', turn 0 has neither 'role' nor 'from': dict {'content': 'q'}.",
        ),
        (
            {"messages": [USER, {"role": "wizard", "content": "a"}]},
            "column 'messages', turn 1: unknown role 'wizard'; known are system, user, human, assistant, gpt, chatgpt, "
            "bing, bard, model.",
        ),
        (
            {"messages": [{"role": 3, "content": "a"}]},
            "column 'messages', turn 0: unknown role 3; known are system, user, human, assistant, gpt, chatgpt, bing, "
            "bard, model.",
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": None}]},
            "column 'messages', turn 1: the content must be a string, not null.",
        ),
        (
            {"messages": [USER, {"role": "assistant"}]},
            "column 'messages', turn 1: the content must be a string, not null.",
        ),
        (
            {"conversations": [{"from": "human", "value": 5}]},
            "column 'conversations', turn 0: the content must be a string, not int 5.",
        ),
        ({"prompt": "q", "completion": None}, "column 'completion' must be a string, not null."),
        ({"prompt": 1, "completion": "a"}, "column 'prompt' must be a string, not int 1."),
        ({"prompt": "q", "completion": [ASSISTANT]}, "column 'prompt' must be a list of turns, not str 'q'."),
        ({"prompt": [USER], "completion": "a"}, "column 'completion' must be a list of turns, not str 'a'."),
        (
            {"prompt": [USER], "completion": [USER]},
            "column 'completion' has no assistant turn, so there is nothing to learn.",
        ),
        ({"instruction": None, "output": "a"}, "column 'instruction' must be a string, not null."),
        ({"instruction": "q", "input": 4, "output": "a"}, "column 'input' must be a string, not int 4."),
        ({"instruction": "q", "output": 1.5}, "column 'output' must be a string, not float 1.5."),
        ({"text": ["a" * 100]}, f"column 'text' must be a string, not list ['{'a' * 55}...."),
    ],
)
def test_a_row_that_breaks_its_shape_is_named(row, message):
    with pytest.raises(DataError) as caught:
        canonicalize(Dataset.from_list([row]), "rows.jsonl")
    assert str(caught.value) == f"rows.jsonl, row 0: {message}"


def test_the_row_is_counted_in_the_source():
    """Far into a data set that was split, so shuffled, before."""
    rows = Dataset.from_list(
        [{"text": "fine", "source_row": 9 - i} for i in range(9)] + [{"text": None, "source_row": 77}]
    )
    with pytest.raises(DataError, match=r"^rows\.jsonl, row 77: column 'text' must be a string, not null\.$"):
        canonicalize(rows, "rows.jsonl")
    kind, converted, _ = canonicalize(rows.select(range(9)), "rows.jsonl")
    assert (kind, converted["source_row"][:]) == ("text", list(range(9, 0, -1)))


@pytest.mark.parametrize("columns", [{"question": "q", "answer": "a"}, {"prompt": "q"}, {"Text": "q"}, {"output": "q"}])
def test_unknown_columns_are_shown_beside_the_known(columns):
    with pytest.raises(DataError) as caught:
        canonicalize(Dataset.from_list([columns | {"source_row": 3, "long": "x" * 200}]), "rows.jsonl")
    first, row, known, *shapes = str(caught.value).split("\n")
    assert first == f"rows.jsonl: no known shape has the columns {', '.join(columns)}, long."
    assert row == f"A row is {columns | {'long': 'x' * 77 + '...'}}."
    assert known == "The shapes accepted are:"
    assert [line.split("  ")[1].strip() for line in shapes] == [
        "messages",
        "conversations",
        "prompt + completion",
        "instruction + output",
        "text",
    ]


def unused(*rows, **how):
    return canonicalize(Dataset.from_list(list(rows)), "rows.jsonl", **how)[2]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "q", "output": "a", "system": "s"}, talk("q", "a", system="s")),
        ({"instruction": "q", "output": "a", "system": "", "history": []}, talk("q", "a")),
        ({"instruction": "q", "output": "a", "history": [["q0", "a0"]]}, talk("q0", "a0", "q", "a")),
        (
            {"instruction": "q", "input": "i", "output": "a", "history": '[["q0", "a0"]]', "system": "s"},
            talk("q0", "a0", "q\n\ni", "a", system="s"),
        ),
        ({"prompt": "q", "completion": "a", "system_prompt": "s"}, talk("q", "a", system="s")),
        ({**sharegpt(("human", "q"), ("gpt", "a")), "system": "s", "tools": "[]"}, talk("q", "a", system="s")),
        ({"messages": '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]'}, talk("q", "a")),
        ({"messages": [USER, {**ASSISTANT, "tool_calls": None, "weight": 1, "reasoning_content": ""}]}, talk("q", "a")),
        ({"messages": [{**USER, "weight": 0, "train": False}, {**ASSISTANT, "train": True}]}, talk("q", "a")),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": t} for t in "ab"]},
                    {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
                ]
            },
            talk("ab", "a"),
        ),
    ],
)
def test_what_formats_put_beside_the_turns_is_used(row, expected):
    assert canonical(row) == ("messages", [expected])
    assert unused(row) == {}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"messages": [USER, {**ASSISTANT, "weight": 0}]},
            "column 'messages', turn 1: 'weight' is 0, but here .*",
        ),
        ({"messages": [USER, {**ASSISTANT, "weight": 0.5}]}, ".*turn 1: 'weight' is 0.5, .* drop the turn."),
        ({"messages": [USER, {**ASSISTANT, "train": False}]}, ".*turn 1: 'train' is False, .*"),
        ({"messages": [{**USER, "train": True}, ASSISTANT]}, ".*turn 0: 'train' is True, .*"),
        (
            {"messages": [USER, {**ASSISTANT, "reasoning_content": "hm"}]},
            ".*the message key 'reasoning_content' is not supp.*",
        ),
        (
            {"messages": [USER, {**ASSISTANT, "thinking": "hm"}]},
            ".*turn 1: the message key 'thinking' is not supported: .*",
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]},
            ".*turn 1: the message key 'tool_calls' is not supported: .*",
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}]},
            ".*turn 1: the message key 'tool_calls' is not supported: .*",
        ),
        ({"messages": [USER, {"role": "tool", "content": "4"}, ASSISTANT]}, ".*turn 1: the role 'tool' is not supp.*"),
        (sharegpt(("human", "q"), ("observation", "x"), ("gpt", "a")), ".*the role 'observation' is not supported.*"),
        ({"messages": talk("q", "a"), "tools": [{"name": "f"}]}, "the column 'tools' is not supported: .* Drop .*"),
        ({"messages": talk("q", "a"), "tools": '[{"name": "f"}]'}, "the column 'tools' is not supported: .*"),
        ({"messages": talk("q", "a"), "history": [["q", "a"]]}, "the column 'history' is not supported: .*"),
        ({"messages": talk("q", "a", system="s"), "system": "t"}, "the column 'system' .* two system messages.*"),
        ({"messages": "[1, 2"}, "column 'messages' must be a list of turns, not str '.1, 2'."),
        ({"instruction": "q", "output": "a", "history": [["q"]]}, "column 'history' must be a list of .question, .*"),
        ({"instruction": "q", "output": "a", "history": [["q", 1]]}, "column 'history'.*"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "text": None}]}, ASSISTANT]},
            "column 'messages', turn 0: the content must be a string, not list .*",
        ),
    ],
)
def test_what_has_a_meaning_that_cannot_be_honoured_is_refused(row, message):
    with pytest.raises(DataError) as caught:
        rows = Dataset.from_list(
            [{key: json.dumps(value) for key, value in row.items()}],
            Features.from_dict({key: {"_type": "Json"} for key in row}),
        )
        canonicalize(rows, "rows.jsonl")
    assert re.fullmatch(f"rows.jsonl, row 0: {message}", str(caught.value), re.DOTALL), caught.value


def test_what_is_not_used_is_told_with_its_share():
    rows = [{"messages": [USER, {**ASSISTANT, "name": "x"}], "id": 7, "note": None}]
    rows += [{"messages": [USER, {**ASSISTANT, "name": None}], "id": 8, "note": ""}] * 3
    found = unused(*rows)
    assert found == {"column 'id'": 1.0, "message key 'name'": 0.25}
    assert unused_sentence(found, "rows.jsonl") == (
        "rows.jsonl: not used are column 'id' (100 % of the rows), message key 'name' (25 % of the rows)."
    )
    assert unused_sentence({}, "rows.jsonl") is None
    assert unused({"text": "t", "label": 3, "tools": "hammer"}) == {"column 'label'": 1.0, "column 'tools'": 1.0}
