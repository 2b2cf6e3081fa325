"""Numbers: likelihoods of texts, scores of pairs, regression."""

from __future__ import annotations

import re

import numpy as np

from tuner.evaluation.metrics.base import NUMBER, Columns, Figures, SummedMetric


def text_sizes(text: str) -> tuple[int, int]:
    """A text's words and bytes as lm-eval counts them: parts between white space, and UTF-8."""
    return len(re.split(r"\s+", text)), len(text.encode())


class Perplexity(SummedMetric):
    """exp of the mean negative log-likelihood: per token, per word and per byte of the text.

    Columns, one value a row: `nll`, the sum over its tokens in nats; `tokens` that were predicted; `words` and `bytes`
    of the text (`text_sizes`). Only the last two compare across tokenizers.
    """

    source = "https://github.com/EleutherAI/lm-evaluation-harness/blob/main/lm_eval/api/metrics.py"
    columns = {name: NUMBER for name in ("nll", "tokens", "words", "bytes")}

    def parts(self, columns: Columns, labels: list[str]) -> np.ndarray:
        """The four columns `(rows, 4)`."""
        return np.array([columns[name] for name in self.columns], float).T

    def figures(self, parts: np.ndarray, labels: list[str]) -> Figures:
        """`perplexity`, `word_perplexity`, `byte_perplexity`, `bits_per_byte`; infinite beyond a float's range."""
        nll, *counts = parts.sum(0)
        if min(counts) <= 0:
            raise ValueError("there is no token, no word or no byte.")
        with np.errstate(over="ignore"):
            found = [np.exp(nll / count) for count in counts]
        names = ("perplexity", "word_perplexity", "byte_perplexity")
        return {**dict(zip(names, found, strict=True)), "bits_per_byte": nll / counts[2] / np.log(2)}
