"""Rows become prompts or pairs, and models write what is missing."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from tests.model.helpers import SHAPE, scramble
from tests.text.samples import conversations, small, talk
from tuner.errors import DataError
from tuner.feedback.pairs import read_pairs
from tuner.feedback.sample import complete
from tuner.feedback.store import Store
from tuner.loading.chat_model import load_chat_model
from tuner.model import TunerDecoderConfig, TunerDecoderForCausalLM

ASK, ANSWER = talk("q"), {"role": "assistant", "content": "a"}
HOW = {"max_new_tokens": 4, "top_p": 1.0, "top_k": 0}


def read(*rows, sampled=False, system=None):
    return read_pairs(Dataset.from_list(list(rows)), "rows.jsonl", sampled, system)


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "q"}, "q"),
        ({"prompt": ASK}, ASK),
        ({"prompt": json.dumps(ASK)}, json.dumps(ASK)),
        ({"messages": talk("q", "a")}, ASK),
        ({"messages": talk("q", "a", "q2", system="s")}, talk("q", "a", "q2", system="s")),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, ASK),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "q"),
    ],
)
def test_prompts(row, prompt):
    assert read(row, row, sampled=True) == [(0, prompt, None, None), (1, prompt, None, None)]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, ("q", "a", "b")),
        ({"prompt": ASK, "chosen": [ANSWER], "rejected": [{**ANSWER, "content": "b"}]}, (ASK, "a", "b")),
        ({"chosen": talk("q", "a"), "rejected": talk("q", "b")}, (ASK, "a", "b")),
        ({"prompt": "q", "response_a": "a", "response_b": "b"}, ("q", "a", "b")),
        ({"prompt": ASK, "completion_a": "a", "completion_b": "b"}, (ASK, "a", "b")),
    ],
)
def test_rows_with_two_completions(row, expected):
    assert read(row) == [(0, *expected)]


def test_equal_completions_and_what_is_not_used_are_said(capsys):
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "source": "x"}
    assert [pair[0] for pair in read(row, {**row, "rejected": "a\n"}, row)] == [0, 2]
    said = capsys.readouterr().err
    assert "rows.jsonl: not used are column 'source'." in said
    assert "rows.jsonl: 1 left out, because both completions are the same: row 1." in said


def test_a_system_message_is_part_of_the_prompt():
    assert read({"prompt": "q"}, sampled=True, system="s")[0][1] == talk("q", system="s")
    with pytest.raises(DataError, match=r"row 0: the prompt begins with a system message"):
        read({"prompt": talk("q", system="s")}, sampled=True, system="t")


@pytest.mark.parametrize(
    ("row", "sampled", "message"),
    [
        ({"text": "q"}, True, "row 0: has none of the columns prompt, messages, conversations; it has text"),
        ({"prompt": "q"}, False, "row 0: has no two completions .chosen and rejected; .*it has prompt. A MODEL"),
        ({"prompt": talk("q", "a")}, True, "column 'prompt' ends with the assistant's turn"),
        ({"messages": [ANSWER]}, True, "column 'messages' ends with the assistant's turn"),
        ({"prompt": 3}, True, "column 'prompt' must be a list of turns, not int 3"),
        (
            {"prompt": "q", "chosen": 1, "rejected": 2},
            False,
            "'chosen' must be a list of turns or a string, not int 1",
        ),
        ({"prompt": "q", "tools": "[{}]"}, True, "the column 'tools' is not supported"),
        ({"chosen": [ANSWER], "rejected": [{**ANSWER, "content": "b"}]}, False, "do not begin alike"),
        (
            {"prompt": ASK, "chosen": [ANSWER, *talk("q2", "a2")], "rejected": [{**ANSWER, "content": "b"}]},
            False,
            "goes on for several turns",
        ),
    ],
)
def test_rows_that_are_neither(row, sampled, message):
    with pytest.raises(DataError, match=message):
        read(row, sampled=sampled)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two models that were never trained."""
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = TunerDecoderConfig(**{**SHAPE, "vocab_size": 1000, "max_position_embeddings": 64}, **ends)
    folders = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        folders.append(tmp_path_factory.mktemp("model"))
        scramble(TunerDecoderForCausalLM(config)).save_pretrained(folders[-1])
        small().save_pretrained(folders[-1])
    return [str(folder) for folder in folders]


@pytest.fixture(scope="module")
def prompts():
    return [
        (n, talk[0]["content"], None, None) for n, talk in enumerate(conversations(40)) if len(talk[0]["content"]) < 60
    ]


def loader(temperature, loaded):
    def load(name):
        loaded.append(name)
        return load_chat_model(Namespace(model=name, temperature=temperature, seed=None, **HOW))

    return load


def texts(store: Store):
    with store._open() as db:
        return db.execute("SELECT first, second FROM pair ORDER BY id").fetchall()


def fill(path: Path, prompts, models, temperature=1.0, seed=0):
    store, loaded = Store(path, new=True), []
    store.begin({}, prompts)
    complete(store, models, loader(temperature, loaded), seed, batch_size=4, **HOW)
    return store, loaded


def test_one_model_answers_twice(folders, prompts, tmp_path):
    store, loaded = fill(tmp_path / "f.sqlite", prompts, [folders[0]] * 2)
    found = texts(store)
    assert loaded == folders[:1], "one model is loaded once"
    assert len(found) == len(prompts) == store.count() and all(first != second for first, second in found)
    assert texts(fill(tmp_path / "again.sqlite", prompts, [folders[0]] * 2)[0]) == found
    assert texts(fill(tmp_path / "other.sqlite", prompts, [folders[0]] * 2, seed=1)[0]) != found


def test_two_models_answer_each_once_and_what_is_there_is_not_made_again(folders, prompts, tmp_path):
    store, loaded = fill(tmp_path / "f.sqlite", prompts, folders, temperature=0.0)
    assert loaded == folders
    found = texts(store)
    with store._open(write=True) as db:
        db.execute("UPDATE pair SET first = 'kept'")
        db.execute("UPDATE pair SET second = NULL WHERE id = ?", [prompts[1][0]])
    again = []
    complete(store, folders, loader(0.0, again), 0, batch_size=4, **HOW)
    assert again == folders[1:], "only the model whose completions lack is loaded"
    assert texts(store) == [("kept", second) for _, second in found]
    complete(store, folders, loader(0.0, again), 0, batch_size=4, **HOW)
    assert again == folders[1:]


def test_completions_that_stay_the_same_are_left_out_and_said(folders, prompts, tmp_path, capsys):
    store, _ = fill(tmp_path / "f.sqlite", prompts[:3], [folders[0]] * 2, temperature=0.0)
    assert store.count() == 0 and store.next("ada") is None
    listed = ", ".join(str(row[0]) for row in prompts[:3])
    assert f"3 left out, because both completions are the same: row {listed}." in capsys.readouterr().err


def test_a_prompt_that_is_too_long(folders, tmp_path):
    with pytest.raises(DataError, match=r"row 7: its prompt is .* tokens, as long as the model can read at all"):
        fill(tmp_path / "f.sqlite", [(7, "word " * 200, None, None)], [folders[0]] * 2)
