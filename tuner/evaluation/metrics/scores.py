"""Numbers: likelihoods of texts, scores of pairs, regression."""

from __future__ import annotations

import re

import numpy as np

from tuner.errors import from_extra
from tuner.evaluation.metrics.base import NUMBER, Columns, Figures, SummedMetric


def text_sizes(text: str) -> tuple[int, int]:
    """A text's words and bytes as lm-eval counts them: parts between white space, and UTF-8."""
    return len(re.split(r"\s+", text)), len(text.encode())


class NumberMetric(SummedMetric):
    """A metric whose parts are its columns."""

    columns = {"predictions": NUMBER, "references": NUMBER}

    def parts(self, columns: Columns, labels: list[str]) -> np.ndarray:
        """The columns `(rows, columns)`."""
        return np.array([columns[name] for name in self.columns], float).T


class Perplexity(NumberMetric):
    """exp of the mean negative log-likelihood: per token, per word and per byte of the text.

    Columns, one value a row: `nll`, the sum over its tokens in nats; `tokens` that were predicted; `words` and `bytes`
    of the text (`text_sizes`). Only those of words and bytes compare across tokenizers.
    """

    source = "https://github.com/EleutherAI/lm-evaluation-harness/blob/main/lm_eval/api/metrics.py"
    columns = dict.fromkeys(("nll", "tokens", "words", "bytes"), NUMBER)

    def figures(self, parts: np.ndarray, labels: list[str]) -> Figures:
        """`perplexity`, `word_perplexity`, `byte_perplexity`, `bits_per_byte`; infinite beyond a float's range."""
        nll, *counts = parts.sum(0)
        if min(counts) <= 0:
            raise ValueError("there is no token, no word or no byte.")
        with np.errstate(over="ignore"):
            token, word, byte = (np.exp(nll / count) for count in counts)
        bits = nll / counts[2] / np.log(2)
        return {"perplexity": token, "word_perplexity": word, "byte_perplexity": byte, "bits_per_byte": bits}


class PairAccuracy(NumberMetric):
    """The share of pairs whose better answer has the higher score. Columns: `chosen` and `rejected`, the scores."""

    source = "https://arxiv.org/abs/2403.13787"
    columns = {"chosen": NUMBER, "rejected": NUMBER}

    def parts(self, columns: Columns, labels: list[str]) -> np.ndarray:
        """Whether each pair is right, whether it is a tie, and 1: `(rows, 3)`."""
        chosen, rejected = super().parts(columns, labels).T
        return np.array([chosen > rejected, chosen == rejected, np.ones(len(chosen))], float).T

    def figures(self, parts: np.ndarray, labels: list[str]) -> Figures:
        """`pair_accuracy`, for which a tie is wrong, and the share of `ties`."""
        right, ties, count = parts.sum(0)
        return {"pair_accuracy": right / count, "ties": ties / count}


class Regression(NumberMetric):
    """Errors and correlations; a correlation with constant predictions is 0."""

    source = "https://docs.scipy.org/doc/scipy/reference/stats.html"
    additive = False

    def figures(self, parts: np.ndarray, labels: list[str]) -> Figures:
        """`rmse`, `mae`, `pearson`, `spearman`; a ValueError where the references are constant."""
        guessed, wanted = parts.T
        if np.ptp(wanted) == 0:
            raise ValueError(f"every reference is {wanted[0]:g}: there is no correlation with a constant.")
        stats, error = from_extra("scipy.stats", "eval"), guessed - wanted
        varied = np.ptp(guessed) > 0
        return {
            "rmse": np.sqrt((error**2).mean()),
            "mae": np.abs(error).mean(),
            "pearson": stats.pearsonr(guessed, wanted).statistic if varied else 0.0,
            "spearman": stats.spearmanr(guessed, wanted).statistic if varied else 0.0,
        }
