"""What single words tell of tags and answers, without a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from tuner.evaluation.baselines.pairs import sentences
from tuner.text.words import WORD


def word_tags(train: Dataset, words: Sequence[list[str]], tags: Sequence[list[str]], metric: str) -> dict[str, float]:
    """The metric (`f1` of entities, or `accuracy` of words) of the most frequent tag for all words, and of each word's
    most frequent tag in training, by the word in lower case where it was not met as it stands."""
    of_word: dict[str, Counter[str]] = {}
    for row in train:
        for word, tag in zip(row["tokens"], row["tags"], strict=True):
            for form in {word, word.lower()}:
                of_word.setdefault(form, Counter())[tag] += 1
    always = Counter(tag for names in train["tags"] for tag in names).most_common(1)[0][0]
    best = {word: counts.most_common(1)[0][0] for word, counts in of_word.items()}
    said = {
        "most frequent": [[always] * len(row) for row in words],
        "most frequent of the word": [[best.get(w, best.get(w.lower(), always)) for w in row] for row in words],
    }
    if metric == "f1":
        from tuner.evaluation.metrics import load_metric  # the library evaluate takes a second to import

        scorer = load_metric("entity_f1")
        return {who: scorer.compute(predictions=guess, references=list(tags))["f1"] for who, guess in said.items()}
    right = {
        who: [a == b for g, t in zip(guess, tags, strict=True) for a, b in zip(g, t, strict=True)]
        for who, guess in said.items()
    }
    return {who: sum(hits) / len(hits) for who, hits in right.items()}


def nearest_sentences(rows: Dataset, has_unanswerable: bool) -> dict[str, dict[str, float]]:
    """Exact match and F1 (SQuAD) of two that read no meaning: no answer at all, where there are such questions, and
    that sentence of the context which shares most words with the question.

    Returns:
        {"exact_match": {who: value}, "f1": {who: value}}
    """
    from tuner.evaluation.metrics import load_metric  # the library evaluate takes a second to import

    said = {"no answer": [""] * len(rows)} if has_unanswerable else {}
    said["sentence with most words"] = [nearest_sentence(row) for row in rows]
    references = [[answer["text"] for answer in answers] for answers in rows["answers"]]
    scorer = load_metric("squad")
    found = {who: scorer.compute(predictions=guess, references=references) for who, guess in said.items()}
    return {name: {who: figures[name] for who, figures in found.items()} for name in ("exact_match", "f1")}


def nearest_sentence(row: dict[str, Any]) -> str:
    """The sentence of a row's context that shares most words with its question."""
    asked = set(WORD.findall(row["question"].lower()))
    return max(sentences(row["context"]), key=lambda sentence: len(asked & set(WORD.findall(sentence.lower()))))
