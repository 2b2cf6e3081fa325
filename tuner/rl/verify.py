"""Rewards that can be checked: whether a completion says what its row's column `answer` says."""

from __future__ import annotations

import re
from typing import Any

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def exact_answer(completions: list[Any], answer: list[Any], **_: Any) -> list[float]:
    """1 where a completion is the answer, white space aside, else 0."""
    return [float(_said(text).strip() == str(right).strip()) for text, right in zip(completions, answer, strict=True)]


def last_number(completions: list[Any], answer: list[Any], **_: Any) -> list[float]:
    """1 where the last number that a completion names is the answer, else 0: for answers that are reasoned out."""
    found = [NUMBER.findall(_said(text).replace(",", "")) for text in completions]
    return [float(bool(n) and float(n[-1]) == float(right)) for n, right in zip(found, answer, strict=True)]


def _said(completion: Any) -> str:
    return completion if isinstance(completion, str) else completion[-1]["content"]
