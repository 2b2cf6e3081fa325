"""Prompts of PPO: what stands beside them, and what of a row is not used."""

import json
from types import SimpleNamespace

import pytest
from datasets import Dataset

from tests.text.templates import tokenizer_of
from tuner.config.ppo import PPOArguments
from tuner.errors import DataError
from tuner.rl.prompts import encode_prompts, read_prompts
from tuner.rl.run import load_prompts


def read(*rows):
    found, unused = read_prompts(Dataset.from_list(list(rows)), "set")
    again, _ = read_prompts(found, "set")
    assert again["prompt"] == found["prompt"]  # the trainer reads what a recipe has read
    return found["prompt"], unused


def test_a_system_message_begins_the_prompt():
    told = {"role": "system", "content": "Be brief."}
    asked = {"role": "user", "content": "Why?"}
    for column in ("system", "system_prompt"):
        assert read({"prompt": "Why?", column: "Be brief."})[0] == [[told, asked]]
        assert read({"messages": [asked], column: "Be brief."})[0] == [[told, asked]]
    assert read({"prompt": "Why?", "system": ""})[0] == [[asked]]
    with pytest.raises(DataError, match=r"set, row 0: the column 'system' and the first message are two system"):
        read({"prompt": [told, asked], "system": "Be long."})


def test_earlier_questions_come_before():
    rows = {"prompt": "Why?", "history": [["Is it so?", "It is."]]}
    said = [("user", "Is it so?"), ("assistant", "It is."), ("user", "Why?")]
    assert [(turn["role"], turn["content"]) for turn in read(rows)[0][0]] == said
    with pytest.raises(DataError, match="row 0: the column 'history' is not supported: it belongs beside"):
        read({"messages": [{"role": "user", "content": "Why?"}], "history": [["Is it so?", "It is."]]})


def test_alpaca_s_instructions_are_prompts():
    row = {"instruction": "Add.", "input": "1 and 2", "output": "3", "system": "You add."}
    found, _ = read_prompts(Dataset.from_list([row]), "set")
    assert [turn["content"] for turn in found["prompt"][0]] == ["You add.", "Add.\n\n1 and 2"]
    assert found["output"] == ["3"]  # for reward functions


def test_what_of_a_message_is_not_used_is_counted():
    turns = [{"role": "user", "content": "Why?", "mood": "sad"}]
    _, unused = read({"messages": turns}, {"messages": [{"role": "user", "content": "How?"}]})
    assert unused == {"message key 'mood'": 0.5}


def test_a_prompt_s_row_says_what_its_template_reads():
    tokenizer = tokenizer_of("llama3_1")
    rows = Dataset.from_list([{"prompt": "Time?", "chat_template_kwargs": {"date_string": "1 May 1999"}}])
    found, _ = encode_prompts(read_prompts(rows, "set")[0], tokenizer, 1000, None, "set")
    assert "1 May 1999" in tokenizer.decode(found[0]["input_ids"])


def test_another_name_is_suggested():
    with pytest.raises(DataError, match=r"no column prompt, .*; there are question, answer\. Try --column_mapping"):
        read_prompts(Dataset.from_list([{"question": "Why?", "answer": "So."}]), "set")


def test_sets_whose_columns_have_other_types(tmp_path, capsys):
    """What reads Parquet knows types, what reads JSON lines does not ask for any."""
    Dataset.from_list([{"prompt": "a", "answer": 1.5}] * 4).to_parquet(tmp_path / "numbers.parquet")
    Dataset.from_list([{"prompt": "b", "answer": "one"}] * 4).to_parquet(tmp_path / "words.parquet")
    lines = [json.dumps({"prompt": "c", "answer": [1], "more": True}) + "\n"] * 4
    (tmp_path / "lines.jsonl").write_text("".join(lines), encoding="utf-8")
    names = [str(tmp_path / name) for name in ("numbers.parquet", "words.parquet", "lines.jsonl")]
    args = PPOArguments(
        model_name_or_path="m", reward_funcs=["f.py:f"], dataset_name=names, output_dir="o", test_split_size=1
    )
    rows = load_prompts(SimpleNamespace(args=args)).train
    said = [(row["prompt"][0]["content"], row["answer"], row["more"]) for row in rows]
    assert said == [("a", 1.5, None)] * 3 + [("b", "one", None)] * 3 + [("c", [1], True)] * 3
    assert "Reward functions are given the columns answer, more." in capsys.readouterr().out


@pytest.mark.parametrize(("column", "said"), [("prompt", "the columns input."), ("instruction", None)])
def test_what_no_reward_reads_is_named(tmp_path, capsys, column, said):
    """Alpaca's `input` is a part of the prompt beside `instruction` alone."""
    (tmp_path / "rows.jsonl").write_text(f'{{"{column}": "Add.", "input": "1 and 2"}}\n' * 4, encoding="utf-8")
    args = PPOArguments(
        model_name_or_path="m", reward_model_path=["r"], dataset_name=[str(tmp_path / "rows.jsonl")], output_dir="o"
    )
    load_prompts(SimpleNamespace(args=args))
    printed = capsys.readouterr().out
    assert said in printed if said else "Not used" not in printed
