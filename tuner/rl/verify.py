"""Rewards that can be checked: whether a completion says what its row's column `answer` says."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import Any

# A sign is one where no number or word stands before it: "3-5" names 3 and 5.
NUMBER = re.compile(r"(?:(?<![\w.])-)?(?:\d+(?:\.\d+)?|(?<![\w.])\.\d+)(?:[eE][+-]?\d+)?")
# What of LaTeX is beside a number, a unit and what parts thousands; and what is more than one: a fraction, a root.
PLAIN = re.compile(r"\\text\{[^{}]*\}|\{,\}|,?\\[!,]")
FORMULA = re.compile(r"\\(?![$%,! ])")
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def exact_answer(completions: list[Any], answer: list[Any], **_: Any) -> list[float]:
    """1 where a completion is the answer, white space aside, else 0."""
    return [float(_said(text).strip() == str(right).strip()) for text, right in zip(completions, answer, strict=True)]


def last_number(completions: list[Any], answer: list[Any], **_: Any) -> list[float]:
    """1 where the last number that a completion names is the answer, else 0: for answers that are reasoned out. Of an
    answer with `####`, as GSM8K has it, what is behind it; a ValueError where that is no number, or more than one."""
    wanted = [_only_number(right) for right in answer]
    named = [_numbers(_said(text)) for text in completions]
    return [float(bool(numbers) and numbers[-1] == right) for numbers, right in zip(named, wanted, strict=True)]


def _only_number(answer: Any) -> Decimal:
    said = PLAIN.sub("", str(answer).rsplit("####", 1)[-1])
    found = _numbers(said)
    if len(found) != 1 or FORMULA.search(said):
        raise ValueError(f"the answer {answer!r} names {'no' if not found else 'more than a'} number")
    return found[0]


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
