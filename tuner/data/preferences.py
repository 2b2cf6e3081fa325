"""Judged answers: one that is good or bad, or two of which one is better, with the prompt that they answer.

A prompt has a column of its own, or is what whole conversations begin with; LLaMA-Factory, Intel's orca pairs and
OpenAI have it in other columns.
"""

from __future__ import annotations

import math
import re
from typing import Any

from tuner.data import tools
from tuner.data.columns import flag
from tuner.data.json_text import read_json
from tuner.data.questions import answer_to, either, prompt_of, question, refuse_templated
from tuner.data.turns import Row, as_number, message, messages_of, says_something, shown
from tuner.data.written import ROLES, is_dialogue, turns_in
from tuner.errors import DataError
from tuner.text.answers import Message, common_length

# Columns beside a conversation that hold what was rejected in place of its end, or of all of it (ms-swift).
REJECTED = ("rejected_response", "rejected_messages")
LABELS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
# Columns that may be the prompt of two answers.
ASKED = ("prompt", "question", "query", "input", "inputs", "instruction", "request", "problem")


def unpaired(row: Row, unused: set[str], asked: str, answer: str, label: str) -> Row:
    """A prompt and one answer, with whether it is desirable."""
    prompt = prompt_of(row, unused)
    said = answer_to(prompt, row, answer, unused)
    judged = max((place + 1 for place, turn in enumerate(said) if turn["role"] == "user"), default=0)
    if not said[judged:]:
        raise DataError(f"column {answer!r} must end with the judged answer.")
    return {"prompt": [*prompt, *said[:judged]], "completion": said[judged:], "label": _judged(row, label)}


def unpaired_conversation(row: Row, unused: set[str], column: str, label: str) -> Row:
    """A conversation whose last answer is judged."""
    turns = messages_of(row[column], column, unused)
    if turns[-1]["role"] != "assistant":
        raise DataError(f"column {column!r} must end with the judged answer, not a turn of the {turns[-1]['role']}.")
    return {"prompt": turns[:-1], "completion": turns[-1:], "label": _judged(row, label)}


def unpaired_instruction(row: Row, unused: set[str], asked: str, answer: str, label: str) -> Row:
    """Alpaca's columns, judged."""
    completion = [message("assistant", row[answer], f"{answer!r}")]
    return {"prompt": question(row, asked), "completion": completion, "label": _judged(row, label)}


def is_judgement(value: Any) -> bool:
    """Whether a value says that an answer is good, or bad; a class's number does not."""
    return isinstance(value, bool) or str(value).lower() in ("true", "false")


def is_bad(value: Any) -> bool:
    """Whether a value says that an answer is bad."""
    return is_judgement(value) and str(value).lower() == "false"


def _judged(row: Row, column: str) -> bool:
    label = LABELS.get(str(row[column]).lower())
    if label is None:
        raise DataError(f"column {column!r} must be true or false, not {shown(row[column])}.")
    return label


def preference(row: Row, unused: set[str], *_: str) -> Row:
    """Two answers, or conversations that begin alike. Without a column `prompt` that is the prompt, as in TRL's
    `extract_prompt`; else the conversations must repeat it, where they do not begin with an answer."""
    texts = [turns_in(row[column]) for column in ("chosen", "rejected")]
    for column, text in zip(("chosen", "rejected"), texts, strict=True):
        if not isinstance(text, str | list):
            raise DataError(f"column {column!r} must be a list of turns or a string, not {shown(text)}.")
    prompt = prompt_of(row, unused) if "prompt" in row else []
    if not prompt and not any(map(_begins_with_a_prompt, texts)):
        for column in row:
            repeated = all(isinstance(text, str) and str(row[column]) in text for text in texts)
            known = column.strip().lower() in ASKED or _speaker_of(turns_in(row[column])) in ("user", "system")
            if known and says_something(row[column]) and not repeated:
                raise DataError(f"is the column {column!r} the prompt? Pass {flag({column: 'prompt'})}, or drop it.")
    if prompt or not all(isinstance(text, str) for text in texts):
        chosen, rejected = (either(row, column, "assistant", unused) for column in ("chosen", "rejected"))
    else:
        chosen, rejected = _conversations(texts)
    answers_only = chosen[0]["role"] == rejected[0]["role"] == "assistant"
    if prompt and answers_only:
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    common = common_length(chosen[:-1], rejected[:-1])  # the last turn is an answer, also where both are the same
    if prompt and chosen[: len(prompt)] == rejected[: len(prompt)] == prompt:
        common = common if isinstance(row["prompt"], str) else len(prompt)
    elif prompt and (again := _repeated(prompt, chosen[:common])):
        return {"prompt": [*prompt, *chosen[again:common]], "chosen": chosen[common:], "rejected": rejected[common:]}
    elif prompt and not any(_stands_in(prompt, chosen[at : at + len(prompt)]) for at in range(common)):
        raise DataError("column 'chosen' and column 'rejected' are conversations that do not repeat column 'prompt'.")
    if common == 0:
        raise DataError("column 'chosen' and column 'rejected' do not begin alike, so they have no common prompt.")
    return {"prompt": chosen[:common], "chosen": chosen[common:], "rejected": rejected[common:]}


def _repeated(prompt: list[Message], turns: list[Message]) -> int:
    """How many turns are the prompt's last ones again."""
    sizes = range(min(len(prompt) - 1, len(turns)), 0, -1)
    return next((size for size in sizes if _same(prompt[-size:], turns[:size])), 0)


def _stands_in(prompt: list[Message], turns: list[Message]) -> bool:
    """Whether turns are a prompt, or one turn has it as a part, in whole words."""
    if len(prompt) > 1:
        return _same(prompt, turns)
    return bool(re.search(rf"(?<!\w){re.escape(prompt[0]['content'].strip())}(?!\w)", turns[0]["content"]))


def _same(some: list[Message], others: list[Message]) -> bool:
    said = [[(turn["role"], turn["content"].strip()) for turn in turns] for turns in (some, others)]
    return said[0] == said[1]


def asked_elsewhere(row: Row, unused: set[str], column: str, *_: str) -> Row:
    """A preference whose prompt is in another column: messages, or a question with what is beside it."""
    as_it_is = column == "instruction" and isinstance(row[column], str)  # `question` reads it with what is beside it
    turns = row[column] if as_it_is else turns_in(row[column], asked=True)
    alone = {name: value for name, value in row.items() if name != "prompt"}
    answers = [turns_in(row[name]) for name in ("chosen", "rejected")]
    whole = all(map(_begins_with_a_prompt, answers))
    whole = whole or all(isinstance(said, str) and isinstance(turns, str) and turns in said for said in answers)
    if whole or not says_something(turns):  # then it is beside them
        return preference(alone, unused)
    if isinstance(turns, list) and _speaker(turns[-1]) == "assistant":
        raise DataError(f"column {column!r} ends with an answer, and 'chosen' is another. Drop its last turn.")
    if is_dialogue(row[column]) and not as_it_is:
        return preference({**alone, "prompt": row[column]}, unused)
    prompt = messages_of(turns, column, unused, answered=False) if isinstance(turns, list) else question(row, column)
    return preference({**row, "prompt": prompt, "history": None}, unused)


def _begins_with_a_prompt(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and _speaker(value[0]) != "assistant"


def _speaker_of(turns: Any) -> str | None:
    return _speaker(turns[0]) if isinstance(turns, list) and turns else None


def _speaker(turn: Any) -> str | None:
    return ROLES.get(str(turn.get("role") or turn.get("from")).lower()) if isinstance(turn, dict) else None


def rejected_beside(row: Row, unused: set[str], column: str, other: str, *_: str) -> Row:
    """ms-swift's preferences: a conversation that ends with the chosen answer, and beside it what was rejected: the
    answer, or the whole conversation. NeMo's have the chosen answer beside it too."""
    if says_something(row.get("chosen_response")):
        return preference({"prompt": row[column], "chosen": row["chosen_response"], "rejected": row[other]}, unused)
    if _begins_with_a_prompt(turns_in(row[other])):
        return preference({"chosen": row[column], "rejected": row[other]}, unused)
    turns = messages_of(row[column], column, unused)
    if turns[-1]["role"] != "assistant" or len(turns) < 2:
        raise DataError(f"column {column!r} must be a question and the chosen answer, the counterpart of {other!r}.")
    rejected = either(row, other, "assistant", unused)
    return {"prompt": turns[:-1], "chosen": turns[-1:], "rejected": rejected}


def openai(row: Row, unused: set[str], *_: str) -> Row:
    """OpenAI's preferences: `input` with messages and tools, `preferred_output` and `non_preferred_output`."""
    asked = row["input"]
    if isinstance(asked, str):
        try:
            asked = read_json(asked)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"column 'input' must be an object with 'messages': {str(error).splitlines()[0]}."
            ) from error
    if not isinstance(asked, dict) or "messages" not in asked:
        raise DataError(f"column 'input' must be an object with 'messages', not {shown(asked)}.")
    for key in asked.keys() - {"messages", *tools.COLUMNS}:
        if says_something(asked[key]):
            unused.add(f"key {key!r} of 'input'")
    pair = {"chosen": row["preferred_output"], "rejected": row["non_preferred_output"]}
    return {**preference({"prompt": asked["messages"], **pair}, unused), "tools": tools.tools_of(asked)}


def ranked(row: Row, unused: set[str], *columns: str) -> Row:
    """A preference, with by how much the chosen one is better at least (`margin`, 0 where nothing is said), and whether
    neither is (`tie`)."""
    margin, tie = row.get("margin"), row.get("tie")
    tied = False if tie is None else LABELS.get(str(tie).lower())
    if tied is None:
        raise DataError(f"column 'tie' must be true or false, not {shown(tie)}.")
    margin = 0.0 if margin is None else as_number(margin)
    if margin is None or not math.isfinite(margin):
        raise DataError(f"column 'margin' must be a finite number, not {shown(row['margin'])}.")
    if tied and margin:
        raise DataError(f"column 'margin' is {margin:g}, but column 'tie' says that neither answer is better.")
    special: dict[str, Any] = {"non_preferred_output": openai, **dict.fromkeys(REJECTED, rejected_beside)}
    first, last = (*columns, "chosen")[0], ("rejected", *columns)[-1]
    convert = special.get(last) or (preference if first in ("prompt", "chosen") else asked_elsewhere)
    found = convert(row, unused, *columns)
    return {**found, "margin": margin, "tie": tied}


def _conversations(texts: list[str]) -> list[list[Message]]:
    refuse_templated(texts[0], "chosen")
    common = common_length(*texts)
    common -= texts[0][:common].endswith(" ")  # as TRL has it: the space belongs to the answer
    if not texts[0][:common].strip():
        raise DataError("column 'chosen' and column 'rejected' do not begin alike, so they have no common prompt.")
    return [[message("user", text[:common], ""), message("assistant", text[common:], "")] for text in texts]
