"""Spans that a denoising model wrote, beside those it was to write. Token ids, in numpy."""

from __future__ import annotations

import numpy as np

from tuner.data.collate import IGNORED

Spans = dict[int, tuple[int, ...]]  # sentinel to the tokens it stands for


def spans_of(ids: np.ndarray, sentinels: set[int]) -> Spans:
    """What follows each sentinel in a target or what was written for it `(time,)`, up to the next."""
    spans: dict[int, list[int]] = {}
    current: list[int] = []
    for token in ids.tolist():
        if token in sentinels:
            current = spans.setdefault(token, [])
        elif token != IGNORED:
            current.append(token)
    return {mark: tuple(span) for mark, span in spans.items() if span}


def wanted_spans(target: np.ndarray, source: np.ndarray, sentinels: set[int]) -> Spans:
    """The spans of a target. The sentinel that ends it stands for no span: it is not in the source."""
    there = set(source.tolist())
    return {mark: span for mark, span in spans_of(target, sentinels).items() if mark in there}


def count_matches(written: Spans, wanted: Spans) -> int:
    """How many spans are written exactly."""
    return sum(written.get(mark) == span for mark, span in wanted.items())


def copy_spans(source: np.ndarray, wanted: Spans) -> Spans:
    """As many tokens as a span has, from before its sentinel: what takes no model."""
    tokens = source.tolist()
    where = {token: at for at, token in enumerate(tokens)}
    return {mark: tuple(tokens[max(where[mark] - len(span), 0) : where[mark]]) for mark, span in wanted.items()}
