"""What is hidden of a sequence: tokens (BERT), spans (T5), spans of unknown length (BART). Token ids, in numpy."""

from __future__ import annotations

import json
from itertools import chain

import numpy as np
from transformers import PreTrainedTokenizerBase

from tuner.data.collate import IGNORED
from tuner.text.words import CHARACTER

# The first bytes of Chinese and Japanese in UTF-8, e3 to e9, as byte-level BPE writes them; those of Thai, Lao, Khmer
# and Burmese are also of scripts with spaces.
UNSPACED_BYTES = ("ã", "ä", "å", "æ", "ç", "è", "é")


def mask_tokens(
    ids: np.ndarray,
    generator: np.random.Generator,
    special: np.ndarray,
    mask_token: int,
    share: float = 0.15,
    continues: np.ndarray | None = None,
    keep: float = 0.2,
) -> tuple[np.ndarray, np.ndarray]:
    """Hide some tokens (Devlin et al. 2018, section 3.1, https://arxiv.org/abs/1810.04805): of those chosen, `1 - keep`
    become the mask token; half of the others become a random token, half stay.

    Args:
        ids: `(time,)`.
        special: `(vocab_size,)`, true for tokens that are never chosen and never drawn.
        share: of the other tokens, how many are chosen; at least one.
        continues: `(vocab_size,)`, true for tokens that continue a word; with it, whole words are chosen.

    Returns:
        The ids with what is hidden, and labels: the token where one was chosen, -100 elsewhere.
    """
    able = ~special[ids]
    labels, hidden = np.full_like(ids, IGNORED), ids.copy()
    if not able.any():
        return hidden, labels
    wanted = max(round(share * int(able.sum())), 1)
    if continues is None:
        chosen = generator.permutation(np.flatnonzero(able))[:wanted]
    else:
        words = np.cumsum(~continues[ids])  # special tokens continue none either
        order = generator.permutation(np.unique(words[able]))
        sizes = np.bincount(words[able], minlength=int(words[-1]) + 1)[order]
        # Words until the share is reached: the one that reaches it is in.
        chosen = np.flatnonzero(able & np.isin(words, order[: int(np.searchsorted(np.cumsum(sizes), wanted)) + 1]))
    labels[chosen] = ids[chosen]
    fate = generator.random(len(chosen))
    hidden[chosen[fate >= keep]] = mask_token
    drawn = chosen[fate < keep / 2]
    hidden[drawn] = generator.choice(np.flatnonzero(~special), len(drawn))
    return hidden, labels


def word_continuations(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """`(vocab_size,)`, true for tokens that continue a word, by the marks of WordPiece, byte-level BPE or Unigram. What
    begins with a character of a script without spaces between words begins a word (of bytes, a Chinese or Japanese
    one)."""
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    special = set(tokenizer.all_special_tokens)
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    if parts["model"]["type"] == "WordPiece":
        mark = parts["model"]["continuing_subword_prefix"]
        return np.array([token.startswith(mark) and not CHARACTER.match(token, len(mark)) for token in tokens])
    in_bytes = "ByteLevel" in json.dumps(parts["pre_tokenizer"])
    starts = ("Ġ", "Ċ", "ĉ", *UNSPACED_BYTES) if in_bytes else ("▁", "\n", "\t")
    begins = [token.startswith(starts) or (not in_bytes and CHARACTER.match(token)) for token in tokens]
    return np.array([token not in special and not begin for token, begin in zip(tokens, begins, strict=True)])


def sentinels(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """The special tokens `<extra_id_0>`, `<extra_id_1>`, ... in order."""
    marks = [token for token in tokenizer.all_special_tokens if token.startswith("<extra_id_")]
    marks.sort(key=lambda mark: int(mark.removeprefix("<extra_id_").removesuffix(">")))
    return np.array(tokenizer.convert_tokens_to_ids(marks), dtype=np.int64)


def corrupt_spans(
    ids: np.ndarray, generator: np.random.Generator, sentinels: np.ndarray, share: float = 0.15, mean: float = 3.0
) -> tuple[np.ndarray, np.ndarray]:
    """Put a sentinel for each of some spans; what is to be written are the sentinels, each with its span (Raffel et al.
    2019, section 3.1.4, https://arxiv.org/abs/1910.10683).

    Args:
        ids: `(time,)`, at least two tokens.
        sentinels: one after another for the spans; one more ends the target.
        share: of the tokens, how many lie in spans, `mean` in each on average. Spans never touch, and the sequence
            begins outside of one.

    Returns:
        Source and target, without end tokens; of three tokens and more, neither is longer than they are.
    """
    noise = min(max(round(len(ids) * share), 1), max(len(ids) - 2, 1))
    spans = min(max(round(noise / mean), 1), max(len(ids) - noise - 1, 1), len(sentinels) - 1)
    gone, kept = (_random_lengths(total, spans, generator) for total in (noise, len(ids) - noise))
    pieces = np.split(ids, np.cumsum(np.stack([kept, gone], axis=1))[:-1])
    marks = np.split(sentinels[: spans + 1], range(1, spans + 1))
    source = chain.from_iterable(zip(pieces[::2], marks[:-1], strict=True))
    target = chain.from_iterable(zip(marks[:-1], pieces[1::2], strict=True))
    return np.concatenate([*source]), np.concatenate([*target, marks[-1]])


def _random_lengths(total: int, count: int, generator: np.random.Generator) -> np.ndarray:
    """`count` positive numbers that sum to `total`, all ways of doing so equally likely."""
    cuts = np.sort(generator.choice(total - 1, count - 1, replace=False)) + 1 if count > 1 else np.array([], int)
    return np.diff(np.concatenate([[0], cuts, [total]]))


def infill(
    ids: np.ndarray, generator: np.random.Generator, mask_token: int, share: float = 0.3, mean: float = 3.0
) -> np.ndarray:
    """Put one mask token for each of some spans of Poisson length, none included; all is to be written (Lewis et al.
    2019, section 2.2, https://arxiv.org/abs/1910.13461).

    Of the tokens `(time,)` a `share` lies in spans, `mean` in each on average. There are never more masks than tokens
    they stand for.
    """
    budget = max(round(len(ids) * share), 1)
    lengths: list[int] = []
    while sum(lengths) < budget:
        lengths.append(int(generator.poisson(mean)))
    room = len(ids) - budget + 1  # places between the tokens that stay
    lengths = lengths[-min(room, budget) :]
    lengths[-1] += budget - sum(lengths)  # what is too much of the last, and of the spans that are too many
    generator.shuffle(lengths)
    places = np.sort(generator.choice(room, len(lengths), replace=False))
    hidden = np.repeat(places, lengths) + np.arange(budget)
    return np.insert(np.delete(ids, hidden), places, mask_token)
