"""Rows for preference learning: two answers to a prompt, or one that is judged; see `schema` for their canonical forms.

Where a row has no prompt of its own, what both conversations begin with is the prompt, as in TRL's `extract_prompt`.
"""

from __future__ import annotations

import re
from itertools import takewhile
from typing import Any

from tuner.data.turns import Message, message, messages_of, shown
from tuner.errors import DataError

LABELS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
# How Anthropic's data sets write turns (Bai et al. 2022, https://arxiv.org/abs/2204.05862).
HH_TURN = re.compile(r"\n\n(Human|Assistant):")


def preference(row: dict[str, Any], unused: set[str]) -> dict[str, Any]:
    """`prompt` (or none), `chosen` and `rejected`: strings, or lists of messages that may repeat the prompt.

    Other values, and conversations without a common prompt, are a DataError.
    """
    texts = [row["chosen"], row["rejected"]]
    if all(isinstance(text, str) for text in texts):
        plain = "prompt" in row
        chosen, rejected = ([message("assistant", t, "")] for t in texts) if plain else _texts_to_turns(*texts)
    else:
        chosen, rejected = (messages_of(row[column], column, unused) for column in ("chosen", "rejected"))
    prompt = _prompt(row["prompt"], unused) if "prompt" in row else None
    if prompt is not None and chosen[0]["role"] == rejected[0]["role"] == "assistant":
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    room = min(len(chosen), len(rejected)) - 1  # the last turn is an answer, also where both are the same
    pairs = zip(chosen[:room], rejected, strict=False)
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    if prompt is not None and chosen[: len(prompt)] == rejected[: len(prompt)] == prompt:
        common = len(prompt)
    elif prompt is not None and not any(prompt[-1]["content"].strip() in m["content"] for m in chosen[:common]):
        raise DataError("column 'chosen' and column 'rejected' are conversations that do not repeat column 'prompt'.")
    if common == 0 and {chosen[0]["role"], rejected[0]["role"]} != {"assistant"}:
        raise DataError("column 'chosen' and column 'rejected' do not begin alike, so they have no common prompt.")
    return {"prompt": chosen[:common], "chosen": chosen[common:], "rejected": rejected[common:]}


def unpaired(row: dict[str, Any], unused: set[str]) -> dict[str, Any]:
    """`prompt`, `completion` and `label`: whether the completion is desirable. Other values are a DataError."""
    label = LABELS.get(str(row["label"]).lower())
    if label is None:
        raise DataError(f"column 'label' must be true or false, not {shown(row['label'])}.")
    answer = row["completion"]
    text = isinstance(answer, str)
    turns = [message("assistant", answer, "")] if text else messages_of(answer, "completion", unused)
    return {"prompt": _prompt(row["prompt"], unused), "completion": turns, "label": label}


def _prompt(value: Any, unused: set[str]) -> list[Message]:
    if isinstance(value, list):
        return messages_of(value, "prompt", unused, answered=False)
    return [message("user", value, "'prompt'")]


def _texts_to_turns(chosen: str, rejected: str) -> tuple[list[Message], list[Message]]:
    if HH_TURN.match(chosen) and HH_TURN.match(rejected):
        return _hh_turns(chosen), _hh_turns(rejected)
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False)))
    common -= chosen[:common].endswith(" ")  # as TRL has it: the space belongs to the answer
    asked = message("user", chosen[:common], "'chosen'")
    return [asked, message("assistant", chosen[common:], "")], [asked, message("assistant", rejected[common:], "")]


def _hh_turns(text: str) -> list[Message]:
    _, *parts = HH_TURN.split(text)
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[who], "content": said.strip()} for who, said in zip(parts[::2], parts[1::2], strict=True)]
