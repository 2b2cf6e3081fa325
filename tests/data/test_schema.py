"""Shapes: every accepted one becomes the canonical one, and what breaks it is named by row and column."""

import json
import re

import pytest
from datasets import Dataset, Features

from tests.text.samples import talk
from tuner.data.schema import canonicalize
from tuner.data.unused import sentence
from tuner.errors import DataError

USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CALL = {"type": "function", "id": "c1", "function": {"name": "f", "arguments": {"a": None, "b": 1}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
SYSTEM = {"role": "system", "content": "s"}


def canonical(*rows):
    kind, converted, _ = canonicalize(Dataset.from_list(list(rows)), "rows.jsonl")
    assert converted["source_row"][:] == list(range(len(rows)))
    assert sorted(converted.column_names) == sorted(
        [kind, "source_row", *(["tools", "chat_template_kwargs"] if kind == "messages" else [])]
    )
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
        ({"prompt": "q", "completion": [ASSISTANT]}, talk("q", "a")),
        ({"prompt": [USER], "completion": "a"}, talk("q", "a")),
        ({"prompt": json.dumps([USER]), "completion": json.dumps([ASSISTANT])}, talk("q", "a")),
        ({"prompt": "q", "completion": '["a", 1]'}, talk("q", '["a", 1]')),
        ({"instruction": "", "input": "q", "output": "a"}, talk("q", "a")),
        (
            {
                "prompt": talk("q", "a", "q2", system="s"),
                "completion": [ASSISTANT],
            },  # as TRL: no turn of a prompt is learnt
            [SYSTEM, USER, {**ASSISTANT, "weight": 0}, *talk("q2", "a")],
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
        ({"messages": ["hi"]}, "column 'messages' has no assistant turn, so there is nothing to learn."),
        ({"messages": [USER, None]}, "column 'messages', turn 1 must be an object, not null."),
        ({"messages": [USER]}, "column 'messages' has no assistant turn, so there is nothing to learn."),
        ({"messages": [SYSTEM]}, "column 'messages' has no assistant turn, so there is nothing to learn."),
        (
            {"messages": [{"content": "q"}]},
            "column 'messages', turn 0 has neither 'role' nor 'from': dict {'content': 'q'}.",
        ),
        (
            {"messages": [USER, {"role": "wizard", "content": "a"}]},
            "column 'messages', turn 1: unknown role 'wizard'; known are system, developer, user, human, "
            "input, assistant, gpt, chatgpt, bing, bard, model, output, function_call, tool_call, tool, function, "
            "observation, tool_response, ipython.",
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


@pytest.mark.parametrize(
    ("columns", "advice"),
    [
        ({"question": "q", "answer": "a"}, " Try --column_mapping question=prompt,answer=completion."),
        ({"prompt": "q"}, ""),
        ({"Text": "q"}, " Try --column_mapping Text=text."),
        ({"output": "q"}, ""),
    ],
)
def test_unknown_columns_are_shown_beside_the_known(columns, advice):
    with pytest.raises(DataError) as caught:
        canonicalize(Dataset.from_list([columns | {"source_row": 3, "long": "x" * 200}]), "rows.jsonl")
    first, row, known, *shapes = str(caught.value).split("\n")
    assert first == f"rows.jsonl: no known shape has the columns {', '.join(columns)}, long.{advice}"
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
        ({"messages": [USER, {**ASSISTANT, "weight": 0.5}]}, ".*turn 1: 'weight' is 0.5, .* drop the turn."),
        ({"messages": [USER, {**ASSISTANT, "weight": 0}]}, ".* no assistant turn but what has the weight 0, so .*"),
        ({"messages": [{**USER, "train": True}, ASSISTANT]}, ".*turn 0: 'train' is True, .*"),
        (
            {"messages": [{**USER, "tool_calls": [CALL]}, ASSISTANT]},
            ".*turn 0: .*'tool_calls' is not supported: only.*",
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]},
            ".*turn 1: 'tool_calls' must be a call, .*: one has no 'name'.",
        ),
        (
            {"messages": [USER, {**ASSISTANT, "tool_calls": [{"function": {"name": "f", "arguments": "{x"}}]}]},
            ".*turn 1: 'tool_calls': the arguments must be JSON, and is not: .*",
        ),
        (
            {"messages": [USER, {**ASSISTANT, "tool_calls": [{"function": {"name": "f", "arguments": [1]}}]}]},
            ".*the arguments of 'f' must be an object.",
        ),
        (sharegpt(("human", "q"), ("function_call", "f(1)")), ".*turn 1 must be JSON, and is not: .*"),
        ({"messages": talk("q", "a"), "tools": "hammer"}, "column 'tools' must be JSON, and is not: .*"),
        (
            {"messages": talk("q", "a"), "tools": [{"type": "x"}]},
            "column 'tools', function 0 must be an object .*",
        ),
        (
            {"messages": talk("q", "a"), "tools": [TOOL], "functions": [TOOL]},
            "the columns 'tools' and 'functions' .*",
        ),
        ({"messages": talk("q", "a"), "history": [["q", "a"]]}, "the column 'history' is not supported: .*"),
        ({"messages": talk("q", "a", system="s"), "system": "t"}, "the column 'system' .* two system messages.*"),
        ({"messages": "[1, 2"}, "column 'messages' must be a list of turns, not str '.1, 2'."),
        ({"instruction": "q", "output": "a", "history": [["q"]]}, "column 'history' must be a list of .question, .*"),
        ({"instruction": "q", "output": "a", "history": [["q", 1]]}, "column 'history'.*"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "text": None}]}, ASSISTANT]},
            "column 'messages', turn 0: the content has a part of the type 'image_url': only text is trained on.",
        ),
    ],
)
def test_what_has_a_meaning_that_cannot_be_honoured_is_refused(row, message):
    with pytest.raises(DataError) as caught:
        canonicalize(as_file(row), "rows.jsonl")
    assert re.fullmatch(f"rows.jsonl, row 0: {message}", str(caught.value), re.DOTALL), caught.value


def as_file(*rows):
    """As `read_files` gives them: each value exactly what a JSON file says."""
    columns = dict.fromkeys(key for row in rows for key in row)
    texts = {key: [json.dumps(row.get(key)) for row in rows] for key in columns}
    return Dataset.from_dict(texts, Features.from_dict({key: {"_type": "Json"} for key in columns}))


CALLED = [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}]
RESULT = {"role": "tool", "content": "4", "tool_call_id": "c1", "name": "f"}
FUNCTION = {"name": "f", "arguments": '{"a": null, "b": 1}'}


@pytest.mark.parametrize(
    ("row", "expected", "tools"),
    [
        (
            {
                "messages": [
                    USER,
                    {"role": "assistant", "content": None, "tool_calls": [{**CALL, "function": FUNCTION}]},
                    RESULT,
                    ASSISTANT,
                ],
                "tools": [TOOL],
            },
            [*CALLED, RESULT, ASSISTANT],
            [TOOL],
        ),
        (  # OpenAI's older form
            {
                "messages": [
                    USER,
                    {"role": "assistant", "content": None, "function_call": FUNCTION},
                    {"role": "function", "name": "f", "content": "4"},
                    ASSISTANT,
                ],
                "functions": [TOOL["function"]],
            },
            [
                USER,
                {"role": "assistant", "content": "", "tool_calls": [{k: v for k, v in CALL.items() if k != "id"}]},
                {"role": "tool", "content": "4", "name": "f"},
                ASSISTANT,
            ],
            [TOOL],
        ),
        (  # LLaMA-Factory's ShareGPT
            {
                **sharegpt(
                    ("human", "q"),
                    ("function_call", '{"name": "f", "arguments": {"b": 1}}'),
                    ("observation", "4"),
                    ("gpt", "a"),
                ),
                "tools": json.dumps([TOOL["function"]]),
            },
            [
                USER,
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"b": 1}}}],
                },
                {"role": "tool", "content": "4"},
                ASSISTANT,
            ],
            [TOOL],
        ),
        (
            {
                "prompt": [USER],
                "completion": [{"role": "assistant", "content": "", "tool_calls": [CALL]}],
                "tools": [TOOL],
            },
            CALLED,
            [TOOL],
        ),
        (
            {"messages": [USER, {**ASSISTANT, "reasoning": "hm"}]},
            [USER, {**ASSISTANT, "reasoning_content": "hm", "thinking": "hm"}],
            None,
        ),
        (
            {"messages": [USER, {**ASSISTANT, "train": False}, USER, {**ASSISTANT, "weight": 1}]},
            [USER, {**ASSISTANT, "weight": 0}, USER, ASSISTANT],
            None,
        ),
        ({"messages": [{"role": "developer", "content": "s"}, USER, ASSISTANT]}, [SYSTEM, USER, ASSISTANT], None),
    ],
)
def test_calls_reasoning_and_weights_are_kept(row, expected, tools):
    kind, converted, not_used = canonicalize(as_file(row), "rows.jsonl")
    assert (kind, converted[0]["messages"], converted[0]["tools"], not_used) == ("messages", expected, tools, {})


def test_nulls_that_a_table_adds_are_no_arguments():
    """In Parquet each call has the arguments of all calls."""
    calls = [{"function": {"name": "f", "arguments": {"a": 1}}}, {"function": {"name": "g", "arguments": {"b": 2}}}]
    rows = Dataset.from_list([{"messages": [USER, {**ASSISTANT, "tool_calls": [call]}]} for call in calls])
    assert rows[0]["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"a": 1, "b": None}
    found = canonicalize(rows, "rows.parquet")[1]["messages"][:]
    assert [turns[1]["tool_calls"][0]["function"]["arguments"] for turns in found] == [{"a": 1}, {"b": 2}]


def test_what_is_not_used_is_told_with_its_share():
    rows = [{"messages": [USER, {**ASSISTANT, "name": "x"}], "id": 7, "note": None}]
    rows += [{"messages": [USER, {**ASSISTANT, "name": None}], "id": 8, "note": ""}] * 3
    found = unused(*rows)
    assert found == {"column 'id'": 1.0, "message key 'name'": 0.25}
    assert sentence(found, "rows.jsonl") == (
        "rows.jsonl: not used are column 'id' (100 % of the rows), message key 'name' (25 % of the rows)."
    )
    assert sentence({}, "rows.jsonl") is None
    assert unused({"text": "t", "label": 3, "tools": "hammer"}) == {"column 'label'": 1.0, "column 'tools'": 1.0}
