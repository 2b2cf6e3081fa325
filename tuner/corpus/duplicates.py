"""Documents that repeat one another, or an evaluation set.

Near-duplicates are found by MinHash (Broder 1997; for language models Lee et al. 2021,
https://arxiv.org/abs/2107.06499): the share of equal numbers in two sketches estimates the Jaccard similarity of the
documents' sets of word n-grams, and only documents that share a band of numbers are compared. Evaluation texts are
found by the word 13-grams they share with a document (Brown et al. 2020, https://arxiv.org/abs/2005.14165, appendix C).
Case and punctuation count in neither.

Python's own `hash` differs from process to process; here everything is hashed alike in all of them. Substrings that
long documents share (the suffix array of Lee et al.) are left out: a document stays whole or goes.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from tuner.errors import DataError
from tuner.text.words import WORD

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, 2^64 over the golden ratio (Knuth): spreads over all bits
SIMILARITY, SHINGLE_WORDS = 0.8, 5  # Lee et al.
PERMUTATIONS = 128  # datasketch's: a pair of similarity 0.85 is found in 19 cases of 20
# What bands are chosen by: a pair that is missed costs nine times one that is compared in vain, which costs only time.
LSH_WEIGHTS = (0.1, 0.9)
MINHASH_SLICE = 4096  # n-grams at once: bounds the memory that a long document takes
HELD_OUT_WORDS = 13  # Brown et al.


def digest(text: str) -> bytes:
    """Sixteen bytes that two texts have in common when they differ in white space at most."""
    return blake2b(" ".join(text.split()).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def word_hashes(text: str) -> np.ndarray:
    """Hashes of a text's words in lower case, without punctuation; uint64, shape `(words,)`."""
    words = WORD.findall(text.lower())
    return np.fromiter((zlib.crc32(word.encode()) for word in words), np.uint64, len(words))


def _ngram_hashes(hashes: np.ndarray, n: int) -> np.ndarray:
    """Hashes of the n-grams of `hashes`; uint64, shape `(max(words - n + 1, 0),)`."""
    if len(hashes) < n:
        return hashes[:0]
    return sliding_window_view(hashes, n) @ np.cumprod(np.full(n, MULTIPLIER))


def held_out_ngrams(texts: Iterable[str]) -> np.ndarray:
    """The hashes of evaluation texts' n-grams, sorted; none where no text has `HELD_OUT_WORDS` words."""
    found = [_ngram_hashes(word_hashes(text), HELD_OUT_WORDS) for text in texts]
    return np.unique(np.concatenate([np.zeros(0, np.uint64), *found]))


def shares_ngram(hashes: np.ndarray, held_out: np.ndarray) -> bool:
    """Whether a text of these `word_hashes` has one of the `held_out_ngrams`."""
    found = _ngram_hashes(hashes, HELD_OUT_WORDS)
    return bool((np.searchsorted(held_out, found) < np.searchsorted(held_out, found, "right")).any())


def sketches(texts: list[np.ndarray]) -> list[bytes]:
    """Sketches of texts, given as `word_hashes`: 4 bytes a permutation, none for a text without words."""
    blank, found = _datasketch().MinHash(PERMUTATIONS, hashfunc=int), []
    for hashes in texts:
        minhash = blank.copy()  # shares the permutations, which take longer to draw than a sketch
        # 32 bits is what MinHash takes; the upper ones depend on all of the lower. A shorter text is one n-gram.
        shingles = (_ngram_hashes(hashes, min(SHINGLE_WORDS, len(hashes) or 1)) >> np.uint64(32)).tolist()
        for start in range(0, len(shingles), MINHASH_SLICE):
            minhash.update_batch(shingles[start : start + MINHASH_SLICE])
        found.append(minhash.hashvalues.astype(np.uint32).tobytes() if shingles else b"")
    return found


class NearDuplicates:
    """Finds texts that are like an earlier one that stays. They are not compared with those that go: in a chain of
    texts that differ more and more from its first, not all go for the first one's sake."""

    def __init__(self) -> None:
        self.index = _datasketch().MinHashLSH(SIMILARITY, PERMUTATIONS, LSH_WEIGHTS)
        self.minhash = _datasketch().MinHash(PERMUTATIONS)

    def is_one(self, sketch: bytes) -> bool:
        """Whether the next text, by its sketch, is at least `SIMILARITY` like one before, with a standard error of
        0.035."""
        numbers = self.minhash.hashvalues = np.frombuffer(sketch, np.uint32)
        for other in self.index.query(self.minhash):
            if (np.frombuffer(other, np.uint32) == numbers).mean() >= SIMILARITY:
                return True
        self.index.insert(sketch, self.minhash)
        return False


def _datasketch() -> Any:
    try:
        import datasketch
    except ImportError:
        raise DataError("--clean finds near-duplicates by datasketch: pip install 'tuner[pretrain]'.") from None
    return datasketch
