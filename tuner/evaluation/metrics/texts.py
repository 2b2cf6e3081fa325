"""Texts that a model wrote, beside references or alone.

Every metric here takes one reference a row or a list of them. Scripts that are written without spaces (Chinese,
Japanese, Thai) are read by the character, where rouge-score and SQuAD's script lose them or take a sentence for a word.
"""

from __future__ import annotations

import string
import warnings
from collections import Counter
from collections.abc import Mapping
from itertools import zip_longest
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import regex

from tuner.errors import ArgumentError, from_extra, nearest
from tuner.evaluation.metrics.base import ROWS_AT_ONCE, TEXT, TEXTS, Columns, Figures, SummedMetric, TunerMetric

UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
WORD = regex.compile(rf"(?V1)[{UNSPACED}&&\p{{L}}]\p{{M}}*|[\p{{L}}\p{{M}}\p{{N}}--[{UNSPACED}]]+")
CHARACTER = regex.compile(rf"(?V1)([{UNSPACED}&&\p{{L}}]\p{{M}}*)")
# SQuAD's: those of ASCII; and their wide forms.
PUNCTUATION = regex.compile(rf"(?V1)[{regex.escape(string.punctuation)}]|[\u3000-\u303f\uff00-\uffef&&\p{{P}}]")
ARTICLE = regex.compile(r"\b(a|an|the)\b")
# sacrebleu's that need neither a download nor another package.
TOKENIZERS = ("13a", "zh", "intl", "char", "none")


def words(text: str) -> list[str]:
    """Lower-case words without punctuation, on ASCII those of rouge-score."""
    return WORD.findall(text.lower())


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """All runs of `n` words."""
    found = words(text)
    return list(zip(*(found[start:] for start in range(n)), strict=False))


class ReferenceMetric(SummedMetric):
    """A metric of texts beside one or several references each."""

    columns = {"predictions": TEXT, "references": TEXTS}


class MeanMetric(ReferenceMetric):
    """A metric that is a mean over rows."""

    keys: tuple[str, ...] = ()

    def score(self, prediction: str, references: list[str]) -> tuple[float, ...]:
        """One row's values of `keys`."""
        raise NotImplementedError

    def parts(self, columns: Columns, labels: list[str]) -> np.ndarray:
        """Each row's values, and 1: `(rows, keys + 1)`."""
        pairs = zip(columns["predictions"], columns.get("references", columns["predictions"]), strict=True)
        return np.array([(*self.score(guess, wanted), 1) for guess, wanted in pairs], float)

    def figures(self, parts: np.ndarray, labels: list[str]) -> Figures:
        """The means."""
        *sums, count = parts.sum(0)
        return {key: total / count for key, total in zip(self.keys, sums, strict=True)}


class ExactMatch(MeanMetric):
    """The share of texts that are a reference.

    Args:
        ignore_case: whether upper and lower case are one.
        ignore_punctuation: whether punctuation is taken out first, that of ASCII and its wide forms.
    """

    source = "https://huggingface.co/spaces/evaluate-metric/exact_match"
    keys = ("exact_match",)

    def __init__(self, ignore_case: bool = False, ignore_punctuation: bool = False, **places: Any):
        super().__init__(**places)
        self.ignore_case, self.ignore_punctuation = ignore_case, ignore_punctuation

    def score(self, prediction: str, references: list[str]) -> tuple[float, ...]:
        """1 or 0."""
        return (float(self._form(prediction) in map(self._form, references)),)

    def _form(self, text: str) -> str:
        text = PUNCTUATION.sub("", text) if self.ignore_punctuation else text
        return text.lower() if self.ignore_case else text


class Squad(SummedMetric):
    """Answers to questions: exact match and F1 of words after SQuAD's normalisation, the best of the right answers.

    A reference is a list of answers as texts, or with `text` as data sets have them. A question without one is
    unanswerable, and its right prediction is the empty text.
    """

    source = "https://rajpurkar.github.io/SQuAD-explorer/ (evaluate-v2.0.py)"
    columns = {"predictions": TEXT, "references": TEXTS}

    def check(self, column: str, value: Any) -> Any:
        """A text, or the texts of the right answers."""
        if column == "predictions" or isinstance(value, str):
            return super().check(column, value)
        answers = value["text"] if isinstance(value, Mapping) else value
        return [super(Squad, self).check("predictions", a["text"] if isinstance(a, Mapping) else a) for a in answers]

    def parts(self, columns: Columns, labels: list[str]) -> np.ndarray:
        """Exact match, F1 and 1 for answerable questions, then for the others: `(rows, 6)`."""
        found = np.zeros((len(columns["predictions"]), 6))
        for row, (guess, answers) in enumerate(zip(columns["predictions"], columns["references"], strict=True)):
            said, wanted = answer_words(guess), [w for w in map(answer_words, answers) if w]
            start = 0 if wanted else 3
            found[row, start] = said in (wanted or [[]])
            found[row, start + 1] = max(word_f1(said, one) for one in wanted or [[]])
            found[row, start + 2] = 1
        return found

    def figures(self, parts: np.ndarray, labels: list[str]) -> Figures:
        """`exact_match` and `f1`; where both kinds of question are met, also those of each: `has_answer_f1`, ..."""
        kinds = parts.sum(0).reshape(2, 3)
        found = {"": kinds.sum(0)}
        if kinds[:, 2].all():
            found |= {"has_answer_": kinds[0], "no_answer_": kinds[1]}
        return {
            f"{kind}{key}": sums[place] / sums[2]
            for kind, sums in found.items()
            for place, key in enumerate(("exact_match", "f1"))
        }


def answer_words(text: str) -> list[str]:
    """An answer's words as SQuAD's script has them: lower case, without punctuation and articles."""
    return CHARACTER.sub(r" \1 ", ARTICLE.sub(" ", PUNCTUATION.sub("", text.lower()))).split()


def word_f1(guess: list[str], wanted: list[str]) -> float:
    """F1 of two bags of words; of an empty one whether both are."""
    if not guess or not wanted:
        return float(guess == wanted)
    return 2 * sum((Counter(guess) & Counter(wanted)).values()) / (len(guess) + len(wanted))


class SacreMetric(ReferenceMetric):
    """A metric of sacrebleu, from its counts a row."""

    scorer: Any

    def parts(self, columns: Columns, labels: list[str]) -> np.ndarray:
        """What sacrebleu counts in each row `(rows, counts)`."""
        streams = list(zip_longest(*columns["references"]))
        return np.array(self.scorer._extract_corpus_statistics(columns["predictions"], streams), float)

    def figures(self, parts: np.ndarray, labels: list[str]) -> Figures:
        """The score, from 0 to 100."""
        return {self.name: self.scorer._compute_score_from_stats(parts.sum(0).astype(int).tolist()).score}

    @property
    def signature(self) -> str:
        """What a published score states beside it, once there is one: tokenizer, references, version."""
        return str(self.scorer.get_signature())


class Bleu(SacreMetric):
    """BLEU of the whole set, from 0 to 100.

    Args:
        tokenize: 13a (languages with spaces), zh, intl, char or none.
        lowercase: whether upper and lower case are one.
    """

    source = "https://aclanthology.org/W18-6319/"

    def __init__(self, tokenize: str = "13a", lowercase: bool = False, **places: Any):
        super().__init__(**places)
        if tokenize not in TOKENIZERS:
            known = ", ".join(TOKENIZERS)
            raise ArgumentError(f"bleu has no tokenizer {tokenize}.{nearest(tokenize, TOKENIZERS)} It has {known}.")
        self.tokenize = tokenize
        self.scorer = from_extra("sacrebleu.metrics", "eval").BLEU(tokenize=tokenize, lowercase=lowercase)

    def parts(self, columns: Columns, labels: list[str]) -> np.ndarray:
        """What sacrebleu counts in each row `(rows, 10)`."""
        sample = "".join(columns["references"][0])
        if self.tokenize in ("13a", "intl") and 2 * len(CHARACTER.findall(sample)) > len(sample):
            warnings.warn(f"bleu: {sample!r:.40} has no spaces to split at: use tokenize='zh' or 'char'.", stacklevel=2)
        return super().parts(columns, labels)


class Chrf(SacreMetric):
    """chrF, F of character n-grams of the whole set, from 0 to 100; needs no tokenizer.

    Args:
        word_order: 2 for chrF++.
    """

    source = "https://aclanthology.org/W15-3049/"

    def __init__(self, word_order: int = 0, **places: Any):
        super().__init__(**places)
        self.scorer = from_extra("sacrebleu.metrics", "eval").CHRF(word_order=word_order)


class Rouge(MeanMetric):
    """ROUGE's F1, the mean over rows, from 0 to 1; the best of several references. rougeLsum splits at new lines.

    Args:
        use_stemmer: Porter's, for English.
    """

    source = "https://aclanthology.org/W04-1013/"
    keys = ("rouge1", "rouge2", "rougeL", "rougeLsum")

    def __init__(self, use_stemmer: bool = False, **places: Any):
        super().__init__(**places)
        scorer = from_extra("rouge_score.rouge_scorer", "eval")
        self.stem = from_extra("nltk.stem.porter", "eval").PorterStemmer().stem if use_stemmer else None
        self.scorer = scorer.RougeScorer(self.keys, tokenizer=SimpleNamespace(tokenize=self.tokenize))

    def tokenize(self, text: str) -> list[str]:
        """What rouge-score asks of a tokenizer; words of up to three letters have no stem, as in its own."""
        found = words(text)
        return [self.stem(word) if len(word) > 3 else word for word in found] if self.stem else found

    def score(self, prediction: str, references: list[str]) -> tuple[float, ...]:
        """The four F1."""
        found = self.scorer.score_multi(references, prediction)
        return tuple(found[key].fmeasure for key in self.keys)


class SelfRepetition(MeanMetric):
    """The share of a text's n-grams of words that it has had before, the mean over texts (seq-rep-n).

    Args:
        n: words a run.
    """

    source = "https://arxiv.org/abs/1908.04319"
    columns = {"predictions": TEXT}
    keys = ("self_repetition",)

    def __init__(self, n: int = 4, **places: Any):
        super().__init__(**places)
        if n < 1:
            raise ArgumentError(f"self_repetition: n is 1 or more, not {n}.")
        self.n = n

    def score(self, prediction: str, references: list[str]) -> tuple[float, ...]:
        """0 for a text of fewer than n words."""
        found = ngrams(prediction, self.n)
        return (1 - len(set(found)) / len(found) if found else 0.0,)


class DistinctN(TunerMetric):
    """Different n-grams of words over all n-grams, of all texts together. It falls with the amount of text: compare
    sets of one size. A hash of every different n-gram is held; rows drawn with repeats say nothing, so no `on_rows`."""

    source = "https://arxiv.org/abs/1510.03055"
    columns = {"predictions": TEXT}

    def reduce(self, rows: datasets.Dataset) -> Figures:
        """`distinct_1`, `distinct_2`, `distinct_3`."""
        seen, count = {n: set[int]() for n in (1, 2, 3)}, Counter[int]()
        for columns in rows.iter(ROWS_AT_ONCE):
            for text in columns["predictions"]:
                for n in seen:
                    found = ngrams(text, n)
                    seen[n].update(map(hash, found))
                    count[n] += len(found)
        return {f"distinct_{n}": len(seen[n]) / count[n] if count[n] else 0.0 for n in seen}
