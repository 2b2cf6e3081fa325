"""A stream gives the same blocks as the corpus in memory, from any place."""

from __future__ import annotations

import json

import numpy as np
import pytest
from datasets import Dataset

from tuner.data.sources import load_splits
from tuner.data.stream import TokenStream, open_stream, set_aside
from tuner.data.tokens import token_blocks
from tuner.errors import DataError
from tuner.text.vocabulary import train_bpe_tokenizer

TEXTS = [" ".join(f"word{(7 * n + i) % 90}" for i in range(n % 13)) for n in range(700)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe_tokenizer([text for text in TEXTS if text], 300)


def streamed(tokenizer, **options):
    return TokenStream(Dataset.from_dict({"text": TEXTS}).to_iterable_dataset(), tokenizer, 32, **options)


def test_its_blocks_are_those_of_the_corpus_in_memory(tokenizer):
    written = Dataset.from_dict({"text": [text for text in TEXTS if text]})
    expected = token_blocks(written, tokenizer, 32, 5, 2).with_format("numpy")["input_ids"][:]
    found = list(streamed(tokenizer, start=5, after=2))
    assert np.array_equal(np.stack([item["input_ids"] for item in found]), expected)
    assert [item["draw"] for item in found] == list(range(len(expected)))


@pytest.mark.parametrize("start", [None, 5])
def test_it_goes_on_from_every_place(tokenizer, start):
    whole = streamed(tokenizer, start=start, before=1, after=2)
    blocks = list(whole)
    for number in [1, 2, 3, 17, len(blocks) // 2, len(blocks) - 1]:
        later = streamed(tokenizer, start=start, before=1, after=2)
        later.go_to(json.loads(json.dumps(whole.place(number))))
        rest = list(later)
        assert [item["draw"] for item in rest] == list(range(number, len(blocks)))
        assert all(np.array_equal(a["input_ids"], b["input_ids"]) for a, b in zip(rest, blocks[number:], strict=True))


def test_documents_that_cleaning_leaves_out(tokenizer):
    kept = [text for text in TEXTS if text and "word3" not in text.split()]
    cleaned = streamed(tokenizer, after=2, clean=lambda text: None if "word3" in text.split() else text)
    expected = token_blocks(Dataset.from_dict({"text": kept}), tokenizer, 32, None, 2).with_format("numpy")[
        "input_ids"
    ][:]
    found = list(cleaned)
    assert np.array_equal(np.stack([item["input_ids"] for item in found]), expected)
    later = streamed(tokenizer, after=2, clean=cleaned.clean)
    later.go_to(cleaned.place(9))
    assert np.array_equal(next(iter(later))["input_ids"], expected[9])


def test_a_shuffled_stream_is_the_same_again_and_goes_on_from_a_place(tokenizer):
    def opened():
        documents, held_out = set_aside(open_stream("builtin:bbc-news", None, "train", 3, 100), 5)
        return TokenStream(documents, tokenizer, 512, after=2), held_out

    (one, held_out), (other, again) = opened(), opened()
    iterator = iter(one)
    blocks = [next(iterator)["input_ids"] for _ in range(40)]
    other.go_to(one.place(30))
    assert np.array_equal(next(iter(other))["input_ids"], blocks[30])
    assert held_out["text"] == again["text"] and len(held_out) == 5
    first = load_splits("builtin:bbc-news")[0][:5]["text"]
    assert list(held_out["text"]) != list(first), "it was shuffled"


def test_conversations_and_files_are_streamed_as_texts(tmp_path):
    file = tmp_path / "rows.jsonl"
    turns = [{"role": "user", "content": "how\nare you"}, {"role": "assistant", "content": "fine"}]
    file.write_text("".join(json.dumps({"messages": turns}) + "\n" for _ in range(3)), encoding="utf-8")
    assert [row["text"] for row in open_stream(str(file), None, "train", 0, 1)] == ["how are you\nfine"] * 3


def test_what_cannot_be_streamed_is_said(tmp_path):
    (tmp_path / "a.csv").write_text("left,right\n1,2\n", encoding="utf-8")
    with pytest.raises(DataError, match="no known shape has the columns left, right"):
        open_stream(str(tmp_path / "a.csv"), None, "train", 0, 1)
    (tmp_path / "b.txt").write_text("words\n", encoding="utf-8")
    with pytest.raises(DataError, match="one kind"):
        open_stream(str(tmp_path), None, "train", 0, 1)
