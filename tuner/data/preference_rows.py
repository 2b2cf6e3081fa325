"""Rows for preference learning: two answers to a prompt, or one that is judged; see `schema` for their canonical forms.

Where a row has no prompt of its own, what both conversations begin with is the prompt, as in TRL's `extract_prompt`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tuner.data.turns import ROLES, Message, message, messages_of, shown
from tuner.errors import DataError

LABELS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
# How Anthropic's data sets write turns (Bai et al. 2022, https://arxiv.org/abs/2204.05862).
HH_TURN = re.compile(r"\n\n(Human|Assistant):(.*?)(?=\n\n(?:Human|Assistant):|\Z)", re.DOTALL)


def preference(row: dict[str, Any], unused: set[str], *_: str) -> dict[str, Any]:
    """`prompt` (or none), `chosen` and `rejected`: strings, or lists of messages that may repeat the prompt.

    Other values, and conversations without a common prompt, are a DataError.
    """
    answers = ("chosen", "rejected")
    prompt = _turns(row, "prompt", "user", unused) if "prompt" in row else []
    if not all(isinstance(row[column], str) for column in answers):
        chosen, rejected = (messages_of(row[column], column, unused) for column in answers)
    elif prompt:
        chosen, rejected = (_turns(row, column, "assistant", unused) for column in answers)
    else:
        chosen, rejected = _conversations([row[column] for column in answers])
    if prompt and chosen[0]["role"] == rejected[0]["role"] == "assistant":
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    common = _common(chosen[:-1], rejected[:-1])  # the last turn is an answer, also where both are the same
    if prompt and chosen[: len(prompt)] == rejected[: len(prompt)] == prompt:
        common = len(prompt)
    elif prompt and not any(prompt[-1]["content"].strip() in turn["content"] for turn in chosen[:common]):
        raise DataError("column 'chosen' and column 'rejected' are conversations that do not repeat column 'prompt'.")
    if common == 0 and {chosen[0]["role"], rejected[0]["role"]} != {"assistant"}:
        raise DataError("column 'chosen' and column 'rejected' do not begin alike, so they have no common prompt.")
    return {"prompt": chosen[:common], "chosen": chosen[common:], "rejected": rejected[common:]}


def unpaired(row: dict[str, Any], unused: set[str], *_: str) -> dict[str, Any]:
    """`prompt`, `completion` and `label`: whether the completion is desirable. Other values are a DataError."""
    label = LABELS.get(str(row["label"]).lower())
    if label is None:
        raise DataError(f"column 'label' must be true or false, not {shown(row['label'])}.")
    turns = {c: _turns(row, c, role, unused) for c, role in (("prompt", "user"), ("completion", "assistant"))}
    return {**turns, "label": label}


def _turns(row: dict[str, Any], column: str, role: str, unused: set[str]) -> list[Message]:
    """A list of messages, or a text as one of the role."""
    if isinstance(row[column], list):
        return messages_of(row[column], column, unused, answered=role == "assistant")
    return [message(role, row[column], f"{column!r}")]


def _conversations(texts: list[str]) -> list[list[Message]]:
    if all(map(HH_TURN.match, texts)):
        return [[message(ROLES[who.lower()], said.strip(), "") for who, said in HH_TURN.findall(t)] for t in texts]
    common = _common(*texts)
    common -= texts[0][:common].endswith(" ")  # as TRL has it: the space belongs to the answer
    return [[message("user", text[:common], ""), message("assistant", text[common:], "")] for text in texts]


def _common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many items both begin with."""
    shorter = min(len(one), len(other))
    return next((number for number in range(shorter) if one[number] != other[number]), shorter)
