"""Tools, reasoning and weights from a file to tokens: what is learnt, what is read, and what a template leaves out."""

import copy
import json
import re
from itertools import groupby

import pytest
from datasets import Dataset, Features

from tests.text import samples
from tests.text.samples import talk
from tests.text.templates import TOOLS, tokenizer_of
from tuner.data.encode import encode_dataset
from tuner.data.schema import canonicalize
from tuner.errors import DataError
from tuner.text.answers import training_tokenizer
from tuner.text.chat import encode_conversations

QUESTION, ANSWER = {"role": "user", "content": "Time?"}, {"role": "assistant", "content": "Noon."}
CLOCK = {"type": "function", "function": {"name": "clock", "arguments": {"zone": "UTC"}}}
CALL = {"role": "assistant", "content": "", "tool_calls": [CLOCK]}
RESULT = {"role": "tool", "name": "clock", "content": "It is 12:00 o'clock"}
ASKED = [QUESTION, CALL, RESULT, ANSWER]


def encoded(rows, tokenizer, max_length=10**6, kinds=("messages",), **how):
    texts = {key: [json.dumps(row.get(key)) for row in rows] for key in dict.fromkeys(k for row in rows for k in row)}
    table = Dataset.from_dict(texts, Features.from_dict({key: {"_type": "Json"} for key in texts}))
    kind, canonical, _ = canonicalize(table, "rows.jsonl", kinds)
    return encode_dataset(canonical, kind, tokenizer, max_length, max_labels_lost=1.0, name="rows.jsonl", **how)


def stretches(tokenizer, row):
    found = groupby(zip(row["input_ids"], row["labels"], strict=True), key=lambda pair: pair[1] != -100)
    return [tokenizer.decode([token for token, _ in group]) for learnt, group in found if learnt]


@pytest.mark.parametrize("name", ["small", "smollm2", "qwen3", "qwen2_5", "llama3_1"])
def test_calls_are_learnt_and_results_are_read(name):
    tokenizer = samples.tokenizer_called(name) if name in ("small", "smollm2") else tokenizer_of(name)
    rows, _ = encoded([{"messages": ASKED, "tools": TOOLS}], tokenizer)
    call, answer = stretches(tokenizer, rows[0])
    assert '"clock"' in call and re.search(r'"zone": ?"UTC"', call) and "12:00" not in call
    assert "Noon." in answer and "12:00" not in answer
    assert "The time." in tokenizer.decode(rows[0]["input_ids"]).split(call)[0]  # what may be called, before


def test_a_row_says_what_else_its_template_reads():
    """Llama's template writes a date, TRL's marked version of it too."""
    tokenizer = tokenizer_of("llama3_1")
    row = {"messages": talk("Time?", "Noon."), "chat_template_kwargs": {"date_string": "1 May 1999", "keyboard": None}}
    for mode in (row, row | {"chat_template_kwargs": json.dumps(row["chat_template_kwargs"])}):
        rows, _ = encoded([mode, {"messages": row["messages"]}], tokenizer)
        said = [tokenizer.decode(one["input_ids"]) for one in rows]
        assert "1 May 1999" in said[0] and "1 May 1999" not in said[1]
        assert stretches(tokenizer, rows[0]) == ["Noon.<|eot_id|>"]
    row["chat_template_kwargs"] = {"enable_thinking": False}
    with pytest.raises(DataError, match=r"row 0: .* does not read 'enable_thinking' of 'chat_template_kwargs'"):
        encoded([row], tokenizer)


@pytest.mark.parametrize("name", ["small", "smollm2", "qwen3", "deepseekv3"])
def test_a_turn_of_weight_0_is_read_and_not_learnt(name):
    """By marks, by TRL's marks, and by rendering."""
    tokenizer = samples.tokenizer_called(name) if name in ("small", "smollm2") else tokenizer_of(name)
    asked = talk("Time?", "Ciao one.", "Time?", "Ciao two.", "Time?", "Ciao three.")
    whole, _ = encoded([{"messages": asked}], tokenizer)
    for key, left_out in (("weight", 1), ("train", 3), ("training", 5)):
        no = {key: 0 if key == "weight" else False}
        turns = [{**turn, **no} if number == left_out else turn for number, turn in enumerate(asked)]
        rows, report = encoded([{"messages": turns}], tokenizer)
        kept = [text for n, text in enumerate(stretches(tokenizer, whole[0])) if n != left_out // 2]
        assert stretches(tokenizer, rows[0]) == kept and report.unlearnt_answers == 0
        assert rows[0]["input_ids"] == whole[0]["input_ids"][: len(rows[0]["input_ids"])]


def test_marks_that_are_not_one_an_answer_are_not_trusted_with_weights():
    """A template that puts two answers in one pair of marks: rendering says which is which."""
    tokenizer = samples.smollm2()
    marks = tokenizer.chat_template.replace("{%- generation %}", "").replace("{%- endgeneration %}", "")
    other = copy.deepcopy(tokenizer)
    other.chat_template = "{% generation %}" + marks + "{% endgeneration %}"
    turns = [QUESTION, {**ANSWER, "content": "Never.", "weight": 0}, QUESTION, ANSWER]
    (row,) = encode_conversations(other, [turns])
    assert stretches(other, row) == ["Noon.<|im_end|>"]


@pytest.mark.parametrize("room", [80, 130, 200])
def test_a_conversation_is_not_cut_between_a_call_and_its_result(room):
    tokenizer = samples.smollm2()
    turns = [turn for n in range(6) for turn in [{**QUESTION, "content": f"Time {n}?"}, CALL, RESULT, ANSWER]]
    whole, _ = encoded([{"messages": turns}], tokenizer)
    pieces, report = encoded([{"messages": turns}], tokenizer, room)
    assert len(pieces) > 2 and report.lost_supervised == 0 and max(map(len, pieces["input_ids"])) <= room
    for row in pieces:
        text = tokenizer.decode(row["input_ids"])
        assert text.startswith("<|im_start|>user\nTime ") and text.count("<tool_call>") == text.count("<tool_response>")
    learnt = [text for row in pieces for text in stretches(tokenizer, row)]
    assert learnt == stretches(tokenizer, whole[0])


def test_what_may_be_called_leads_every_piece():
    tokenizer = samples.smollm2()
    turns = [turn for n in range(6) for turn in [{**QUESTION, "content": f"Time {n}?"}, CALL, RESULT, ANSWER]]
    pieces, report = encoded([{"messages": turns, "tools": TOOLS}], tokenizer, 220)
    assert len(pieces) > 1 and report.lost_supervised == 0
    assert all("The time." in tokenizer.decode(row["input_ids"]) for row in pieces)


def test_reasoning_is_learnt_where_the_template_shows_it_and_else_counted():
    turns = [QUESTION, {**ANSWER, "reasoning_content": "The sun is high."}]
    earlier = [QUESTION, {**ANSWER, "thinking": "The moon is high."}, *turns]
    tokenizer = tokenizer_of("qwen3")
    rows, report = encoded([{"messages": turns}, {"messages": earlier}], tokenizer)
    assert report.hidden_reasoning == 0  # TRL's training version shows all
    assert "The sun is high." in stretches(tokenizer, rows[0])[0]
    _, report = encoded([{"messages": turns}, {"messages": earlier}], samples.smollm2())
    assert report.hidden_reasoning == 3
    assert report.to_dict()["hidden_reasoning"] == 3


def test_a_template_that_joins_arguments_gets_text():
    """DeepSeek's takes them as OpenAI's server sends them; Python's way of showing them is no JSON."""
    tokenizer = training_tokenizer(tokenizer_of("deepseekv3"))[0]
    (row,) = encode_conversations(tokenizer, [ASKED])
    assert '{"zone": "UTC"}' in tokenizer.decode(row["input_ids"])
    shows = copy.deepcopy(samples.smollm2())
    shows.chat_template = shows.chat_template.replace(
        "call['function'] | tojson", "call['function']['name'] ~ call['function']['arguments']"
    )
    (row,) = encode_conversations(shows, [ASKED])
    assert '{"zone": "UTC"}' in shows.decode(row["input_ids"])


@pytest.mark.parametrize(
    ("rows", "missing"),
    [
        ([{"messages": talk("q", "a"), "tools": TOOLS}], "the definition of the tool 'clock'"),
        ([{"messages": ASKED}], "the call of 'clock'"),
        ([{"messages": [QUESTION, RESULT, ANSWER]}], 'the result "It is 12:00 o\'clock"'),
    ],
)
def test_a_template_that_leaves_tools_out_is_refused(rows, missing):
    tokenizer = copy.deepcopy(samples.smollm2())
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role != 'tool' %}<|im_start|>{{ m.role }}\n{% generation %}{{ m.content }}"
        "<|im_end|>{% endgeneration %}{% endif %}{% endfor %}"
    )
    with pytest.raises(DataError, match=re.escape(f"leaves out {missing}.")) as caught:
        encoded([{"messages": talk("q", "a")}, *rows], tokenizer)
    assert str(caught.value).startswith("rows.jsonl, row 1: ")


def test_two_answers_with_tools():
    row = {"prompt": [QUESTION], "chosen": [CALL], "rejected": [ANSWER], "tools": TOOLS}
    tokenizer = samples.smollm2()
    rows, _ = encoded([row], tokenizer, kinds=("preference",))
    chosen = {name: rows[0][f"chosen_{name}"] for name in ("input_ids", "labels")}
    assert "tool_call" in stretches(tokenizer, chosen)[0] and "The time." in tokenizer.decode(chosen["input_ids"])
