"""Rewards that can be checked: whether a completion says what its row's column `answer` says."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import Any

# A sign is one where no number or word stands before it: "3-5" names 3 and 5.
NUMBER = re.compile(r"(?:(?<![\w.])-)?(?:\d+(?:\.\d+)?|(?<![\w.])\.\d+)(?:[eE][+-]?\d+)?")
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def exact_answer(completions: list[Any], answer: list[Any], **_: Any) -> list[float]:
    """1 where a completion is the answer, white space aside, else 0."""
    return [float(_said(text).strip() == str(right).strip()) for text, right in zip(completions, answer, strict=True)]


def last_number(completions: list[Any], answer: list[Any], **_: Any) -> list[float]:
    """1 where the last number that a completion names is the answer, else 0: for answers that are reasoned out."""
    pairs = [(_numbers(_said(text)), _numbers(str(right))) for text, right in zip(completions, answer, strict=True)]
    for given, pair in zip(answer, pairs, strict=True):
        if not pair[1]:
            raise ValueError(f"the answer {given!r} names no number")
    return [float(bool(named) and named[-1] == right[-1]) for named, right in pairs]


def _numbers(text: str) -> list[Decimal]:
    plain = THOUSANDS.sub("", text.replace("\N{MINUS SIGN}", "-"))
    return [_number(number) for number in NUMBER.findall(plain)]


def _number(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:  # an exponent beyond all bounds
        return Decimal("Infinity")


def _said(completion: Any) -> str:
    return completion if isinstance(completion, str) else completion[-1]["content"]
