"""What is hidden: how much, where, by what; and that the text can be had back."""

from collections import Counter
from functools import cache

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.text import samples
from tuner.corpus.corrupt import IGNORED, corrupt_spans, infill, mask_tokens, word_continuations
from tuner.text.train_tokenizer import train_tokenizer

VOCAB, SPECIALS, MASK = 200, 6, 4
SPECIAL = np.arange(VOCAB) < SPECIALS
SENTINELS = np.arange(1000, 1100)
seeded = settings(derandomize=True, database=None, deadline=None, max_examples=100)
seeds = st.integers(0, 2**32 - 1)


def rng(seed=0):
    return np.random.default_rng(seed)


@cache
def tokenizer(algorithm):
    """`ours` has no mask and no unknown token."""
    kind, objective = ("bpe", "clm") if algorithm == "ours" else (algorithm, "mlm")
    return train_tokenizer(samples.texts()[:400], kind, 700, objective)


# ---- masked tokens ----


@seeded
@given(st.lists(st.integers(0, 40), max_size=80), seeds, st.sampled_from([0.0, 0.01, 0.15, 0.5, 1.0]), st.booleans())
@example([], 0, 0.15, True)
@example([0, 3, 2], 0, 0.15, True)
@example([9], 0, 0.15, True)
@example([3, 9, 3], 0, 0.15, True)
def test_labels_are_what_was_chosen_and_the_rest_stays(ids, seed, share, by_word):
    ids = np.array(ids, dtype=np.int64)
    continues = (np.arange(VOCAB) % 3 == 0) & ~SPECIAL if by_word else None
    before = ids.copy()
    hidden, labels = mask_tokens(ids, rng(seed), SPECIAL, MASK, share, continues)
    chosen, able = labels != IGNORED, ids >= SPECIALS
    assert (ids == before).all() and hidden.dtype == labels.dtype == ids.dtype
    assert (labels[chosen] == ids[chosen]).all() and (hidden[~chosen] == ids[~chosen]).all()
    assert not (chosen & ~able).any()
    assert all(token == MASK or token >= SPECIALS for token in hidden[chosen])
    wanted = max(round(share * able.sum()), 1) if able.any() else 0
    assert chosen.sum() >= wanted if by_word else chosen.sum() == wanted


def test_eighty_percent_masks_ten_percent_random_ten_percent_as_they_were():
    ids = np.full(400_000, 50)
    hidden, labels = mask_tokens(ids, rng(1), SPECIAL, MASK, share=0.5)
    found = hidden[labels != IGNORED]
    assert len(found) == 200_000
    drawn = found[(found != MASK) & (found != 50)]
    assert (found == MASK).mean() == pytest.approx(0.8, abs=0.005)
    assert (found == 50).mean() == pytest.approx(0.1 + 0.1 / 194, abs=0.004)
    counts = np.bincount(drawn, minlength=VOCAB)
    assert not counts[SPECIAL].any() and counts[50] == 0
    others = np.delete(counts[SPECIALS:], 50 - SPECIALS)
    # Of a uniform draw: the sum of squared deviations is about the number of tokens.
    assert ((others - others.mean()) ** 2 / others.mean()).sum() < 193 + 5 * np.sqrt(2 * 193)


@pytest.mark.parametrize("keep", [0.0, 1.0])
def test_keep_at_its_ends(keep):
    ids = np.full(20_000, 50)
    hidden, labels = mask_tokens(ids, rng(2), SPECIAL, MASK, 0.5, keep=keep)
    found = hidden[labels != IGNORED]
    if keep == 0:
        assert (found == MASK).all()
    else:
        assert (found != MASK).all() and (found == 50).mean() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("by_word", [False, True])
def test_every_place_is_chosen_as_often(by_word):
    ids = np.array([2, *range(10, 30), 3, *range(30, 50), 3])
    continues = np.zeros(VOCAB, bool) if by_word else None
    counts = np.zeros(len(ids))
    for seed in range(2000):
        counts += mask_tokens(ids, rng(seed), SPECIAL, MASK, 0.15, continues)[1] != IGNORED
    assert not counts[ids < SPECIALS].any()
    assert np.abs(counts[ids >= SPECIALS] / 2000 - 0.15).max() < 5 * np.sqrt(0.15 * 0.85 / 2000)


def test_a_generator_is_all_that_decides():
    ids = np.arange(10, 60)
    one, same, other = (mask_tokens(ids, rng(seed), SPECIAL, MASK)[0] for seed in (1, 1, 2))
    assert (one == same).all() and (one != other).any()


# ---- whole words ----


def encoding_of(which, text):
    return which(text).encodings[0] if hasattr(which(text), "encodings") else which(text)[0]


@pytest.mark.parametrize("algorithm", ["ours", "bpe", "wordpiece", "unigram"])
def test_words_are_hidden_whole(algorithm):
    """The words are the tokenizer's own, as its pre-tokenizer tells them."""
    which = tokenizer(algorithm)
    special = np.isin(np.arange(len(which)), which.all_special_ids)
    continues = word_continuations(which)
    assert continues.shape == (len(which),) and not continues[which.unk_token_id or which.pad_token_id]
    split = 0
    for number, text in enumerate(samples.texts()[2000:2080]):
        encoded = encoding_of(which, text)
        ids, words = np.array(encoded.ids), np.array([-1 if w is None else w for w in encoded.word_ids])
        able = ~special[ids]  # an unknown word is a special token
        assert not (words[able] == -1).any()
        _, labels = mask_tokens(ids, rng(number), special, VOCAB, 0.15, continues)
        chosen = labels != IGNORED
        of_word = [chosen[words == word] for word in set(words[able].tolist())]
        assert all(each.all() or not each.any() for each in of_word), "a word is hidden whole or not at all"
        split += sum(len(each) > 1 and each.all() for each in of_word)
        wanted = max(round(0.15 * able.sum()), 1)
        # Punctuation may go with the word before it.
        longest = max(map(len, np.split(ids, np.flatnonzero(~continues[ids]))))
        assert wanted <= chosen.sum() < wanted + longest
    assert split > 50, "words of several tokens were hidden"


def test_the_word_that_reaches_the_share_is_the_last():
    """Ten words of two tokens: 0.25 of 20 is five tokens, so three words."""
    ids = np.array([10, 11] * 10)
    continues = np.arange(VOCAB) == 11
    for seed in range(50):
        chosen = mask_tokens(ids, rng(seed), SPECIAL, MASK, 0.25, continues)[1] != IGNORED
        assert chosen.sum() == 6 and (chosen[::2] == chosen[1::2]).all()


def test_a_word_ends_at_a_special_token():
    """After [SEP] a token without a mark of a beginning begins one all the same."""
    ids, continues = np.array([11, 3, 11, 11, 10]), np.arange(VOCAB) == 11
    found = {tuple(mask_tokens(ids, rng(seed), SPECIAL, MASK, 0.01, continues)[1] != IGNORED) for seed in range(60)}
    assert found == {(1, 0, 0, 0, 0), (0, 0, 1, 1, 0), (0, 0, 0, 0, 1)}


def words_hidden_whole(which, text):
    """Whether each of many draws hides each of the tokenizer's words whole or not, and how many words it hides."""
    special = np.isin(np.arange(len(which)), which.all_special_ids)
    encoded = encoding_of(which, text)
    ids, words = np.array(encoded.ids), np.array([-1 if w is None else w for w in encoded.word_ids])
    whole, counts = True, []
    for seed in range(40):
        chosen = mask_tokens(ids, rng(seed), special, VOCAB, 0.15, word_continuations(which))[1] != IGNORED
        whole &= all(len(set(chosen[words == word])) == 1 for word in set(words.tolist()) - {-1})
        counts.append(len(np.unique(words[chosen])))
    return whole, max(counts) / len(np.unique(words))


def test_headings_do_not_make_a_vocabulary_a_wordpiece_one():
    headings = ["## introduction\n\n### introductory remarks\n"] * 50
    which = train_tokenizer(headings + samples.texts()[:500], "bpe", 400, "clm")
    assert "##" in which.get_vocab()
    whole, _ = words_hidden_whole(which, samples.texts()[5])
    assert whole


@pytest.mark.parametrize(
    "text", ["ĉu vi aĉetis ĉion, kion li serĉis en la preĝejo?", "Ġorġ mar il-belt ma' Ġanni u ħuh"]
)
def test_letters_of_esperanto_and_maltese_are_no_marks(text):
    which = train_tokenizer([text] * 50 + samples.texts()[:300], "unigram", 600, "mlm")
    whole, most = words_hidden_whole(which, f"{text} {text}")
    assert whole and most < 0.5


# ---- spans for sentinels ----


def spliced(source, target, sentinels):
    """The text of a source and its target."""
    spans, current = {}, None
    for token in target.tolist():
        if token in sentinels:
            assert token not in spans, "a sentinel stands for one span"
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    found = []
    for token in source.tolist():
        found += spans.pop(token) if token in sentinels else [token]
    assert list(spans.values()) == [[]], "one sentinel is left over and ends the target"
    return found


@seeded
@given(
    st.integers(2, 300), seeds, st.sampled_from([0.01, 0.15, 0.5, 0.9, 1.0]), st.sampled_from([1.0, 3.0, 10.0]),
    st.sampled_from([2, 3, 100]),
)  # fmt: skip
@example(2, 0, 0.15, 3.0, 100)
@example(2, 0, 1.0, 1.0, 2)
@example(3, 0, 0.15, 3.0, 100)
@example(300, 0, 0.5, 1.0, 2)
def test_source_and_target_give_the_text_back(length, seed, share, mean, marks):
    ids, sentinels = np.arange(length), SENTINELS[:marks]
    source, target = corrupt_spans(ids, rng(seed), sentinels, share, mean)
    assert spliced(source, target, sentinels.tolist()) == list(range(length))
    noise = min(max(round(length * share), 1), max(length - 2, 1))
    spans = min(max(round(noise / mean), 1), max(length - noise - 1, 1), marks - 1)
    assert max(len(source), len(target)) <= max(length, 3), "no longer than the text"
    assert (target < 1000).sum() == noise and (source < 1000).sum() == length - noise
    of_source, of_target = source >= 1000, target >= 1000
    assert source[of_source].tolist() == sentinels[:spans].tolist(), "in order, each once"
    assert target[of_target].tolist() == sentinels[: spans + 1].tolist()
    assert not of_source[0] and not (of_source[1:] & of_source[:-1]).any(), "spans never touch, none begins the text"
    assert not (of_target[1:] & of_target[:-1]).any(), "no span is empty"
    assert (ids == np.arange(length)).all()


def test_more_spans_than_sentinels_makes_longer_spans():
    source, target = corrupt_spans(np.arange(1000), rng(), SENTINELS[:4], share=0.5)
    assert (source >= 1000).sum() == 3 and (target < 1000).sum() == 500


def test_all_ways_to_cut_are_as_likely():
    """12 tokens, 6 of them in 3 spans: ten ways to cut each of the two sixes in three."""
    gone, kept = Counter(), Counter()
    for seed in range(3000):
        source, target = corrupt_spans(np.arange(12), rng(seed), SENTINELS, 0.5, 2.0)
        gone[tuple(np.diff(np.flatnonzero(target >= 1000)) - 1)] += 1
        kept[tuple(np.diff(np.flatnonzero(np.concatenate([[1000], source]) >= 1000)) - 1)] += 1
    for counts in (gone, kept):
        assert len(counts) == 10 and all(sum(key) == 6 for key in counts)
        assert max(abs(count - 300) for count in counts.values()) < 5 * np.sqrt(300)


# ---- spans for masks ----


@seeded
@given(st.integers(1, 200), seeds, st.sampled_from([0.01, 0.3, 0.6]), st.sampled_from([1.0, 3.0]))
@example(1, 0, 0.3, 3.0)
@example(2, 0, 0.3, 3.0)
@example(2, 1, 0.6, 3.0)
def test_what_stays_is_a_part_of_the_text_in_its_order(length, seed, share, mean):
    ids = np.arange(length)
    source = infill(ids, rng(seed), 1000, share, mean)
    assert len(source) <= length, "no longer than the text"
    masks = source == 1000
    kept = source[~masks]
    assert source.dtype == ids.dtype and (ids == np.arange(length)).all()
    assert (np.diff(kept) > 0).all() and np.isin(kept, ids).all()
    assert masks.any() and not (masks[1:] & masks[:-1]).any(), "never two masks in a row"
    budget = max(round(share * length), 1)
    assert 1 <= length - len(kept) <= budget
    # A gap is where a mask stands, and nowhere else; a mask may stand where nothing is gone.
    bounds = np.concatenate([[-1], kept, [length]])
    at = np.cumsum(~masks)[masks]
    gaps = np.flatnonzero(np.diff(bounds) > 1)
    assert set(gaps) <= set(at.tolist())


@seeded
@given(st.integers(20, 200), seeds)
def test_as_many_tokens_are_hidden_as_the_share_says(length, seed):
    source = infill(np.arange(length), rng(seed), 1000)
    assert (source != 1000).sum() == length - round(0.3 * length)


def test_spans_have_poisson_lengths():
    length = 200_000
    source = infill(np.arange(length), rng(3), length, 0.3)
    bounds = np.concatenate([[-1], source, [length]])
    places = np.flatnonzero(bounds == length)[:-1]
    sizes = bounds[places + 1] - bounds[places - 1] - 1
    assert len(sizes) == (source == length).sum() and sizes.sum() == 0.3 * length
    assert sizes.mean() == pytest.approx(3, abs=0.06) and sizes.var() == pytest.approx(3, abs=0.15)
    assert (sizes == 0).mean() == pytest.approx(np.exp(-3), abs=0.006)


def test_both_ends_are_hidden_as_often():
    counts = np.zeros(30)
    for seed in range(4000):
        counts += ~np.isin(np.arange(30), infill(np.arange(30), rng(seed), 1000))
    assert counts.min() > 0 and np.abs(counts - counts[::-1]).max() < 5 * np.sqrt(2 * counts.mean())


@pytest.mark.parametrize("seed", range(20))
def test_one_token_is_one_mask_and_of_two_one_stays(seed):
    assert infill(np.array([7]), rng(seed), 1000).tolist() == [1000]
    two = infill(np.array([7, 8]), rng(seed), 1000).tolist()
    assert len(set(two) & {7, 8}) == 1 and two.count(1000) in (1, 2)


def test_a_share_of_one_hides_all():
    assert infill(np.arange(100), rng(), 1000, share=1.0).tolist() == [1000]
