"""A stream gives the same blocks as the corpus in memory, from any place."""

from __future__ import annotations

import json
from itertools import islice

import numpy as np
import pytest
from datasets import Dataset

from tests.text.samples import train_bpe_tokenizer
from tuner.corpus.reading import open_stream, set_aside
from tuner.corpus.stream import TokenStream
from tuner.data.sources import load_splits
from tuner.data.tokens import token_blocks
from tuner.errors import DataError

TEXTS = [" ".join(f"word{(7 * n + i) % 90}" for i in range(n % 13)) for n in range(700)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe_tokenizer([text for text in TEXTS if text], 300)


def streamed(tokenizer, **options):
    return TokenStream(Dataset.from_dict({"text": TEXTS}).to_iterable_dataset(), tokenizer, 32, **options)


def read_once(stream):
    """The blocks that end in the first epoch."""
    blocks = []
    for item in stream:
        if stream.place(item["row"] + 1)["epoch"]:
            return blocks  # this one reaches into the next epoch
        blocks.append(item)
    raise AssertionError("a stream has no end")


def test_its_blocks_are_those_of_the_corpus_in_memory(tokenizer):
    written = Dataset.from_dict({"text": [text for text in TEXTS if text]})
    expected = token_blocks(written, tokenizer, 32, 5, 2).with_format("numpy")["input_ids"][:]
    found = read_once(streamed(tokenizer, start=5, after=2))
    assert np.array_equal(np.stack([item["input_ids"] for item in found]), expected)
    assert [item["draw"] for item in found] == list(range(len(expected)))


@pytest.mark.parametrize("start", [None, 5])
def test_it_goes_on_from_every_place(tokenizer, start):
    whole = streamed(tokenizer, start=start, before=1, after=2)
    once = len(read_once(whole))
    blocks = list(islice(whole, 2 * once + 20))
    for number in [1, 17, once - 1, once, once + 1, 2 * once + 2]:
        later = streamed(tokenizer, start=start, before=1, after=2)
        later.go_to(json.loads(json.dumps(whole.place(number))))
        rest = list(islice(later, len(blocks) - number))
        assert [item["draw"] for item in rest] == list(range(number, len(blocks)))
        assert all(np.array_equal(a["input_ids"], b["input_ids"]) for a, b in zip(rest, blocks[number:], strict=True))


def test_documents_that_cleaning_leaves_out(tokenizer):
    kept = [text for text in TEXTS if text and "word3" not in text.split()]
    cleaned = streamed(tokenizer, after=2, clean=lambda text: None if "word3" in text.split() else text)
    expected = token_blocks(Dataset.from_dict({"text": kept}), tokenizer, 32, None, 2).with_format("numpy")[
        "input_ids"
    ][:]
    found = read_once(cleaned)
    assert np.array_equal(np.stack([item["input_ids"] for item in found]), expected)
    later = streamed(tokenizer, after=2, clean=cleaned.clean)
    later.go_to(cleaned.place(9))
    assert np.array_equal(next(iter(later))["input_ids"], expected[9])


def test_a_shuffled_stream_is_the_same_again_and_goes_on_from_a_place(tokenizer):
    def opened():
        documents, _ = open_stream("builtin:bbc-news", None, ("train", "test"), 3, 100)
        documents, held_out = set_aside(documents, 5, "news")
        return TokenStream(documents, tokenizer, 512, after=2), held_out

    (one, held_out), (other, again) = opened(), opened()
    iterator = iter(one)
    blocks = [next(iterator)["input_ids"] for _ in range(40)]
    other.go_to(one.place(30))
    assert np.array_equal(next(iter(other))["input_ids"], blocks[30])
    assert held_out["text"] == again["text"] and len(held_out) == 5
    first = load_splits("builtin:bbc-news")[0][:5]["text"]
    assert list(held_out["text"]) != list(first), "it was shuffled"


def test_the_second_epoch_begins_where_the_first_ends(tokenizer):
    stream = streamed(tokenizer, after=2)
    tokens = np.concatenate([item["input_ids"] for item in islice(stream, 700)])
    once = sum(len(ids) for _, _, ids in islice(stream._tokenized(0, 0), len(TEXTS)))
    assert once < len(tokens) / 2, "there are two epochs in it"
    assert np.array_equal(tokens[once:], tokens[: len(tokens) - once])
    draws = [item["draw"] for item in islice(stream, 700)]
    assert draws == list(range(700)), "masks are drawn anew"


@pytest.mark.parametrize("buffer_size", [1, 20])
def test_every_epoch_of_a_shuffled_stream_has_its_own_order(tokenizer, tmp_path, buffer_size):
    """A function of seed and epoch; validation documents stay out of it; and a place in any epoch is gone on from."""
    for file in range(3):
        rows = [json.dumps({"text": f"word{file} word{row}"}) + "\n" for row in range(30)]
        (tmp_path / f"{file}.jsonl").write_text("".join(rows))

    def opened():
        documents, held_out = set_aside(open_stream(str(tmp_path), None, ("train", "test"), 3, buffer_size)[0], 5, "x")
        return TokenStream(documents, tokenizer, 16, after=2), held_out

    stream, held_out = opened()
    found = list(islice(stream._tokenized(0, 0), 3 * 85))
    epochs = [[ids for epoch, _, ids in found if epoch == number] for number in range(3)]
    assert [len(epoch) for epoch in epochs] == [85, 85, 85]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert (epochs[0] == epochs[1]) == (epochs[1] == epochs[2]) == (buffer_size == 1)
    aside = [[*tokenizer(text, add_special_tokens=False)["input_ids"], 2] for text in held_out["text"]]
    assert not any(ids in epoch for ids in aside for epoch in epochs)
    whole, _ = opened()
    blocks = list(islice(whole, 150))
    assert whole.place(120)["epoch"] > 1
    for number in (40, 90, 120):
        later, _ = opened()
        later.go_to(whole.place(number))
        rest = list(islice(later, 20))
        assert all(np.array_equal(a["input_ids"], b["input_ids"]) for a, b in zip(rest, blocks[number:], strict=False))


@pytest.mark.parametrize("texts", [["", ""], ["left out"]])
def test_a_stream_without_a_token_says_so(tokenizer, texts):
    documents = Dataset.from_dict({"text": texts}).to_iterable_dataset()
    with pytest.raises(DataError, match="not one token"):
        next(iter(TokenStream(documents, tokenizer, 32, clean=lambda text: None)))
