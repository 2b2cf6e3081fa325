"""Gopher's rules: which documents are no good prose, by their words, lines and repetitions.

From Rae et al. 2021 (https://arxiv.org/abs/2112.11446), section A.1.1 and table A1. What the paper leaves open is
settled mostly as in FineWeb's filters (https://arxiv.org/abs/2406.17557). Otherwise here: words are what white space
separates, which needs no tokenizer and no language; and no character counts twice where repeated n-grams overlap,
which is the paper's own wish. Of scripts without spaces each character is a word, of which no rule asks how long it is,
and an n-gram of words has twice as many of them. Stop words are English ones and Chinese ones; a text in another script
without spaces needs none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from tuner.text.words import CHARACTER, is_chinese, is_unspaced, pieces

STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
# As many of the most frequent characters of Chinese prose that are words of grammar (Da 2004, "Modern Chinese
# Character Frequency List").
STOP_CHARACTERS = frozenset("的是在不了和有这")
BULLETS = ("•", "‣", "◦", "▪", "■", "●", "-", "\u2013", "*")
ELLIPSES = ("...", "…")
WORD_WITH_LETTER = re.compile(r"[^\W\d_]\S*")  # from its first letter on: found once a word
PARAGRAPH_END = re.compile(r"\n\s*\n")
# By n the greatest share of the words' characters in the most frequent n-gram, from 5 on in those that came before.
NGRAM_LIMITS = {2: 0.20, 3: 0.18, 4: 0.16, 5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
LONGEST_TOP = 4


def broken_rule(text: str) -> str | None:
    """The name of the first rule that a text of at least one word breaks, or None."""
    unspaced = is_unspaced(text)
    words, lines = pieces(text), [line for line in map(str.strip, text.split("\n")) if line]
    spaced = [word for word in words if not CHARACTER.match(word)]
    count, mean_length = len(words), sum(map(len, spaced)) / max(len(spaced), 1)
    same_lines, same_line_characters = _duplicate_shares(lines)
    same_paragraphs, same_paragraph_characters = _duplicate_shares(PARAGRAPH_END.split(text.strip()))
    broken = {
        "too_few_words": count < 50,
        "too_many_words": count > 100_000,
        "short_words": mean_length < 3 and not unspaced,
        "long_words": mean_length > 10 and not unspaced,
        "hash_symbols": text.count("#") / count > 0.1,
        "ellipses": sum(map(text.count, ELLIPSES)) / count > 0.1,
        "bullet_lines": sum(line.startswith(BULLETS) for line in lines) / len(lines) > 0.9,
        "ellipsis_lines": sum(line.endswith(ELLIPSES) for line in lines) / len(lines) > 0.3,
        "words_without_letter": len(WORD_WITH_LETTER.findall(" ".join(words))) / count < 0.8,
        "stop_words": (is_chinese(text) or not unspaced)
        and len((STOP_WORDS | STOP_CHARACTERS).intersection(pieces(text.lower()))) < 2,
        "duplicate_lines": same_lines > 0.30,
        "duplicate_paragraphs": same_paragraphs > 0.30,
        "duplicate_line_characters": same_line_characters > 0.20,
        "duplicate_paragraph_characters": same_paragraph_characters > 0.20,
    }
    for name, is_broken in broken.items():
        if is_broken:
            return name
    for n, share in ngram_shares(words, 2 if unspaced else 1):
        if share > NGRAM_LIMITS[n]:
            return f"top_{n}_gram" if n <= LONGEST_TOP else f"duplicate_{n}_grams"
    return None


def _duplicate_shares(items: list[str]) -> tuple[float, float]:
    """Shares of the items, and of their characters, that are in items that occurred before."""
    different = set(items)
    characters = sum(map(len, items))
    return (len(items) - len(different)) / len(items), (characters - sum(map(len, different))) / characters


def ngram_shares(words: list[str], size: int = 1) -> Iterator[tuple[int, float]]:
    """Each n with the share that `NGRAM_LIMITS` is about, up to the first n of which nothing is repeated; an n-gram is
    `n * size` of the words."""
    lengths = np.array([len(word) for word in words])
    numbers: dict[str, int] = {}
    tokens = np.array([numbers.setdefault(word, len(numbers)) for word in words])
    ngrams = tokens
    for count in range(2, min(max(NGRAM_LIMITS) * size, len(words)) + 1):
        # So many words are one fewer and a word. Both are numbered below len(words), so no two have one key.
        keys = ngrams[:-1] * len(words) + tokens[count - 1 :]
        _, first, ngrams, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
        if counts.max() == 1:
            return  # and so nothing longer is repeated either
        if count % size or count < 2 * size:
            continue
        n = count // size
        if n <= LONGEST_TOP:
            # Of several that are as frequent, the longest.
            ends = np.cumsum(lengths)
            sizes = ends[first + count - 1] - ends[first] + lengths[first]
            starts = ngrams == np.argmax((counts == counts.max()) * sizes)
        else:
            starts = np.ones(len(ngrams), bool)
            starts[first] = False
        covered = np.convolve(starts, np.ones(count)) > 0  # by one that begins there or up to count - 1 words before
        yield n, float(lengths[covered].sum() / lengths.sum())
