"""What rows mean of the Hub's sets and of other tools: calls, reasoning, several questions, prompts of other names."""

import json

import pytest
from datasets import Dataset

from tests.data.test_other_tools import ASKED, BAD, GOOD, read
from tuner.data.labels import check_labels
from tuner.errors import DataError
from tuner.rl.prompts import read_prompts


def test_calls_that_follow_each_other_are_one_turn():
    call, other = ({"name": "add", "arguments": {"a": n}} for n in (1, 2))
    turns = [ASKED, {"role": "assistant", "content": "Wait."}]
    turns += [{"role": "tool_call", "content": json.dumps(each)} for each in (call, other)]
    turns += [{"role": "tool_response", "content": f"<tool_response>\n{n}\n</tool_response>"} for n in (1, 2)]
    found = read({"messages": json.dumps([*turns, GOOD])})["messages"]
    assert [turn["role"] for turn in found] == ["user", "assistant", "tool", "tool", "assistant"]
    assert found[1]["content"] == "Wait." and [each["function"] for each in found[1]["tool_calls"]] == [call, other]
    assert [turn["content"] for turn in found[2:4]] == ["1", "2"]


def test_tools_that_the_system_message_has_are_not_written_twice():
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    told = {"role": "system", "content": f"You may call <tools>{json.dumps(tool)}</tools>."}
    found = read({"messages": json.dumps([told, ASKED, GOOD]), "tools": json.dumps([tool])})
    assert found["tools"] is None and found["unused"] == {"column 'tools' (the system message has them)": 1.0}
    assert read({"messages": json.dumps([ASKED, GOOD]), "tools": [json.dumps(tool)]})["tools"] == [tool]


@pytest.mark.parametrize("columns", [("prompt", "completion"), ("instruction", "output"), ("instruction", "response")])
def test_what_was_thought_in_a_column_of_its_own(columns):
    found = read({columns[0]: "2 + 2?", columns[1]: "It is 4.", "reasoning_content": "Easy."})
    assert found["messages"] == [ASKED, GOOD | {"reasoning_content": "Easy.", "thinking": "Easy."}]
    assert not found["unused"]


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Human:2 + 2?\nAssistant:It is 4.\nHuman:And 3 + 3?\nAssistant:", "output": "6."},
        {"prompt": "2 + 2?\n<extra_id_1>Assistant\nIt is 4.\n<extra_id_1>User\nAnd 3 + 3?", "completion": "6."},
    ],
    ids=["belle", "helpsteer"],
)
def test_questions_before_the_last_in_one_text(row):
    again, last = {"role": "user", "content": "And 3 + 3?"}, {"role": "assistant", "content": "6."}
    turns = read(row)["messages"]
    assert [{key: turn[key] for key in ("role", "content")} for turn in turns] == [ASKED, GOOD, again, last]
    prompts, _ = read_prompts(Dataset.from_list([row]), "rows")
    assert [turn["content"] for turn in prompts[0]["prompt"]] == ["2 + 2?", "It is 4.", "And 3 + 3?"]


def test_two_answers_whose_prompt_is_in_a_column_of_another_name():
    row = {"context": [ASKED], "chosen": [GOOD], "rejected": [BAD]}
    with pytest.raises(DataError, match=r"is the column 'context' the prompt\? Pass --column_mapping context=prompt"):
        read(row, "preference")
    with pytest.raises(DataError, match="do not begin alike, so they have no common prompt"):
        read({"chosen": [GOOD], "rejected": [BAD]}, "preference")


def test_the_last_answer_is_compared():
    again, last = {"role": "user", "content": "And 3 + 3?"}, {"role": "assistant", "content": "6."}
    whole = [ASKED, GOOD, again]
    row = {"prompt": "2 + 2?", "chosen": [*whole, last], "rejected": [*whole, BAD]}
    found = read(row, "preference")
    assert (found["prompt"], found["chosen"], found["rejected"]) == (whole, [last], [BAD])
    found = read({"prompt": "2 + 2?", "completion": [*whole, last], "label": True}, "unpaired")
    assert (found["prompt"], found["completion"]) == (whole, [last])
    row = {"messages": [ASKED], "chosen_response": "It is 4.", "rejected_response": "It is 5."}
    found = read(row, "preference")
    assert (found["prompt"], found["chosen"], found["rejected"], found["unused"]) == ([ASKED], [GOOD], [BAD], {})


def test_variables_of_a_template():
    row = {"messages": [ASKED, GOOD], "enable_thinking": False}
    assert read(row)["chat_template_kwargs"] == {"enable_thinking": False}
    empty = json.dumps({"custom_instructions": "", "python_tools": [], "enable_thinking": True})
    assert read(row | {"chat_template_kwargs": empty})["chat_template_kwargs"] == {"enable_thinking": True}


def test_messages_of_a_tree_are_no_prompts():
    row = {"message_id": "b", "parent_id": "a", "message_tree_id": "a", "text": "It is 4.", "role": "assistant"}
    with pytest.raises(DataError, match="single messages of trees"):
        read_prompts(Dataset.from_list([row]), "rows")


def test_hidden_labels_are_told_from_classes():
    held_out = Dataset.from_list([{"text": "a", "label": -1.0}] * 3)
    train = Dataset.from_list([{"text": "a", "label": float(n) / 7} for n in range(30)])
    with pytest.raises(DataError, match=r"all validation rows have the label -1, .*--dataset_test_split"):
        check_labels(train, held_out, "score", "rows")
