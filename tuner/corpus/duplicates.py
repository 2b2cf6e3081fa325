"""Documents that repeat one another, or an evaluation set: sketches of texts, and what is found by comparing them.

Near-duplicates are found by MinHash (Broder 1997; for language models Lee et al. 2021,
https://arxiv.org/abs/2107.06499): the share of equal numbers in two sketches estimates the Jaccard similarity of the
documents' sets of word n-grams, and only documents that share a band of numbers are compared. Evaluation texts are
found by the word 13-grams they share with a document (Brown et al. 2020, https://arxiv.org/abs/2005.14165, appendix C).
Case and punctuation count in neither.

Python's own `hash` differs from process to process; here everything is hashed alike in all of them. Substrings that
long documents share (the suffix array of Lee et al.) are left out: a document stays whole or goes.
"""

from __future__ import annotations

import importlib.util
import re
import zlib
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value
from numpy.lib.stride_tricks import sliding_window_view

from tuner.data.cache_key import map_batches
from tuner.errors import DataError

# Scripts without spaces between words: each character counts as a word, or a sentence would be one.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD = re.compile(f"[{UNSPACED}]|[^\\W{UNSPACED}]+")
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, 2^64 over the golden ratio (Knuth): spreads over all bits
SEED = 1
# What bands are chosen by: a pair that is missed costs nine times one that is compared in vain, which costs only time.
LSH_WEIGHTS = (0.1, 0.9)
MINHASH_SLICE = 4096  # n-grams at once: bounds the memory that a long document takes


def digest(text: str) -> bytes:
    """Sixteen bytes that two texts have in common when they differ in white space at most."""
    return blake2b(" ".join(text.split()).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def repeated(digests: list[bytes]) -> list[bool]:
    """Say of each digest whether it occurred before."""
    first: dict[bytes, int] = {}
    return [first.setdefault(value, row) != row for row, value in enumerate(digests)]


def word_hashes(text: str) -> np.ndarray:
    """Hashes of a text's words in lower case, without punctuation; uint64, shape `(words,)`."""
    words = WORD.findall(text.lower())
    return np.fromiter((zlib.crc32(word.encode()) for word in words), np.uint64, len(words))


def ngram_hashes(hashes: np.ndarray, n: int) -> np.ndarray:
    """Hashes of the n-grams of `hashes`; uint64, shape `(max(words - n + 1, 0),)`."""
    if len(hashes) < n:
        return hashes[:0]
    return sliding_window_view(hashes, n) @ np.cumprod(np.full(n, MULTIPLIER))


def held_out_ngrams(texts: Iterable[str], n: int) -> np.ndarray:
    """The word n-grams of evaluation texts: sorted hashes, each once. A DataError where no text has `n` words."""
    found = [ngram_hashes(word_hashes(text), n) for text in texts]
    ngrams = np.unique(np.concatenate(found)) if found else np.empty(0, np.uint64)
    if not len(ngrams):
        raise DataError(
            f"None of the {len(found)} held-out documents has {n} words, so none could be found in the corpus. "
            "Lower contamination_words (GPT-3 used 8 for its shortest sets), or give no held-out documents."
        )
    return ngrams


def sketch(
    texts: Dataset,
    permutations: int,
    shingle_words: int,
    held_out: np.ndarray | None,
    held_out_words: int,
    num_proc: int | None = None,
) -> Dataset:
    """Tokenise each document once, for both comparisons.

    Args:
        texts: documents in the column `text`.
        permutations: numbers in a sketch; 0 makes none.
        shingle_words: n of the n-grams that are compared; a shorter document is one n-gram.
        held_out: as `held_out_ngrams` gives them, of `held_out_words` words.

    Returns:
        Rows of `signature`, 4 bytes a permutation, empty for a document without words; and `shared`, the positions in
        `held_out` of the n-grams that the document contains.
    """
    how = {"permutations": permutations, "shingle_words": shingle_words}
    return map_batches(
        texts.select_columns(["text"]),
        _sketch_batch,
        [__file__],
        {**how, "held_out": held_out, "held_out_words": held_out_words},
        num_proc=num_proc,
        remove_columns=["text"],
        features=Features({"signature": Value("binary"), "shared": List(Value("int64"))}),
        desc="Sketching documents",
    )


def find_near_duplicates(sketches: Dataset, similarity: float, permutations: int) -> list[bool]:
    """Say of each document whether an earlier one that stays is at least `similarity` alike.

    Args:
        sketches: of the whole corpus, as `sketch` gives them.
        similarity: estimated Jaccard similarity; with 128 permutations its standard error is 0.035 at 0.8.

    Returns:
        A document is compared with those that stay, not with those that go: in a chain of documents that differ more
        and more from its first, not all go for the first one's sake.
    """
    if not len(sketches):
        return []
    # One batch and one process, for what came before decides; a map all the same, for its cache.
    how = {"similarity": similarity, "permutations": permutations}
    options = {"batch_size": None, "remove_columns": ["signature"], "desc": "Comparing documents"}
    found = map_batches(sketches.select_columns(["signature"]), _near_duplicates, [__file__], how, **options)
    return list(found["near_duplicate"])


def contaminated(shared: list[list[int]], max_documents: int | None) -> list[bool]:
    """Say of each document whether it shares an n-gram with the evaluation set.

    Args:
        shared: of each document, as `sketch_batch` gives it.
        max_documents: n-grams in more documents than this are common property (licences, idioms) and do not count.
    """
    if max_documents is None:
        return [bool(found) for found in shared]
    flat = np.concatenate([np.asarray(found, np.int64) for found in shared]) if shared else np.empty(0, np.int64)
    documents = np.bincount(flat)
    return [bool(found) and bool((documents[found] <= max_documents).any()) for found in shared]


def require_datasketch() -> None:
    """Raise a DataError when the library that finds near-duplicates is not installed."""
    if importlib.util.find_spec("datasketch") is None:
        raise DataError("Near-duplicates are found by the package datasketch: pip install 'tuner[pretrain]'.")


def _minhash(permutations: int) -> Any:
    from datasketch import MinHash

    return MinHash(num_perm=permutations, seed=SEED, hashfunc=lambda value: value)


def _positions(ngrams: np.ndarray, known: np.ndarray) -> list[int]:
    at = np.minimum(np.searchsorted(known, ngrams), len(known) - 1)
    return np.unique(at[known[at] == ngrams]).tolist()


def _sketch_batch(
    batch: dict[str, list[Any]],
    permutations: int,
    shingle_words: int,
    held_out: np.ndarray | None,
    held_out_words: int,
) -> dict[str, list[Any]]:
    fresh = _minhash(permutations) if permutations else None
    signatures, shared = [], []
    for text in batch["text"]:
        hashes = word_hashes(text)
        signature = b""
        if fresh is not None and len(hashes):
            minhash = fresh.copy()  # shares the permutations, which take longer to draw than a sketch
            # 32 bits is what MinHash takes; the upper ones depend on all of the lower.
            shingles = (ngram_hashes(hashes, min(shingle_words, len(hashes))) >> np.uint64(32)).tolist()
            for start in range(0, len(shingles), MINHASH_SLICE):
                minhash.update_batch(shingles[start : start + MINHASH_SLICE])
            signature = minhash.hashvalues.astype(np.uint32).tobytes()
        signatures.append(signature)
        shared.append(_positions(ngram_hashes(hashes, held_out_words), held_out) if held_out is not None else [])
    return {"signature": signatures, "shared": shared}


def _near_duplicates(batch: dict[str, list[Any]], similarity: float, permutations: int) -> dict[str, list[bool]]:
    from datasketch import MinHashLSH

    blank = bytes(4 * permutations)
    table = np.frombuffer(b"".join(s or blank for s in batch["signature"]), np.uint32).reshape(-1, permutations)
    # Below 1: at 1 a single band would be chosen, which datasketch refuses.
    index = MinHashLSH(threshold=min(similarity, 0.95), num_perm=permutations, weights=LSH_WEIGHTS)
    probe = _minhash(permutations)
    verdicts = []
    for row, signature in enumerate(batch["signature"]):
        alike = False
        if signature:
            probe.hashvalues = table[row]
            candidates = index.query(probe)
            alike = bool(candidates) and bool(((table[candidates] == table[row]).mean(axis=1) >= similarity).any())
            if not alike:
                index.insert(row, probe, check_duplication=False)
        verdicts.append(alike)
    return {"near_duplicate": verdicts}
