"""What files mean that other tools and data sets have: Dolly, Anthropic's dialogues, ms-swift's preferences, TSV."""

import json

import pytest
from datasets import Dataset

from tuner.corpus.segments import turns_to_lines
from tuner.data.columns import suggestion
from tuner.data.schema import canonicalize
from tuner.data.sources import load_splits
from tuner.errors import DataError
from tuner.rl.prompts import read_prompts

ASKED, GOOD, BAD = (
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "It is 4."},
    {"role": "assistant", "content": "It is 5."},
)
DIALOGUE = "\n\nHuman: 2 + 2?\n\nAssistant:"


def read(row, kind="messages"):
    _, rows, unused = canonicalize(Dataset.from_list([row]), "rows", (kind,))
    return rows[0] | {"unused": unused}


def test_dolly():
    row = {"instruction": "Who?", "context": "Ann is it.", "response": "Ann.", "category": "closed_qa"}
    found = read(row)
    wanted = [{"role": "user", "content": "Who?\n\nAnn is it."}, {"role": "assistant", "content": "Ann."}]
    assert found["messages"] == wanted
    assert found["unused"] == {"column 'category'": 1.0}
    prompts, _ = read_prompts(Dataset.from_list([row]), "rows")
    assert prompts[0]["prompt"] == wanted[:1]


@pytest.mark.parametrize("prompt", [DIALOGUE, DIALOGUE.strip(), DIALOGUE.removesuffix("\n\nAssistant:")])
def test_a_prompt_that_is_a_dialogue(prompt):
    """As in many sets that were made of Anthropic's: the answers alone, or the dialogues again."""
    for before in ("", "\n\nHuman: 2 + 2?\n\nAssistant:"):
        row = {"prompt": prompt, "chosen": f"{before} It is 4.", "rejected": f"{before} It is 5."}
        found = read(row, "preference")
        assert (found["prompt"], found["chosen"], found["rejected"]) == ([ASKED], [GOOD], [BAD])
    found = read({"prompt": prompt, "completion": " It is 4."})
    assert found["messages"] == [ASKED, GOOD]
    prompts, _ = read_prompts(Dataset.from_list([{"prompt": prompt}]), "rows")
    assert prompts[0]["prompt"] == [ASKED]


def test_passages_beside_an_instruction_are_named():
    found = read({"instruction": "2 + 2?", "context": ["A passage."], "output": "It is 4."})
    assert (found["messages"], found["unused"]) == ([ASKED, GOOD], {"column 'context'": 1.0})


def test_what_only_mentions_a_speaker_is_text():
    for prompt, answer in (("Human: who is it?", "Say:\n\nAssistant: me"), ("A dialogue.", "Human: a\n\nAssistant: b")):
        found = read({"prompt": prompt, "completion": answer})
        assert [turn["content"] for turn in found["messages"]] == [prompt, answer]


@pytest.mark.parametrize("kind", ["preference", "ranked"])
@pytest.mark.parametrize(
    "rejected",
    [{"rejected_response": "It is 5."}, {"rejected_messages": [ASKED, BAD]}],
    ids=lambda each: next(iter(each)),
)
def test_ms_swift(kind, rejected):
    system = {"role": "system", "content": "Be brief."}
    found = read({"messages": [ASKED, GOOD], "system": "Be brief.", **rejected}, kind)
    assert (found["prompt"], found["chosen"], found["rejected"]) == ([system, ASKED], [GOOD], [BAD])
    assert not found["unused"]
    found = read({"messages": [ASKED, GOOD], "rejected_response": BAD}, kind)
    assert (found["prompt"], found["rejected"]) == ([ASKED], [BAD])
    with pytest.raises(DataError, match="row 0: column 'messages' must be a question and the chosen answer"):
        read({"messages": [ASKED, GOOD, ASKED], "rejected_response": "It is 5."}, kind)


@pytest.mark.parametrize(
    "turns",
    [
        ["2 + 2?", "It is 4."], f"{DIALOGUE} It is 4.", [json.dumps(ASKED), json.dumps(GOOD)],
        [{"human": "2 + 2?", "assistant": "It is 4."}], [{"input": "2 + 2?", "output": "It is 4."}],
    ],
    ids=["lima", "dialogue", "json", "ms-swift", "capybara"],
)  # fmt: skip
def test_texts_by_turns(turns):
    row = {"conversations": turns, "source": "lima"}
    assert read(row)["messages"] == [ASKED, GOOD]
    assert read(row | {"label": True}, "unpaired")["completion"] == [GOOD]
    prompts, _ = read_prompts(Dataset.from_list([row]), "rows")
    assert prompts[0]["prompt"] == [ASKED]


def test_a_conversation_without_an_answer():
    with pytest.raises(DataError, match="no assistant turn"):
        read({"conversations": ["2 + 2?"]})


def test_a_message_of_a_tree_is_no_text():
    row = {"message_id": "b", "parent_id": "a", "message_tree_id": "a", "text": "It is 4.", "role": "assistant"}
    with pytest.raises(DataError, match="row 0: it is one message of a tree"):
        read(row, "text")


def test_keys_of_a_part_are_named():
    part = {"type": "text", "text": "2 + 2?", "cache_control": {"type": "ephemeral"}}
    found = read({"messages": json.dumps([{"role": "user", "content": [part]}, GOOD])})
    assert found["messages"] == [ASKED, GOOD]
    assert found["unused"] == {"key of a part 'cache_control'": 1.0}


def test_what_was_thought_is_in_the_text():
    found = read({"messages": [ASKED, GOOD | {"reasoning_content": "Two and\ntwo."}]})
    assert turns_to_lines(found["messages"]) == "2 + 2?\nTwo and two. It is 4."


def test_a_tab_parts_columns(tmp_path):
    (tmp_path / "rows.tsv").write_text("prompt\tcompletion\n" + "a, b\t007\n" * 4, encoding="utf-8")
    train, _ = load_splits(str(tmp_path / "rows.tsv"))
    assert (train[0]["prompt"], train[0]["completion"]) == ("a, b", "007")


def test_what_is_suggested_holds_what_it_should():
    row = {"question": "2 + 2?", "completions": ["4", "5"], "answer": "4"}
    assert suggestion(row, [("prompt", "completion")]) == "--column_mapping question=prompt,answer=completion"
    assert suggestion({"question": "2 + 2?", "completions": ["4", "5"]}, [("prompt", "completion")]) == ""
    assert suggestion({"conversation": "Hi."}, [("messages",)]) == ""
    assert suggestion({"conversation": '[{"role": "user", "content": "Hi."}]'}, [("messages",)]) != ""


def test_what_is_suggested_answers_first_and_keeps_what_is_beside():
    shapes = [("text",), ("prompt", "completion"), ("instruction", "output")]
    row = {"article": "Ann is it.", "question": "Who?", "answer": "Ann."}
    assert suggestion(row, shapes) == "--column_mapping question=prompt,answer=completion"
    assert suggestion({"article": "Long.", "summary": "Short."}, shapes) == (
        "--column_mapping article=prompt,summary=completion"
    )
    row = {"context": "Ann is it.", "question": "Who?", "answer": "Ann."}
    assert suggestion(row, shapes) == "--column_mapping question=instruction,answer=output"
    row = {"prompt": "Who?", "chosen_response": "Ann.", "rejected_response": "Bob."}
    wanted = "--column_mapping chosen_response=chosen,rejected_response=rejected"
    assert suggestion(row, [("prompt", "chosen", "rejected")]) == wanted


def test_parameters_of_a_tool_may_be_json_text():
    tool = {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}}
    written = [{"type": "function", "function": tool | {"parameters": json.dumps(tool["parameters"])}}]
    found = read({"messages": [ASKED, GOOD], "tools": json.dumps(written)})
    assert found["tools"] == [{"type": "function", "function": tool}]
    with pytest.raises(DataError, match="function 0: the parameters must be JSON, and is not"):
        read({"messages": [ASKED, GOOD], "tools": json.dumps([{"name": "add", "parameters": "{1"}])})


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        ({"train_detail": [{"begin_offset": 0, "end_offset": 2, "train": False}]}, "'train_detail' is not supported"),
        ({"content": [{"type": "text", "text": "It", "train": False}, {"type": "text", "text": " is."}]}, "Split it"),
    ],
)
def test_parts_that_are_not_learnt_are_refused(turn, said):
    with pytest.raises(DataError, match=said):
        read({"messages": json.dumps([ASKED, GOOD | turn])})


@pytest.mark.parametrize("turn", [{"masked": True}, {"loss_weight": 0.0}, {"train": False}])
def test_a_turn_that_is_not_learnt(turn):
    found = read({"messages": json.dumps([ASKED, BAD | turn, ASKED, GOOD])})
    assert found["messages"] == [ASKED, BAD | {"weight": 0}, ASKED, GOOD]


@pytest.mark.parametrize("key", ["text", "content", "value"])
def test_the_text_of_a_part(key):
    found = read({"messages": json.dumps([{"from": "input", "value": [{"type": "text", key: "2 + 2?"}]}, GOOD])})
    assert found["messages"] == [ASKED, GOOD] and not found["unused"]


@pytest.mark.parametrize(
    "start", ["<|im_start|>user\n", "<s>[INST] ", "<|begin_of_text|><|start_header_id|>", "<|user|>"]
)
@pytest.mark.parametrize(("kind", "answers"), [("messages", ["completion"]), ("preference", ["chosen", "rejected"])])
def test_a_prompt_that_a_template_has_written_is_refused(start, kind, answers):
    row = {"prompt": f"{start}2 + 2?", **{name: f"{name}<|im_end|>" for name in answers}}
    with pytest.raises(DataError, match="row 0: column 'prompt' begins as a chat template has written it"):
        read(row, kind)
    with pytest.raises(DataError, match="begins as a chat template"):
        read_prompts(Dataset.from_list([row]), "rows")


@pytest.mark.parametrize("label", ["label", "kto_tag"])
def test_a_completion_that_repeats_its_prompt(label):
    for prompt, answer in (("2 + 2?", [ASKED, GOOD]), ([ASKED], [ASKED, GOOD]), ("2 + 2?", [GOOD])):
        row = {"prompt": prompt, "completion": answer}
        assert read(row)["messages"] == [ASKED, GOOD]
        found = read(row | {label: True}, "unpaired")
        assert (found["prompt"], found["completion"]) == ([ASKED], [GOOD])
    with pytest.raises(DataError, match="does not repeat column 'prompt'"):
        read({"prompt": "3 + 3?", "completion": [ASKED, GOOD]})


def test_a_conversation_with_its_answer_beside_two_others():
    row = {"messages": [ASKED, GOOD], "chosen": GOOD, "rejected": BAD}
    with pytest.raises(DataError, match="column 'messages' ends with an answer, and 'chosen' is another"):
        read(row, "preference")


def test_files_of_media_are_refused():
    with pytest.raises(DataError, match="'image_path' is not supported: only text is trained on"):
        read({"messages": [ASKED, GOOD], "image_path": "clock.jpg"})


def test_another_tool_s_list_of_data_sets_is_named(tmp_path, capsys):
    (tmp_path / "mine.json").write_text('[{"text": "a"}, {"text": "b"}]', encoding="utf-8")
    about = {"mine": {"file_name": "mine.json", "columns": {"prompt": "text"}}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(about), encoding="utf-8")
    load_splits(str(tmp_path))
    assert "dataset_info.json is LLaMA-Factory's and not read" in capsys.readouterr().err
