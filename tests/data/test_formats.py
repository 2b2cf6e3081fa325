"""What the files of other tools say is what they say here, or is refused by name."""

import json
import re

import pyarrow as pa
import pytest
from datasets import Audio, Dataset, Image, List

from tests.data.test_schema import ASSISTANT, SYSTEM, TOOL, USER
from tests.text.samples import talk
from tuner.data.schema import canonicalize
from tuner.data.sources import load_rows, load_splits
from tuner.errors import DataError
from tuner.text.tool_use import not_shown

GOOD, BAD = [{"role": "assistant", "content": "good"}], [{"role": "assistant", "content": "bad"}]


@pytest.fixture
def as_file(tmp_path):
    """A row as the only one of a file."""

    def read(row):
        (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
        return load_rows(str(tmp_path / "rows.jsonl"))

    return read


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {
                "messages": [
                    USER,
                    {**ASSISTANT, "tool_calls": [{"function": {"name": "f", "arguments": '{"a": "\\ud800"}'}}]},
                ]
            },
            ".*the arguments must be JSON, and is not: .*lone surrogate.*",
        ),
        (
            {"messages": [USER, {**ASSISTANT, "tool_calls": [{"name": "f", "arguments": "{}", "result": "R"}]}]},
            ".*turn 1: 'tool_calls': the key 'result' of a call is not supported.*",
        ),
        (
            {"messages": [USER, {**ASSISTANT, "tool_calls": [{"name": "f"}], "function_call": {"name": "g"}}]},
            ".*turn 1 has calls under two keys, which say two things. Drop one.",
        ),
        (
            {"messages": [USER, {**ASSISTANT, "reasoning_content": "one", "thinking": "two"}]},
            ".*turn 1 has reasoning under two keys, which say two things. Drop one.",
        ),
        (
            {"conversations": [{"from": "human", "value": "q", "content": "other"}, {"from": "gpt", "value": "a"}]},
            ".*turn 0 has 'content' and 'value', which say two things. Drop one.",
        ),
        (
            {"messages": [USER, {**ASSISTANT, "refusal": "no"}]},
            ".*turn 1: the message key 'refusal' is not supported: .*",
        ),
        ({"messages": talk("q", "a"), "label": False}, "an answer is marked as bad .label, kto_tag.: .*"),
        ({"messages": talk("q", "a"), "kto_tag": "false"}, "an answer is marked as bad .*"),
        ({"instruction": "q", "output": "a", "kto_tag": False}, "an answer is marked as bad .*"),
        (
            {"messages": talk("q", "a"), "chat_template_kwargs": [1]},
            "column 'chat_template_kwargs' must be an object.*",
        ),
        (
            {"messages": talk("q", "a"), "chat_template_kwargs": '{"tools": 1}'},
            "column 'chat_template_kwargs': 'tools' is known otherwise.*",
        ),
        (
            {"instruction": "q", "output": ["good", "bad"]},
            "column 'output' is a list of 2 texts, of which one is needed.",
        ),
    ],
)
def test_what_would_be_misread_is_refused(row, message, as_file):
    with pytest.raises(DataError) as caught:
        canonicalize(as_file(row), "rows.jsonl")
    assert re.fullmatch(f"rows.jsonl, row 0: {message}", str(caught.value), re.DOTALL), caught.value


def test_a_number_beyond_64_bits_keeps_its_digits(as_file):
    call = {"function": {"name": "f", "arguments": '{"a": 99999999999999999999}'}}
    _, found, _ = canonicalize(as_file({"messages": [USER, {**ASSISTANT, "tool_calls": [call]}]}), "rows.jsonl")
    assert found[0]["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"a": "99999999999999999999"}


@pytest.mark.parametrize("arguments", [{}, "{}", "", None, "null"])
def test_a_call_without_arguments(arguments, as_file):
    row = {
        "messages": [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "now", "arguments": arguments}}]}]
    }
    _, found, _ = canonicalize(as_file(row), "rows.jsonl")
    assert found[0]["messages"][1]["tool_calls"][0]["function"] == {"name": "now", "arguments": {}}
    row = {"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": {"name": "now"}}]}
    assert canonicalize(as_file(row), "rows.jsonl")[1][0]["messages"][1]["tool_calls"]


PAIR = {"chosen": "good", "rejected": "bad"}
TURNS = {"chosen": GOOD, "rejected": BAD}


@pytest.mark.parametrize("kind", ["preference", "ranked"])
@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"instruction": "q", **PAIR}, [USER]),
        ({"instruction": "q", "input": "i", "system": "s", **PAIR}, [SYSTEM, *talk("q\n\ni")]),
        ({"question": "q", "system": "s", **PAIR}, [SYSTEM, USER]),
        ({"prompt": "q", "system": "s", **PAIR}, [SYSTEM, USER]),
        ({"messages": [SYSTEM, USER], **TURNS}, [SYSTEM, USER]),
        (
            {
                "conversations": [{"from": "human", "value": "q"}],
                "chosen": {"from": "gpt", "value": "good"}, "rejected": {"from": "gpt", "value": "bad"},
            },
            [USER],
        ),
        ({"prompt": json.dumps([USER]), "chosen": json.dumps(GOOD), "rejected": json.dumps(BAD)}, [USER]),
        ({"chosen": json.dumps([USER, *GOOD]), "rejected": json.dumps([USER, *BAD])}, [USER]),
        (
            {"input": {"messages": [USER], "tools": [TOOL]}, "preferred_output": GOOD, "non_preferred_output": BAD},
            [USER],
        ),
    ],
)  # fmt: skip
def test_where_others_have_the_prompt_of_two_answers(row, prompt, kind, as_file):
    _, found, unused = canonicalize(as_file(row), "rows.jsonl", (kind,))
    assert (found[0]["prompt"], found[0]["chosen"], found[0]["rejected"]) == (prompt, GOOD, BAD)
    assert not unused and found[0]["tools"] == ([TOOL] if "input" in row and "preferred_output" in row else None)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [SYSTEM, USER, *GOOD], "label": True},
        {"messages": [USER, *GOOD], "system": "s", "kto_tag": True},
        {"conversations": [SYSTEM, USER, *GOOD], "label": "true"},
        {"instruction": "q", "output": "good", "system": "s", "kto_tag": True},
        {"instruction": "q", "output": "good", "system": "s", "label": True},
        {"prompt": "q", "completion": "good", "system": "s", "label": True},
    ],
)
def test_where_others_have_judged_answers(row, as_file):
    _, found, unused = canonicalize(as_file(row), "rows.jsonl", ("unpaired",))
    assert (found[0]["prompt"], found[0]["completion"], found[0]["label"]) == ([SYSTEM, USER], GOOD, True)
    assert not unused


@pytest.mark.parametrize(
    "answer",
    ['[{"name": "w", "value": 3}]', '[{"from": "Paris", "to": "Lyon"}]', '[{"role": "Engineer", "name": "Bob"}]'],
)
def test_an_answer_in_json_is_a_text(answer, as_file):
    _, found, _ = canonicalize(as_file({"prompt": "q", "completion": answer}), "rows.jsonl")
    assert found[0]["messages"][1]["content"] == answer
    row = {"prompt": "q", "chosen": answer, "rejected": "none"}
    assert canonicalize(as_file(row), "rows.jsonl", ("preference",))[1][0]["chosen"][0]["content"] == answer


@pytest.mark.parametrize(
    "beside", [{"messages": [USER, *GOOD]}, {"instruction": None}, {"question": ""}, {"conversations": []}], ids=str
)
def test_whole_conversations_do_not_need_what_is_beside_them(beside, as_file):
    row = {**beside, "chosen": [USER, *GOOD], "rejected": [USER, *BAD]}
    _, found, _ = canonicalize(as_file(row), "rows.jsonl", ("preference",))
    assert (found[0]["prompt"], found[0]["chosen"], found[0]["rejected"]) == ([USER], GOOD, BAD)


def test_a_prompt_that_ends_with_an_answer(as_file):
    with pytest.raises(DataError, match="column 'messages' ends with an answer, and 'chosen' is another"):
        canonicalize(as_file({"messages": [USER, *GOOD], **PAIR}), "rows.jsonl", ("preference",))


def test_an_input_that_is_json_stays(as_file):
    row = {"instruction": "q", "input": "[]", "output": "a"}
    assert canonicalize(as_file(row), "rows.jsonl")[1][0]["messages"][0]["content"] == "q\n\n[]"


def test_openai_s_preferences_as_json_text(as_file):
    asked = json.dumps({"messages": [USER], "parallel_tool_calls": True})
    row = {"input": asked, "preferred_output": json.dumps(GOOD), "non_preferred_output": json.dumps(BAD)}
    _, found, unused = canonicalize(as_file(row), "rows.jsonl", ("preference",))
    assert found[0]["prompt"] == [USER] and found[0]["chosen"] == GOOD
    assert unused == {"key 'parallel_tool_calls' of 'input'": 1.0}


def test_a_measured_loss_is_no_flag(as_file):
    _, found, unused = canonicalize(as_file({"messages": [USER, {**ASSISTANT, "loss": 0.53}]}), "rows.jsonl")
    assert found[0]["messages"] == [USER, ASSISTANT] and list(unused) == ["message key 'loss'"]


def test_a_judged_conversation_ends_with_the_answer(as_file):
    with pytest.raises(DataError, match="must end with the judged answer, not a turn of the user"):
        canonicalize(as_file({"messages": [USER, *GOOD, USER], "label": True}), "rows.jsonl", ("unpaired",))


def test_a_good_answer_is_learnt(as_file):
    _, found, _ = canonicalize(as_file({"messages": [USER, *GOOD], "label": True}), "rows.jsonl")
    assert found[0]["messages"] == [USER, *GOOD]
    assert canonicalize(as_file({"messages": [USER, *GOOD], "label": 0}), "rows.jsonl")[0] == "messages"  # a class


def test_a_turn_that_swift_does_not_learn(as_file):
    row = {"messages": [USER, {**ASSISTANT, "loss": False}, USER, {**ASSISTANT, "loss": True}]}
    turns = canonicalize(as_file(row), "rows.jsonl")[1][0]["messages"]
    assert [turn.get("weight") for turn in turns] == [None, 0, None, None]


def test_a_call_is_not_shown_by_its_definition():
    tools = [{"type": "function", "function": {"name": "now"}}]
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "now", "arguments": {}}}]}
    assert not_shown("tools: now. <assistant>", [USER, call], tools) == "the definition or a call of the tool 'now'"
    assert not_shown("tools: now. <assistant> now()", [USER, call], tools) is None


def test_a_column_named_as_ours(tmp_path):
    for split in ("train", "test"):
        rows = [{"messages": [USER, ASSISTANT], "source_row": "abc"}] * 2
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for rows in load_splits(str(tmp_path)):
        assert canonicalize(rows, "rows")[1]["source_row"][:] == [0, 1]


@pytest.mark.parametrize("feature", [Image(), Audio()], ids=["image", "audio"])
def test_what_is_no_text_is_refused_by_name_without_being_decoded(feature):
    name = type(feature).__name__.lower()
    broken = pa.array([{"bytes": b"broken", "path": None}], pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    rows = Dataset.from_list([{"messages": [USER, *GOOD]}]).add_column(name, broken).cast_column(name, feature)
    with pytest.raises(DataError, match=f"the column '{name}' is not supported: only text is trained on"):
        canonicalize(rows, "rows")


def test_several_images_are_not_decoded_either():
    broken = pa.array(
        [[{"bytes": b"broken", "path": None}]], pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    )
    rows = Dataset.from_list([{"messages": [USER, *GOOD]}]).add_column("pictures", broken)
    rows = rows.cast_column("pictures", List(Image()))
    assert canonicalize(rows, "rows")[2] == {"column 'pictures'": 1.0}


def test_one_text_in_a_list_is_that_text():
    row = {"instruction": "q", "output": ["good"]}
    assert canonicalize(Dataset.from_list([row]), "rows")[1][0]["messages"] == [USER, *GOOD]
