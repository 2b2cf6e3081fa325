"""What counting alone predicts: the baselines that a pretrained model must beat.

`KneserNey` for a model that reads from left to right, `MaskedBigram` for one that fills gaps. Both count the ids that
the model itself is trained on, so that the figures differ by the model and by nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from datasets import Dataset

from tuner.data.collate import IGNORED

Ids = np.ndarray | list[int]

# Training text, in bytes, above which no baseline is fitted: it would take longer than it tells.
LARGEST = 20_000_000
# Discounts of an order whose counts of counts give none: those of KenLM's `lmplz --discount_fallback`.
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)
HIDDEN = -1


def is_small(rows: Dataset) -> bool:
    """Whether the training text is small enough to fit a baseline to it; says so where it is not."""
    if rows.data.nbytes <= LARGEST:
        return True
    print(f"No baseline: the training text has {rows.data.nbytes / 1e6:,.0f} MB, more than {LARGEST / 1e6:,.0f}.")
    return False


def unigram_loss(train: Dataset, held_out: Dataset, vocab_size: int) -> float:
    """Mean negative log-likelihood, in nats a token, of a model that knows only how frequent each answer token is in
    the supervised training tokens, plus one each (Laplace), so that no token is impossible."""
    counts = np.bincount(_supervised(train), minlength=vocab_size) + 1.0
    return float(-np.log(counts / counts.sum())[_supervised(held_out)].mean())


def _supervised(rows: Dataset) -> np.ndarray:
    labels = rows.with_format("arrow")[:]["labels"].combine_chunks().flatten().to_numpy()
    return labels[labels != IGNORED]


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

    Before each sequence of token ids stands a begin symbol, `vocab_size`, which is never predicted; no end symbol is
    added. An n-gram's id is its rank among the pairs (id of the n-gram one shorter, last token): one integer however
    long the n-gram, for any vocabulary.
    """

    def __init__(self, sequences: Iterable[Ids], vocab_size: int, order: int = 5):
        parts = [np.append(vocab_size, sequence).astype(np.int64) for sequence in sequences]
        tokens = np.concatenate(parts)
        places = np.concatenate([np.arange(len(part)) for part in parts])
        base = vocab_size + 1
        keys, counts = [np.arange(base)], [np.bincount(tokens, minlength=base)]
        self.frequencies = counts[0][:vocab_size] / counts[0][:vocab_size].sum()
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
        weights, backoff = _discounted(counts[0][:vocab_size], np.zeros(vocab_size, np.int64), 1)
        self.unigrams = weights + backoff / vocab_size  # (vocab_size,) probabilities
        # Of each order from 2 up: keys (id of the context * base + token, sorted), their discounted shares of the
        # context's count, and gamma by the id of the context. The last of each is for what was never seen.
        self.tables: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for shorter, longer, count in zip(keys, keys[1:], counts[1:], strict=False):
            weights, backoff = _discounted(count, longer // base, len(shorter) + 1)
            self.tables.append((np.append(longer, np.iinfo(np.int64).max), np.append(weights, 0.0), backoff))

    def log_probabilities(self, sequence: Ids) -> np.ndarray:
        """Of each token of a sequence after the begin symbol and those before it, in nats: (time,) float64."""
        begin = len(self.unigrams)
        tokens = np.asarray(sequence, np.int64)
        probabilities = self.unigrams[tokens]
        contexts = np.append(begin, tokens)[:-1]
        for keys, weights, backoff in self.tables:
            wanted = contexts * (begin + 1) + tokens
            rank, unseen = np.searchsorted(keys, wanted), len(keys) - 1
            ids = np.where(keys[rank] == wanted, rank, unseen)
            probabilities = weights[ids] + backoff[contexts] * probabilities
            contexts = np.append(unseen, ids)[:-1]  # no longer n-gram ends at the begin symbol
        return np.log(probabilities)


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


class MaskedBigram:
    """Fills a gap with the token w that makes P(w | left) P(right | w) greatest, as a bigram model of both sides does.

    P is `KneserNey` of order 2. On 24,000 gaps in held-out conversations (`builtin:chitchat`, 4,096 tokens, 15 %
    hidden) it finds 30.6 %; absolute discounting that backs off to plain frequencies 30.4 %, add-one (Laplace) 29.0 %
    and add-0.01 30.2 %.

    A side that is hidden too, or beyond the end, is left out: P(w) P(right | w) with the plain frequency P(w), or
    P(w | left), or P(w). Before the first token stands the begin symbol, which is known.
    """

    def __init__(self, sequences: Iterable[Ids], vocab_size: int):
        bigrams = KneserNey(sequences, vocab_size, order=2)
        self.frequencies, self.unigrams = bigrams.frequencies, bigrams.unigrams
        keys, weights, self.backoff = bigrams.tables[0]
        # The pairs by the token that stands left, and by the one that stands right; none with an unseen one.
        left, right = np.divmod(keys[:-1], vocab_size + 1)
        order = np.lexsort((left, right))
        self.after = keys[:-1], weights
        self.before = (right * (vocab_size + 1) + left)[order], weights[order]

    def predict(self, sequence: Ids, masked: np.ndarray) -> np.ndarray:
        """The likeliest token for each gap, where `masked` (time,) is true, from left to right; of equally likely ones
        that with the lowest id. Tokens under the mask are not looked at and may be anything."""
        visible = [len(self.unigrams), *np.where(masked, HIDDEN, sequence), HIDDEN]
        gaps = np.flatnonzero(masked)
        return np.array([self._scores(visible[gap], visible[gap + 2]).argmax() for gap in gaps], np.int64)

    def _scores(self, left: int, right: int) -> np.ndarray:
        """P(w | left) P(right | w) for all w: (vocab_size,)."""
        vocab_size = len(self.unigrams)
        from_left, from_right = self.frequencies, np.ones(vocab_size)
        if left != HIDDEN:
            from_left = _with_pairs(self.backoff[left] * self.unigrams, left, *self.after)
        if right != HIDDEN:
            from_right = _with_pairs(self.backoff[:vocab_size] * self.unigrams[right], right, *self.before)
        return from_left * from_right


def _with_pairs(scores: np.ndarray, first: int, keys: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`scores` with the weight of each pair (`first`, token) added, but those with the begin symbol: no gap's token."""
    start = first * (len(scores) + 1)
    pairs = slice(*np.searchsorted(keys, (start, start + len(scores))))
    scores[keys[pairs] - start] += weights[pairs]
    return scores
