"""Gopher's rules: which documents are no good prose, by their words, lines and repetitions.

From Rae et al. 2021 (https://arxiv.org/abs/2112.11446), section A.1.1 and table A1. What the paper leaves open is
settled mostly as in FineWeb's filters (https://arxiv.org/abs/2406.17557). Otherwise here: words are what white space
separates, which needs no tokenizer and no language; and no character counts twice where repeated n-grams overlap,
which is the paper's own wish.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})  # Gopher's
BULLETS = ("•", "‣", "◦", "▪", "■", "●", "-", "\u2013", "*")
WORD_WITH_LETTER = re.compile(r"[^\W\d_]\S*")  # from its first letter on: found once a word
PARAGRAPH_END = re.compile(r"\n\s*\n")
Limits = tuple[tuple[int, float], ...]  # by n


@dataclass(frozen=True)
class GopherThresholds:
    """Gopher's numbers: section A.1.1 and, from `max_duplicate_lines` on, table A1.

    A `max_` of infinity and a `min_` of 0 switch a rule off; so does leaving an n out.

    Words are what white space separates; `symbols` are "#" and ellipses. A duplicate is what occurred before in the
    document: of a line that comes twice, one is a duplicate. Shares of n-grams are of the words' characters, none
    counted twice.
    """

    min_mean_word_length: float = 3
    max_mean_word_length: float = 10
    max_symbols_per_word: float = 0.1
    max_bullet_lines: float = 0.9
    max_ellipsis_lines: float = 0.3
    min_words_with_letter: float = 0.8
    min_stop_words: int = 2  # different ones; 0 for other languages than English
    max_duplicate_lines: float = 0.30
    max_duplicate_paragraphs: float = 0.30
    max_duplicate_line_characters: float = 0.20
    max_duplicate_paragraph_characters: float = 0.20
    max_top_ngram: Limits = ((2, 0.20), (3, 0.18), (4, 0.16))
    max_duplicate_ngrams: Limits = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))


def quality_faults(text: str, words: list[str], limits: GopherThresholds) -> Iterator[str]:
    """The names of the rules of section A.1.1 that a document breaks, each found when it is asked for. `words` are
    `text.split()`, at least one; how many there may be is not judged here."""
    lines = _lines(text)
    mean_length = sum(map(len, words)) / len(words)
    if mean_length < limits.min_mean_word_length:
        yield "short_words"
    if mean_length > limits.max_mean_word_length:
        yield "long_words"
    if text.count("#") / len(words) > limits.max_symbols_per_word:
        yield "hash_symbols"
    if (text.count("...") + text.count("…")) / len(words) > limits.max_symbols_per_word:
        yield "ellipses"
    if sum(line.startswith(BULLETS) for line in lines) / len(lines) > limits.max_bullet_lines:
        yield "bullet_lines"
    if sum(line.endswith(("...", "…")) for line in lines) / len(lines) > limits.max_ellipsis_lines:
        yield "ellipsis_lines"
    if len(WORD_WITH_LETTER.findall(text)) / len(words) < limits.min_words_with_letter:
        yield "words_without_letter"
    if limits.min_stop_words and len(STOP_WORDS.intersection(text.lower().split())) < limits.min_stop_words:
        yield "stop_words"


def repetition_faults(text: str, words: list[str], limits: GopherThresholds) -> Iterator[str]:
    """The names of the rules of table A1 that a document breaks, each found when it is asked for. `words` are
    `text.split()`, at least one."""
    lines, line_characters = _duplicate_shares(_lines(text))
    paragraphs, paragraph_characters = _duplicate_shares(PARAGRAPH_END.split(text.strip()))
    shares = {"duplicate_lines": lines, "duplicate_paragraphs": paragraphs}
    shares |= {"duplicate_line_characters": line_characters, "duplicate_paragraph_characters": paragraph_characters}
    yield from (name for name, share in shares.items() if share > getattr(limits, f"max_{name}"))
    yield from _ngram_faults(words, limits)


def _lines(text: str) -> list[str]:
    return [line for line in map(str.strip, text.split("\n")) if line]


def _duplicate_shares(items: list[str]) -> tuple[float, float]:
    """Shares of the items, and of their characters, that are in items that occurred before."""
    different = set(items)
    characters = sum(map(len, items))
    return (len(items) - len(different)) / len(items), (characters - sum(map(len, different))) / characters


def _ngram_faults(words: list[str], limits: GopherThresholds) -> Iterator[str]:
    top, duplicate = dict(limits.max_top_ngram), dict(limits.max_duplicate_ngrams)
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    numbers: dict[str, int] = {}
    tokens = np.fromiter((numbers.setdefault(word, len(numbers)) for word in words), np.int64, len(words))
    ngrams = tokens
    for n in range(2, min(max((*top, *duplicate), default=0), len(words)) + 1):
        # An n-gram is an (n-1)-gram and a word. Both are numbered below len(words), so no two have one key.
        keys = ngrams[:-1] * len(words) + tokens[n - 1 :]
        _, first, ngrams, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
        if counts.max() == 1:
            return  # and so no longer n-gram is repeated either
        if n in top:
            # Of several that are as frequent, the longest.
            ends = np.cumsum(lengths)
            sizes = ends[first + n - 1] - ends[first] + lengths[first]
            most = np.argmax((counts == counts.max()) * sizes)
            if _share_covered(ngrams == most, lengths, n) > top[n]:
                yield f"top_{n}_gram"
        repeated = np.ones(len(ngrams), bool)
        repeated[first] = False
        if n in duplicate and _share_covered(repeated, lengths, n) > duplicate[n]:
            yield f"duplicate_{n}_grams"


def _share_covered(starts: np.ndarray, lengths: np.ndarray, n: int) -> float:
    """Share of the characters in words that are in an n-gram which begins at one of `starts`."""
    open_ngrams = np.zeros(len(lengths) + 1, np.int64)
    open_ngrams[: len(starts)] += starts
    open_ngrams[n : n + len(starts)] -= starts
    return float(lengths[np.cumsum(open_ngrams)[:-1] > 0].sum() / lengths.sum())
