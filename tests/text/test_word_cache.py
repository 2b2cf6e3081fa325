"""Each distinct word tokenized once gives the very tokens that the tokenizer gives, whatever the text."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from tuner.loading.checkpoints import resolve
from tuner.text import word_cache as words
from tuner.text.load_tokenizer import load_pretrained_tokenizer
from tuner.text.train_tokenizer import train_tokenizer
from tuner.text.word_cache import WordTokenizer, tokenize

TEXTS = ["The quick brown fox's den isn't 12,345 miles away!", "Grüße aus Köln, 東京 и Москва\n\tÅrhus  … 🦊", "a\x85b"]
BPE = train_tokenizer(TEXTS * 2, "bpe", 320, "clm")
WORDPIECE = train_tokenizer(TEXTS * 2, "wordpiece", 200, "mlm")
LOWER = train_tokenizer(TEXTS * 2, "wordpiece", 200, "mlm", lowercase=True)
UNIGRAM = train_tokenizer(TEXTS * 2, "unigram", 600, "mlm")
# What a boundary may hang on, oftener than chance would have it.
EDGES = st.sampled_from(
    [" ", "  ", "\n", " \n", "\t", "\r\n", "\x85", "\xa0", "\u2028", "\u3000", "\x1c", "\x0b", "\u0301", "'s", "'", "a",
     "Ab", "9", "12", "...", "é", "e\u0301", "東", "🦊", "Σ", "İ", "\ufffd", "\x00", "<|eos|>", "[MASK]", "[", "##a",
     "\u200b", "\ufeff"]
)  # fmt: skip
TEXT = st.lists(st.one_of(EDGES, st.text(max_size=4)), max_size=14).map("".join)


def plainly(tokenizer, texts):
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return list(chain.from_iterable(rows)), [len(row) for row in rows]


@pytest.mark.parametrize("tokenizer", [BPE, WORDPIECE, LOWER, UNIGRAM], ids=["bpe", "wordpiece", "lower", "unigram"])
@settings(deadline=None, max_examples=100)
@given(texts=st.lists(TEXT, max_size=5))
def test_any_text(tokenizer, texts):
    ids, lengths = tokenize(tokenizer, texts)
    if texts:
        assert (ids.tolist(), lengths.tolist()) == plainly(tokenizer, texts)
    else:
        assert len(ids) == len(lengths) == 0


def test_a_word_is_tokenized_once(monkeypatch):
    calls = []
    fast = WordTokenizer(BPE)
    monkeypatch.setattr(words, "_flat", lambda rows, flat=words._flat: calls.append(len(rows)) or flat(rows))
    first = fast(["the fox and the fox and the den"])
    again = fast(["and the den", "the fox"])
    assert calls == [5, 1], "the, fox, and, the behind a space, den; then and, where it opens a text"
    assert first[1].tolist() == [len(BPE("the fox and the fox and the den", add_special_tokens=False)["input_ids"])]
    assert again[1].sum() == len(again[0])


def test_what_is_remembered_has_an_end(monkeypatch):
    monkeypatch.setattr(words, "REMEMBERED", 3)
    fast = WordTokenizer(BPE)
    for text in ("one two three four", "five six seven", "one two"):
        assert fast([text])[0].tolist() == BPE(text, add_special_tokens=False)["input_ids"]
    assert list(fast._numbers) == ["five", " six", " seven", "one", " two"], "begun anew after four"


def test_what_another_call_left_in_the_tokenizer_is_not_kept():
    tokenizer = train_tokenizer(TEXTS * 2, "bpe", 320, "clm")
    tokenizer(["a long enough text", "b"], truncation=True, max_length=2, padding=True)
    assert (
        WordTokenizer(tokenizer)(["internationalisation"])[0].tolist()
        == BPE("internationalisation", add_special_tokens=False)["input_ids"]
    )


def test_which_tokenizers_are_taken_word_by_word():
    assert all(WordTokenizer(tokenizer).words for tokenizer in (BPE, WORDPIECE, LOWER))
    assert WordTokenizer(UNIGRAM).words is None
    spaced = train_tokenizer(TEXTS * 2, "bpe", 320, "clm")
    spaced.add_tokens([AddedToken("fox", lstrip=True)])
    assert WordTokenizer(spaced).words is None
    minilm = load_pretrained_tokenizer(resolve("builtin:minilm-l6")[0], needs_end=False)
    texts = ["Hello there,  it's\nMe.", "naïve café [SEP] x", ""]
    ids, lengths = tokenize(minilm, texts)
    assert (ids.tolist(), lengths.tolist()) == plainly(minilm, texts)
    assert ids.dtype == np.int32


def test_tokens_that_are_added_later_are_known():
    tokenizer = train_tokenizer(TEXTS * 2, "bpe", 320, "clm")
    tokenize(tokenizer, ["the fox<new> and the <|x|>"])
    tokenizer.add_tokens(["<new>"])
    tokenizer.add_tokens(["fox"])  # also one that changes no size, where the vocabulary has it
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|x|>"]})
    ids, _ = tokenize(tokenizer, ["the fox<new> and the <|x|>"])
    assert ids.tolist() == tokenizer("the fox<new> and the <|x|>", add_special_tokens=False)["input_ids"]
