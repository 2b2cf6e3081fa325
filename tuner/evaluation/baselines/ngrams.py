"""What counting alone predicts: the baselines that a pretrained model must beat.

`KneserNey` for a model that reads from left to right, `MaskedBigram` for one that fills gaps. Both count the ids that
the model itself is trained on, so that the figures differ by the model and by nothing else. Left out: pruning and
files. A fit takes seconds and is repeated when it is needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

Ids = np.ndarray | list[int]

# Discounts of an order whose counts of counts give none: those of KenLM's `lmplz --discount_fallback`.
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)
HIDDEN = -1
# Scores held at once: 4 million float64 are 32 MB.
CELLS = 4_000_000


def bits_per_byte(total_nats: float, total_bytes: int) -> float:
    """Bits for each byte of UTF-8 text: comparable across tokenizers, as perplexity a token is not."""
    return _per_byte(total_nats, total_bytes) / math.log(2)


def perplexity_per_byte(total_nats: float, total_bytes: int) -> float:
    """exp(nats / bytes): among how many equally likely bytes the model has to guess, on the (geometric) average."""
    return math.exp(_per_byte(total_nats, total_bytes))


def _per_byte(total_nats: float, total_bytes: int) -> float:
    if total_bytes <= 0:
        raise ValueError(f"{total_bytes} bytes of text: there is nothing to share {total_nats} nats among.")
    return total_nats / total_bytes


class KneserNey:
    """Interpolated Kneser-Ney with modified discounts (Kneser & Ney 1995; Chen & Goodman 1999, their "modified KN").

    For a context h, and h' that is h without its first token:

        P(w | h) = (c(h w) - D(c(h w))) / c(h .) + gamma(h) P(w | h')
        gamma(h) = (D(1) N1(h .) + D(2) N2(h .) + D(3) N3+(h .)) / c(h .)

    Nk(h .) is the number of tokens seen k times after h. Under a context that was never seen, P(w | h) is P(w | h').
    Below the unigrams lies the uniform distribution, so that every token is possible.

    c is the raw count in the highest order. In a lower one it is the number of distinct tokens seen before the n-gram;
    but the raw count for an n-gram that opens a sequence, since nothing can stand before it (Heafield et al. 2013,
    https://aclanthology.org/P13-2121). Each order has three discounts, from the number n_k of its n-grams with c = k:

        Y = n1 / (n1 + 2 n2)     D(1) = 1 - 2Y n2/n1     D(2) = 2 - 3Y n3/n2     D(3 and more) = 3 - 4Y n4/n3

    An order too small for that (an n_k of 0, or a discount outside of 0 < D(k) <= k) takes `FALLBACK_DISCOUNTS`.

    An n-gram's id is its rank among the pairs (id of the n-gram one shorter, last token): one integer however long the
    n-gram, for any vocabulary.
    """

    def __init__(self, unigrams: np.ndarray, tables: list[_Table]):
        self.unigrams = unigrams  # (vocab_size,) probabilities
        self.tables = tables  # of order 2 and up

    @classmethod
    def fit(cls, sequences: Iterable[Ids], vocab_size: int, order: int = 5) -> KneserNey:
        """Count the n-grams of up to `order` tokens, none across two sequences.

        Args:
            sequences: token ids. What should be predicted at the end must be there: no end symbol is added.

        Raises:
            ValueError: no tokens at all, an id outside of the vocabulary, or an order below 1.
        """
        if order < 1:
            raise ValueError(f"order is {order}; a unigram model, of order 1, is the smallest.")
        tokens, places = _with_begin(sequences, vocab_size)
        base = vocab_size + 1
        keys, counts = [np.arange(base)], [np.bincount(tokens, minlength=base)]
        ids = tokens  # of the n-gram that ends here
        for length in range(2, order + 1):
            at = np.flatnonzero(places >= length - 1)
            found, first, inverse, raw = np.unique(
                ids[at - 1] * base + tokens[at], return_index=True, return_inverse=True, return_counts=True
            )
            # Each distinct n-gram is one token before the n-gram that it ends with.
            before = np.bincount(ids[at[first]], minlength=len(counts[-1]))
            counts[-1] = np.where(before > 0, before, counts[-1])
            keys.append(found)
            counts.append(raw)
            ids = np.full(len(tokens), -1)
            ids[at] = inverse
        # The begin symbol is a context and never predicted.
        weights, backoff = _discounted(counts[0][:vocab_size], np.zeros(vocab_size, np.int64), 1)
        tables = []
        for shorter, longer, count in zip(keys, keys[1:], counts[1:], strict=False):
            # One context more than there are: the unseen one.
            discounted, freed = _discounted(count, longer // base, len(shorter) + 1)
            tables.append(_Table(np.append(longer, np.iinfo(np.int64).max), np.append(discounted, 0.0), freed))
        return cls(weights + backoff / vocab_size, tables)

    def log_probabilities(self, sequence: Ids) -> np.ndarray:
        """Of each token of a sequence after the begin symbol and those before it, in nats: (time,) float64.

        Raises:
            ValueError: an id outside of the vocabulary.
        """
        vocab_size = len(self.unigrams)
        tokens = _checked(sequence, vocab_size)
        probabilities = self.unigrams[tokens]
        contexts = np.append(vocab_size, tokens)[:-1]
        for table in self.tables:
            wanted = contexts * (vocab_size + 1) + tokens
            rank = np.searchsorted(table.keys, wanted)
            unseen = len(table.keys) - 1
            ids = np.where(table.keys[rank] == wanted, rank, unseen)
            probabilities = table.weights[ids] + table.backoff[contexts] * probabilities
            contexts = np.append(unseen, ids)[:-1]  # no longer n-gram ends at the begin symbol
        return np.log(probabilities)


class _Table(NamedTuple):
    """The n-grams of one order. The last entry, which no key can equal, is the n-gram that was never seen."""

    keys: np.ndarray  # sorted: id of the context * (vocab_size + 1) + token
    weights: np.ndarray  # discounted share of the context's count
    backoff: np.ndarray  # gamma, by the id of the context


class MaskedBigram:
    """Fills a gap with the token w that makes P(w | left) P(right | w) greatest, as a bigram model of both sides does.

    P is `KneserNey` of order 2. On 24,000 gaps in held-out conversations (`builtin:chitchat`, 4,096 tokens, 15 %
    hidden) it finds 30.6 %; absolute discounting that backs off to plain frequencies 30.4 %, add-one (Laplace) 29.0 %
    and add-0.01 30.2 %.

    A side that is hidden too, or beyond the end, is left out: P(w) P(right | w) with the plain frequency P(w), or
    P(w | left), or P(w). Before the first token stands the begin symbol, which is known.
    """

    def __init__(self, bigrams: KneserNey, frequencies: np.ndarray):
        self.unigrams, self.frequencies = bigrams.unigrams, frequencies
        table, base = bigrams.tables[0], len(frequencies) + 1
        self.backoff = table.backoff
        # The pairs by the token that stands left, and by the one that stands right.
        left, right = np.divmod(table.keys[:-1], base)
        order = np.lexsort((left, right))
        self.after = table.keys, table.weights
        self.before = (right * base + left)[order], table.weights[order]

    @classmethod
    def fit(cls, sequences: Iterable[Ids], vocab_size: int) -> MaskedBigram:
        """Count pairs of neighbours.

        Raises:
            ValueError: no tokens at all, or an id outside of the vocabulary.
        """
        kept = list(sequences)
        bigrams = KneserNey.fit(kept, vocab_size, order=2)
        counts = np.bincount(np.concatenate([_checked(s, vocab_size) for s in kept]), minlength=vocab_size)
        return cls(bigrams, counts / counts.sum())

    def predict(self, sequence: Ids, masked: np.ndarray | list[bool]) -> np.ndarray:
        """The likeliest token for each gap; of equally likely ones that with the lowest id.

        Args:
            sequence: (time,) token ids. Those under the mask are not looked at and may be anything.
            masked: (time,) true where a token is hidden.

        Returns:
            (number of gaps,) token ids, from left to right.

        Raises:
            ValueError: a mask of another shape or type, or a visible id outside of the vocabulary.
        """
        given, hidden = np.asarray(sequence), np.asarray(masked)
        if hidden.shape != given.shape or (hidden.size and hidden.dtype != bool):
            raise ValueError(f"masked is {hidden.dtype}{hidden.shape}; it must be bool{given.shape}, as the sequence.")
        gaps = np.flatnonzero(hidden)
        visible = _checked(np.where(hidden, given.dtype.type(0), given), len(self.unigrams))
        visible = np.where(hidden, HIDDEN, visible)
        left = np.append(len(self.unigrams), visible)[gaps]
        right = np.append(visible, HIDDEN)[gaps + 1]
        step = max(1, CELLS // len(self.unigrams))
        best = [self._scores(left[i : i + step], right[i : i + step]).argmax(1) for i in range(0, len(gaps), step)]
        return np.concatenate([np.zeros(0, np.int64), *best])

    def _scores(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """P(w | left) P(right | w) for all w: (number of gaps, vocab_size)."""
        from_left = self.backoff[left][:, None] * self.unigrams
        _add_pairs(from_left, left, *self.after)
        from_left[left == HIDDEN] = self.frequencies
        from_right = self.backoff[: len(self.unigrams)] * self.unigrams[right][:, None]
        _add_pairs(from_right, right, *self.before)
        from_right[right == HIDDEN] = 1.0
        return from_left * from_right


def _add_pairs(scores: np.ndarray, firsts: np.ndarray, keys: np.ndarray, weights: np.ndarray) -> None:
    """Add to `scores[i]` the weight of each pair (`firsts[i]`, token); nothing where `firsts[i]` is `HIDDEN`.

    Pairs with the begin symbol are left out: a gap is never filled with it.
    """
    vocab_size = scores.shape[1]
    for i in np.flatnonzero(firsts != HIDDEN):
        start = firsts[i] * (vocab_size + 1)
        pairs = slice(*np.searchsorted(keys, (start, start + vocab_size)))
        scores[i, keys[pairs] - start] += weights[pairs]


def most_frequent_token(sequences: Iterable[Ids]) -> int:
    """The id that occurs most often; of equally frequent ones the lowest.

    Raises:
        ValueError: no tokens at all, or a negative id.
    """
    tokens = np.concatenate([np.zeros(0, np.int64), *(_checked(s, None) for s in sequences)])
    if not len(tokens):
        raise ValueError("There are no tokens to count.")
    return int(np.bincount(tokens).argmax())


def _discounted(counts: np.ndarray, contexts: np.ndarray, num_contexts: int) -> tuple[np.ndarray, np.ndarray]:
    """Each n-gram's share of its context after the discount, and each context's gamma (1 when it was never seen)."""
    taken = np.array([0.0, *_discounts(counts)])[np.minimum(counts, 3)]
    total = np.bincount(contexts, counts, num_contexts)
    freed = np.bincount(contexts, taken, num_contexts)
    backoff = np.divide(freed, total, out=np.ones(num_contexts), where=total > 0)
    return (counts - taken) / total[contexts], backoff


def _discounts(counts: np.ndarray) -> tuple[float, float, float]:
    n1, n2, n3, n4 = (int((counts == k).sum()) for k in (1, 2, 3, 4))
    if min(n1, n2, n3, n4) == 0:
        return FALLBACK_DISCOUNTS
    y = n1 / (n1 + 2 * n2)
    found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    return found if all(0 < d <= k for k, d in enumerate(found, 1)) else FALLBACK_DISCOUNTS


def _with_begin(sequences: Iterable[Ids], vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """All sequences in one array, the begin symbol `vocab_size` before each, and each token's place in its own."""
    parts = [_checked(sequence, vocab_size) for sequence in sequences]
    if not any(len(part) for part in parts):
        raise ValueError("There are no tokens to count.")
    begin = np.array([vocab_size])
    tokens = np.concatenate([piece for part in parts for piece in (begin, part)])
    lengths = np.array([len(part) + 1 for part in parts])
    return tokens, np.arange(len(tokens)) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _checked(sequence: Ids, vocab_size: int | None) -> np.ndarray:
    ids = np.asarray(sequence)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise ValueError(f"A sequence must be one row of integer ids; found {ids.dtype}{ids.shape}.")
    if ids.size and (ids.min() < 0 or (vocab_size is not None and ids.max() >= vocab_size)):
        limit = "of 0 or more" if vocab_size is None else f"from 0 to {vocab_size - 1}"
        raise ValueError(f"Token ids run from {ids.min()} to {ids.max()}; expected ids {limit}.")
    return ids.astype(np.int64, copy=False)
