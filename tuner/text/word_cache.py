"""Tokens of many texts, each distinct word tokenized once.

A corpus repeats its words: of the 2.4 million in `builtin:chitchat` 92,000 are distinct. Byte-level BPE as in GPT-2 and
WordPiece as in BERT cut a text at its white space before anything else, so that a word's tokens are the same wherever
it stands. What may be otherwise goes to the tokenizer as it is: other kinds of tokenizers, and texts that spell one of
its special tokens. Left out: offsets, and special tokens around a text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain, islice
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from tuner.text.train_tokenizer import SPACELESS

# Unicode's white space, which is what `\s` means to the tokenizers library; Python's is a little wider.
SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
# By the kind of pre-tokenizer. GPT-2's takes a space along with the word behind it, and of several all but the last.
# BERT's drops white space, and control characters before that: what else is white to Unicode stays within a word.
WORDS = {"ByteLevel": rf" ?[^{SPACE}]+|[{SPACE}]+(?![^{SPACE}])|[{SPACE}]+", "BertPreTokenizer": r"[^ \t\n\r]+"}
# Distinct words that are remembered, before all are forgotten.
REMEMBERED = 1_000_000


class _Numbers(dict[str, int]):
    """Numbers words in the order in which they are met."""

    def __missing__(self, word: str) -> int:
        self[word] = number = len(self)
        return number


class WordTokenizer:
    """A tokenizer, of any kind, that remembers words; see the module's header for which of them are made faster."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer: Any = tokenizer
        self.words = _words_of(tokenizer)
        marks = [re.escape(token) for token in tokenizer.get_added_vocab()]
        self.marks = re.compile("|".join(marks)) if marks else None
        self._forget()

    def _forget(self) -> None:
        self._numbers = _Numbers()
        self._ids, self._starts = np.zeros(0, np.int32), np.zeros(1, np.int64)

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of texts, without special ones around them.

        Returns:
            `(tokens,)` int32, all texts' one after the other, and `(texts,)` int64: how many are each one's.
        """
        if self.words is None:
            return _flat(self._plainly(texts))
        if len(self._numbers) > REMEMBERED:
            self._forget()
        spells = [bool(self.marks and self.marks.search(text)) for text in texts]
        plain = [n for n, mark in enumerate(spells) if mark]
        found = [[] if mark else self.words.findall(text) for text, mark in zip(texts, spells, strict=True)]
        counts = np.fromiter(map(len, found), np.int64, len(found))
        known = len(self._numbers)
        numbers = np.fromiter(map(self._numbers.__getitem__, chain.from_iterable(found)), np.int64, int(counts.sum()))
        self._learn(known)

        sizes = np.diff(self._starts)[numbers]
        ends = np.concatenate([[0], np.cumsum(sizes)])
        # Of each token: where its word's tokens begin, and how far it is from there.
        ids = self._ids[np.repeat(self._starts[numbers] - ends[:-1], sizes) + np.arange(ends[-1])]
        bounds = np.concatenate([[0], np.cumsum(counts)])
        lengths = np.diff(ends[bounds])
        return self._with_plain(texts, plain, ids, lengths) if plain else (ids, lengths)

    def _learn(self, known: int) -> None:
        new = list(islice(self._numbers, known, None))
        if new:
            backend = self.tokenizer.backend_tokenizer
            backend.no_truncation()  # what a call before this one may have left
            backend.no_padding()
            ids, lengths = _flat([word.ids for word in backend.encode_batch_fast(new, add_special_tokens=False)])
            self._ids = np.concatenate([self._ids, ids])
            self._starts = np.concatenate([self._starts, self._starts[-1] + np.cumsum(lengths)])

    def _with_plain(
        self, texts: Sequence[str], plain: list[int], ids: np.ndarray, lengths: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        rows: list[Any] = np.split(ids, np.cumsum(lengths)[:-1])
        for n, row in zip(plain, self._plainly([texts[n] for n in plain]), strict=True):
            rows[n] = row
        return _flat(rows)

    def _plainly(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        encoded = self.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
        return list(encoded["input_ids"])


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """As `WordTokenizer`, of which that of the last tokenizers is kept."""
    return _word_tokenizer(tokenizer, frozenset(tokenizer.get_added_vocab()))(texts)


def missing_ends(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], start: int | None, end: int | None
) -> np.ndarray:
    """Which documents need `start` put before them, and which `end` behind: those that do not spell it there, as texts
    do that a chat template wrote, white space aside: `(texts, 2)` bool."""
    first, last = (None if token is None else str(tokenizer.convert_ids_to_tokens(token)) for token in (start, end))
    opens = [first is not None and not text[: len(first) + 8].lstrip().startswith(first) for text in texts]
    closes = [last is not None and not text[-len(last) - 8 :].rstrip().endswith(last) for text in texts]
    return np.array([opens, closes], bool).T


@lru_cache(maxsize=2)
def _word_tokenizer(tokenizer: PreTrainedTokenizerBase, added: frozenset[str]) -> WordTokenizer:
    """`added` is for the cache alone: tokens that are added later are other words."""
    return WordTokenizer(tokenizer)


def _flat(rows: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    return np.fromiter(chain.from_iterable(rows), np.int32, int(lengths.sum())), lengths


def _words_of(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """What finds the words that a tokenizer takes one by one; None where it cannot be known."""
    if not tokenizer.is_fast:
        return None
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    before_words = parts["pre_tokenizer"] or {}
    if before_words.get("type") == "Sequence":  # that of `train_tokenizer`, which cuts words further
        first, *rest = before_words["pretokenizers"]
        before_words = rest[0] if len(rest) == 1 and first.get("pattern") == {"Regex": SPACELESS} else {}
    kind = before_words.get("type")
    before = parts["normalizer"]
    steps = [] if before is None else before["normalizers"] if before["type"] == "Sequence" else [before]
    steps = [step["type"] for step in steps]
    added = [token for token in parts["added_tokens"] if token["lstrip"] or token["rstrip"] or token["single_word"]]
    if added or parts["model"].get("dropout"):
        return None
    if kind == "ByteLevel" and not steps and parts["model"]["type"] == "BPE":
        own = parts["pre_tokenizer"]["use_regex"] and not parts["pre_tokenizer"]["add_prefix_space"]
        return re.compile(WORDS[kind]) if own else None
    cased = not any(token["normalized"] for token in parts["added_tokens"])
    if kind == "BertPreTokenizer" and cased and set(steps) <= {"NFC", "BertNormalizer"} and "BertNormalizer" in steps:
        return re.compile(WORDS[kind])
    return None
