"""Turns of a conversation as data sets write them, made canonical: a role and a content, both strings.

Keys that mean something to the formats that have them (OpenAI's chat format, ShareGPT, axolotl, LLaMA-Factory), and
that training here cannot honour, are refused where they say something. Other keys are passed over, and told.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from tuner.errors import DataError
from tuner.text.answers import common_length

Message = dict[str, str]
Row = dict[str, Any]

# ShareGPT and its relatives name the speakers otherwise.
ROLES = {
    "system": "system",
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model"), "assistant"),
}
TOOL_ROLES = ("tool", "function", "function_call", "tool_call", "tool_response", "observation", "ipython")
SPOKEN = {"role", "content", "from", "value"}
NO_TOOLS = "tool use is not trained here"
MEDIA = dict.fromkeys(("images", "image", "audio", "audios", "videos", "video"), "only text is trained on")
# What a turn says beside its content, and what its user can do.
REFUSED_KEYS = {
    **dict.fromkeys(("reasoning_content", "reasoning", "thinking"), "write the reasoning into the content"),
    **dict.fromkeys(("tool_calls", "function_call", "tool_call_id"), NO_TOOLS),
    **MEDIA,
}
REFUSED_COLUMNS = {
    **dict.fromkeys(("tools", "functions"), NO_TOOLS),
    **MEDIA,
    "history": "it belongs beside 'instruction' or a 'prompt' that is a string",
}
LABELS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
# How Anthropic's data sets write turns (Bai et al. 2022, https://arxiv.org/abs/2204.05862).
HH_TURN = re.compile(r"\n\n(Human|Assistant):(.*?)(?=\n\n(?:Human|Assistant):|\Z)", re.DOTALL)
# OpenAI's and axolotl's flags for turns that are not learnt.
LEARNT_KEYS = ("weight", "train", "training")


def messages_of(turns: Any, column: str, unused: set[str], answered: bool = True) -> list[Message]:
    """A list of turns, or a JSON text of one, as canonical messages; a DataError for anything else, which names column
    and turn. `unused` takes the names of keys that say something and are not used; turns of which none is the
    assistant's are refused where they must be `answered`."""
    turns = parsed(turns)
    if not isinstance(turns, list) or not turns:
        raise DataError(f"column {column!r} must be a list of turns, not {shown(turns)}.")
    messages = []
    for number, turn in enumerate(turns):
        where = f"column {column!r}, turn {number}"
        if not isinstance(turn, dict):
            raise DataError(f"{where} must be an object, not {shown(turn)}.")
        speaker = turn.get("role") or turn.get("from")
        role = ROLES.get(str(speaker).lower())
        if speaker is None:
            given = {name: value for name, value in turn.items() if value is not None}  # Arrow adds the others' keys
            raise DataError(f"{where} has neither 'role' nor 'from': {shown(given)}.")
        if role is None:
            if str(speaker).lower() in TOOL_ROLES:
                raise DataError(f"{where}: the role {speaker!r} is not supported: {NO_TOOLS}. Drop such rows.")
            raise DataError(f"{where}: unknown role {speaker!r}; known are {', '.join(ROLES)}.")
        for key in turn.keys() - SPOKEN:
            value = turn[key]
            if key in LEARNT_KEYS:
                if value not in (None, 1) if role == "assistant" else value and key != "weight":
                    raise DataError(
                        f"{where}: {key!r} is {value}, but here every turn of the assistant is learnt and no other. "
                        "Drop the key to accept that, or drop the turn."
                    )
            elif says_something(value):
                unused.add(passed_over("message key", key, REFUSED_KEYS, f"{where}: "))
        content = turn["content"] if turn.get("content") is not None else turn.get("value")
        messages.append(message(role, content, f"{column!r}, turn {number}: the content"))
    if answered and not any(m["role"] == "assistant" for m in messages):
        raise DataError(f"column {column!r} has no assistant turn, so there is nothing to learn.")
    return messages


def passed_over(what: str, name: str, refused: dict[str, str], where: str = "") -> str:
    """What to call a column or key that is not used; a DataError where that is `refused`."""
    if name in refused:
        raise DataError(f"{where}the {what} {name!r} is not supported: {refused[name]}. Drop it, or such rows.")
    return f"{what} {name!r}"


def message(role: str, content: Any, where: str) -> Message:
    """One canonical message; a DataError where the content is not text, nor parts that all are
    (`[{"type": "text", "text": ...}]`)."""
    if isinstance(content, list) and content:
        parts: list[Any] = [p.get("text") if isinstance(p, dict) and p.get("type") == "text" else None for p in content]
        if all(isinstance(part, str) for part in parts):
            content = "".join(parts)
    return {"role": role, "content": text_of(content, where)}


def text_of(value: Any, where: str) -> str:
    """A column's text; a DataError where it is none."""
    if not isinstance(value, str):
        raise DataError(f"column {where} must be a string, not {shown(value)}.")
    return value


def history_of(value: Any) -> list[Message]:
    """Earlier `[question, answer]` pairs, as LLaMA-Factory's `history` holds them; a DataError for anything else."""
    if not says_something(value):
        return []
    pairs = parsed(value)
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise DataError(f"column 'history' must be a list of [question, answer] pairs, not {shown(value)}.")
    return [
        message(role, content, f"'history', pair {number}")
        for number, pair in enumerate(pairs)
        for role, content in zip(("user", "assistant"), pair, strict=True)
    ]


def parsed(value: Any) -> Any:
    """The list that a JSON text says, as in a field of a CSV; else the value."""
    try:
        found = json.loads(value) if isinstance(value, str) else None
    except (ValueError, RecursionError):
        return value
    return found if isinstance(found, list) else value


def says_something(value: Any) -> bool:
    """Whether a key or column is more than there: neither null nor empty, nor JSON text of that."""
    return value is not None and value not in ("", [], {}, "[]", "{}", "null")


def shown(value: Any) -> str:
    """A value's type and beginning, for messages."""
    text = repr(value)
    return "null" if value is None else f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def conversation(row: Row, unused: set[str], column: str) -> Row:
    """A column of turns."""
    return {"messages": messages_of(row[column], column, unused)}


def answered(row: Row, unused: set[str], asked: str, answer: str) -> Row:
    """A question and its answer, with what instruction formats have beside them."""
    if asked == "prompt" and (isinstance(row[asked], list) or isinstance(row[answer], list)):
        if says_something(row.get("history")):
            raise DataError(f"the column 'history' is not supported: {REFUSED_COLUMNS['history']}.")
        prompt = messages_of(row[asked], asked, unused, answered=False)
        return {"messages": prompt + messages_of(row[answer], answer, unused)}
    question = message("user", row[asked], f"{asked!r}")
    if asked == "instruction" and row.get("input"):
        question["content"] += "\n\n" + text_of(row["input"], "'input'")
    return {"messages": [*history_of(row.get("history")), question, message("assistant", row[answer], f"{answer!r}")]}


def _either(row: Row, column: str, role: str, unused: set[str]) -> list[Message]:
    """A list of messages, or a text as one of the role."""
    if isinstance(row[column], list):
        return messages_of(row[column], column, unused, answered=role == "assistant")
    return [message(role, row[column], f"{column!r}")]


def unpaired(row: Row, unused: set[str], *_: str) -> Row:
    """A prompt and one answer, with whether it is desirable."""
    label = LABELS.get(str(row["label"]).lower())
    if label is None:
        raise DataError(f"column 'label' must be true or false, not {shown(row['label'])}.")
    prompt, completion = _either(row, "prompt", "user", unused), _either(row, "completion", "assistant", unused)
    return {"prompt": prompt, "completion": completion, "label": label}


def preference(row: Row, unused: set[str], *_: str) -> Row:
    """Two answers, or conversations that begin alike. Without a column `prompt` that is the prompt, as in TRL's
    `extract_prompt`; else the conversations must repeat it, where they do not begin with an answer."""
    for column in ("chosen", "rejected"):
        if not isinstance(row[column], str | list):
            raise DataError(f"column {column!r} must be a list of turns or a string, not {shown(row[column])}.")
    prompt, texts = _either(row, "prompt", "user", unused) if "prompt" in row else [], [row["chosen"], row["rejected"]]
    if not all(isinstance(text, str) for text in texts):
        chosen, rejected = (messages_of(row[column], column, unused) for column in ("chosen", "rejected"))
    elif prompt:
        chosen, rejected = ([message("assistant", text, "")] for text in texts)
    else:
        chosen, rejected = _conversations(texts)
    answers_only = chosen[0]["role"] == rejected[0]["role"] == "assistant"
    if prompt and answers_only:
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    common = common_length(chosen[:-1], rejected[:-1])  # the last turn is an answer, also where both are the same
    if prompt and chosen[: len(prompt)] == rejected[: len(prompt)] == prompt:
        common = len(prompt)
    elif prompt and not any(prompt[-1]["content"].strip() in turn["content"] for turn in chosen[:common]):
        raise DataError("column 'chosen' and column 'rejected' are conversations that do not repeat column 'prompt'.")
    if common == 0 and not answers_only:
        raise DataError("column 'chosen' and column 'rejected' do not begin alike, so they have no common prompt.")
    return {"prompt": chosen[:common], "chosen": chosen[common:], "rejected": rejected[common:]}


def ranked(row: Row, unused: set[str], *_: str) -> Row:
    """A preference, with by how much the chosen one is better at least (`margin`, 0 where nothing is said), and whether
    neither is (`tie`)."""
    margin, tie = row.get("margin"), row.get("tie")
    tied = False if tie is None else LABELS.get(str(tie).lower())
    if tied is None:
        raise DataError(f"column 'tie' must be true or false, not {shown(tie)}.")
    margin = 0.0 if margin is None else margin
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not math.isfinite(margin):
        raise DataError(f"column 'margin' must be a finite number, not {shown(margin)}.")
    if tied and margin:
        raise DataError(f"column 'margin' is {margin:g}, but column 'tie' says that neither answer is better.")
    return {**preference(row, unused), "margin": float(margin), "tie": tied}


def _conversations(texts: list[str]) -> list[list[Message]]:
    if all(map(HH_TURN.match, texts)):
        return [[message(ROLES[who.lower()], said.strip(), "") for who, said in HH_TURN.findall(t)] for t in texts]
    common = common_length(*texts)
    common -= texts[0][:common].endswith(" ")  # as TRL has it: the space belongs to the answer
    return [[message("user", text[:common], ""), message("assistant", text[common:], "")] for text in texts]
