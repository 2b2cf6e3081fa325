"""The n-gram model is the textbook's, its probabilities sum to 1, and real text is predicted better by longer ones."""

from collections import Counter, defaultdict
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.text import samples
from tuner.evaluation.baselines.ngrams import KneserNey, MaskedBigram

VOCAB = 5
BEGIN = "<s>"
SEQUENCES = st.lists(st.lists(st.integers(0, VOCAB - 1), max_size=12), min_size=1, max_size=8).filter(any)
EXAMPLES = settings(derandomize=True, database=None, deadline=None, max_examples=100)


class Textbook:
    """Modified interpolated Kneser-Ney as its formulas read, one n-gram at a time."""

    def __init__(self, sequences, vocab_size, order):
        self.vocab_size, self.order = vocab_size, order
        raw, before = Counter(), defaultdict(set)
        for sequence in sequences:
            padded = (BEGIN, *sequence)
            for end in range(1, len(padded)):
                for start in range(max(0, end - order + 1), end + 1):
                    raw[padded[start : end + 1]] += 1
                    if start:
                        before[padded[start : end + 1]].add(padded[start - 1])
        self.counts = {g: n if len(g) == order or g[0] == BEGIN else len(before[g]) for g, n in raw.items()}
        self.followers = defaultdict(dict)
        for g, n in self.counts.items():
            self.followers[g[:-1]][g[-1]] = n
        self.discounts = [self.discounts_of(length) for length in range(1, order + 1)]
        self.sums = {context: self.sums_of(context) for context in self.followers}

    def discounts_of(self, length):
        n = Counter(count for g, count in self.counts.items() if len(g) == length)
        if all(n[k] for k in (1, 2, 3, 4)):
            y = n[1] / (n[1] + 2 * n[2])
            d = {k: k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3)}
            if all(0 < d[k] <= k for k in d):
                return d
        return {1: 0.5, 2: 1.0, 3: 1.5}

    def sums_of(self, context):
        """The count of what follows a context, and what the discounts take of it."""
        counts, discount = self.followers[context].values(), self.discounts[len(context)]
        return sum(counts), sum(discount[min(n, 3)] for n in counts)

    def probability(self, token, context):
        context = tuple(context)[-(self.order - 1) :] if self.order > 1 else ()
        lower = self.probability(token, context[1:]) if context else 1 / self.vocab_size
        if context not in self.followers:
            return lower
        total, taken = self.sums[context]
        count = self.followers[context].get(token, 0)
        seen = (count - self.discounts[len(context)][min(count, 3)]) / total if count else 0.0
        return seen + taken / total * lower

    def probabilities(self, sequence):
        padded = (BEGIN, *sequence)
        return [self.probability(padded[i], padded[:i]) for i in range(1, len(padded))]


def following(model, context, vocab_size):
    """Probability of every token after a context."""
    return np.exp([model.log_probabilities([*context, w])[-1] for w in range(vocab_size)])


@cache
def real():
    """Token ids of 150 real conversations to count, of 30 others to predict, and the bytes of these."""
    texts = ["\n".join(turn["content"] for turn in c) for c in samples.chitchat()[:180]["messages"]]
    ids = [np.array(row) for row in samples.small()(texts, verbose=False)["input_ids"]]
    return ids[:150], ids[150:], sum(len(text.encode()) for text in texts[150:])


@cache
def real_model(order):
    return KneserNey(real()[0], 1000, order)


def nats(model, sequences):
    return -sum(model.log_probabilities(s).sum() for s in sequences)


@EXAMPLES
@given(SEQUENCES, st.lists(st.integers(0, VOCAB - 1), max_size=8), st.integers(1, 4))
def test_it_is_the_textbooks(sequences, held_out, order):
    ours = np.exp(KneserNey(sequences, VOCAB, order).log_probabilities(held_out))
    assert ours == pytest.approx(Textbook(sequences, VOCAB, order).probabilities(held_out), rel=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_it_is_the_textbooks_on_real_text(order):
    """With counts of counts that give discounts of their own, which small examples seldom have."""
    book = Textbook(real()[0][:80], 1000, order)
    assert {1: 0.5, 2: 1.0, 3: 1.5} not in book.discounts
    model = KneserNey(real()[0][:80], 1000, order)
    for held_out in real()[1][:2]:
        assert np.exp(model.log_probabilities(held_out)) == pytest.approx(book.probabilities(held_out), rel=1e-11)


def test_a_bigram_by_hand():
    # Bigrams: <s> 0, 0 1, 1 0, 0 1 (raw counts 1, 2, 1; too few for discounts of their own: 0.5, 1, 1.5).
    # Unigrams by what stands before them: 0 has <s> and 1, 1 has 0, so counts 2 and 1.
    model = KneserNey([[0, 1, 0, 1]], 3, 2)
    unigram = [(2 - 1) / 3 + 1.5 / 3 / 3, (1 - 0.5) / 3 + 1.5 / 3 / 3, 1.5 / 3 / 3]
    assert model.unigrams == pytest.approx(unigram)
    assert following(model, [0], 3) == pytest.approx([0.5 * u + s for u, s in zip(unigram, [0, 0.5, 0], strict=True)])
    assert following(model, [2], 3) == pytest.approx(unigram)


@EXAMPLES
@given(SEQUENCES, st.lists(st.integers(0, VOCAB - 1), max_size=6), st.integers(1, 6))
def test_probabilities_sum_to_one(sequences, context, order):
    after = following(KneserNey(sequences, VOCAB, order), context, VOCAB)
    assert (after > 0).all()
    assert after.sum() == pytest.approx(1.0, abs=1e-12)


def test_probabilities_sum_to_one_on_real_text():
    model = real_model(5)
    assert model.unigrams.sum() == pytest.approx(1.0, abs=1e-12)
    seen, strange = real()[0][7][:30], [999, 998, 3, 997, 996]
    for context in ([], seen[:1], seen[:4], seen, [*seen, *strange], strange):
        assert following(model, context, 1000).sum() == pytest.approx(1.0, abs=1e-10)


def test_contexts_never_seen_fall_back():
    """A token of the vocabulary that is in no text: what follows is what follows nothing in particular."""
    model = KneserNey([[0, 1, 2, 0, 1], [1, 0, 2, 2]], 5, 4)
    assert following(model, [0, 4], 5) == pytest.approx(model.unigrams)
    # With a known token after it, the context is that token alone, not at a beginning.
    assert following(model, [4, 0], 5) == pytest.approx(following(model, [4, 4, 4, 0], 5))
    assert following(model, [4, 0], 5) != pytest.approx(following(model, [0], 5))


def test_sequences_do_not_see_each_other():
    apart, together = KneserNey([[0, 1], [2, 3]], 4, 3), KneserNey([[0, 1, 2, 3]], 4, 3)
    assert following(apart, [1], 4)[2] < following(together, [1], 4)[2]
    assert following(apart, [], 4)[2] > following(together, [], 4)[2]
    # The order of the sequences means nothing.
    turned = KneserNey([[2, 3], [0, 1]], 4, 3)
    assert np.array_equal(turned.log_probabilities([3, 0, 1, 2]), apart.log_probabilities([3, 0, 1, 2]))


def test_probabilities_look_back_no_further_than_the_order_and_never_ahead():
    model, text = real_model(3), real()[1][0][:50]
    whole = model.log_probabilities(text)
    assert np.array_equal(whole[:20], model.log_probabilities(text[:20]))
    assert np.array_equal(whole[12:], model.log_probabilities(text[10:])[2:])
    assert not np.array_equal(whole[10:12], model.log_probabilities(text[10:])[:2])


def test_longer_contexts_predict_real_text_better():
    losses = [nats(real_model(order), real()[1]) for order in (1, 2, 3, 5)]
    assert losses[1] < 0.8 * losses[0]
    assert losses[2] < 0.98 * losses[1]
    assert losses[3] < losses[2]
    # What was counted is predicted better than what was not.
    tokens = [sum(map(len, part)) for part in real()[:2]]
    assert nats(real_model(5), real()[0]) / tokens[0] < 0.5 * losses[3] / tokens[1]


def test_the_smoothing_beats_adding_one():
    """On the same bigrams, so the gain is Kneser and Ney's."""
    train, held_out, _ = real()
    pairs = np.zeros((1001, 1000))
    for s in train:
        np.add.at(pairs, (np.append(1000, s)[:-1], s), 1)
    laplace = np.log((pairs + 1) / (pairs + 1).sum(1, keepdims=True))
    adding = -sum(laplace[np.append(1000, s)[:-1], s].sum() for s in held_out)
    assert nats(real_model(2), held_out) < 0.9 * adding


def test_sequences_of_any_kind():
    expected = KneserNey([[0, 1, 2], [2, 1]], 3).log_probabilities([2, 1, 0])
    kinds = (np.array([0, 1, 2], np.uint16), np.array([2, 1], np.int32))
    assert np.array_equal(KneserNey(iter(kinds), 3).log_probabilities(np.array([2, 1, 0], np.uint8)), expected)
    assert KneserNey([[], [0, 1]], 2).log_probabilities([]).shape == (0,)


def test_a_large_vocabulary_does_not_overflow():
    """Four tokens of 200,000 would not fit 64 bits side by side."""
    sequences = [[199_999, 199_998, 199_997, 199_996, 199_999], [0, 199_998, 199_997, 199_996]]
    model, book = KneserNey(sequences, 200_000), Textbook(sequences, 200_000, 5)
    for sequence in (*sequences, [199_998, 199_997, 0, 199_997, 199_996, 199_999]):
        assert np.exp(model.log_probabilities(sequence)) == pytest.approx(book.probabilities(sequence), rel=1e-12)


def check_gaps(sequences, vocab_size, sequence, masked, found):
    """Each token found has the greatest P(w | left) P(right | w) of all, by the textbook; None is a side left out."""
    book = Textbook(sequences, vocab_size, 2)
    frequency = Counter(w for s in sequences for w in s)

    def score(w, left, right):
        first = frequency[w] / frequency.total() if left is None else book.probability(w, (left,))
        return first if right is None else first * book.probability(right, (w,))

    visible = [None if m else w for w, m in zip(sequence, masked, strict=True)]
    for gap, token in zip(np.flatnonzero(masked), found, strict=True):
        left = visible[gap - 1] if gap else BEGIN
        right = visible[gap + 1] if gap + 1 < len(sequence) else None
        scores = np.array([score(w, left, right) for w in range(vocab_size)])
        # Of tokens that score alike, sums in another order may rank another first.
        assert scores[token] == pytest.approx(scores.max(), rel=1e-12), (left, right)


@EXAMPLES
@given(SEQUENCES, st.lists(st.tuples(st.integers(0, VOCAB - 1), st.booleans()), min_size=1, max_size=10))
def test_gaps_are_filled_with_the_best_token(sequences, places):
    sequence, masked = (list(column) for column in zip(*places, strict=True))
    found = MaskedBigram(sequences, VOCAB).predict(sequence, masked)
    assert found.shape == (sum(masked),)
    check_gaps(sequences, VOCAB, sequence, masked, found)


def test_gaps_in_real_text_are_filled_with_the_best_token():
    train, text = real()[0][:40], real()[1][1][:30]
    masked = np.random.default_rng(0).random(30) < 0.4
    assert (masked[1:] & masked[:-1]).any() and not masked.all()  # neighbours that are hidden too
    check_gaps(train, 1000, text.tolist(), masked.tolist(), MaskedBigram(train, 1000).predict(text, masked))


def test_each_side_is_used_alone():
    model = MaskedBigram([[0, 1, 2], [0, 1, 2], [3, 4, 5], [2, 2]], 6)
    hidden = [False, True, False]
    assert model.predict([0, 9, 2], hidden).tolist() == [1]
    assert model.predict([0, 9, 9], [False, True, True]).tolist()[0] == 1  # the left alone
    assert model.predict([9, 9, 5], [True, True, False]).tolist()[1] == 4  # the right alone
    assert model.predict([9, 9, 9], [True] * 3).tolist()[1:] == [2, 2]  # neither: the most frequent
    assert model.predict([9], [True]).tolist() == [0]  # what begins a sequence most often


def test_what_is_hidden_is_not_looked_at():
    model, text = MaskedBigram(real()[0], 1000), real()[1][1]
    masked = np.random.default_rng(1).random(len(text)) < 0.15
    found = model.predict(text, masked)
    for instead in (-100, 10**9):
        assert np.array_equal(model.predict(np.where(masked, instead, text), masked), found)
    assert model.predict(text, np.zeros(len(text), bool)).shape == (0,)


def test_gaps_in_real_text_are_guessed_better_the_more_is_seen():
    train, held_out, _ = real()
    model, top = MaskedBigram(train, 1000), np.bincount(np.concatenate(train)).argmax()
    rng, hits, seen = np.random.default_rng(0), [], []
    for s in held_out:
        masked = rng.random(len(s)) < 0.5
        around = np.convolve(~masked, [1, 0, 1], "same")
        hits.append(model.predict(s, masked) == s[masked])
        seen.append(around[masked])
    hits, seen = np.concatenate(hits), np.concatenate(seen)
    neither, one, both = (hits[seen == k].mean() for k in range(3))
    assert both > 1.2 * one > 1.2 * neither
    inside = np.concatenate(held_out) == top
    assert both > 3 * inside.mean()
