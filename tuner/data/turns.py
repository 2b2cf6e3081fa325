"""Turns of a conversation as data sets write them, made canonical: a role and a content, both strings, and beside them
what the turn has of this:

    tool_calls, tool_call_id, name   calls, and whose result a turn of the role `tool` is (see `tools`)
    reasoning_content, thinking      what the assistant thought, under the two names that chat templates read
    weight                           0 where a turn of the assistant is read and not learnt

Keys that mean something to the formats that have them (OpenAI's chat format, ShareGPT, axolotl, LLaMA-Factory), and
that training here cannot honour, are refused where they say something. Other keys are passed over, and told.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from tuner.data import tools
from tuner.errors import DataError
from tuner.text.answers import Message, common_length, learnt

Row = dict[str, Any]

# ShareGPT and its relatives name the speakers otherwise.
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model", *tools.CALLERS), "assistant"),
    **dict.fromkeys(tools.RESULTS, "tool"),
}
SPOKEN = {"role", "content", "from", "value"}
REASONING = ("reasoning_content", "thinking", "reasoning")
# Of a result: whose it is.
RESULT_KEYS = ("tool_call_id", "name")
MEDIA = dict.fromkeys(("images", "image", "audio", "audios", "videos", "video"), "only text is trained on")
# What a turn says beside its content, and what its user can do.
REFUSED_KEYS = {**MEDIA, **dict.fromkeys(tools.KEYS, "only the assistant calls tools")}
REFUSED_COLUMNS = {
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
    and turn. `unused` takes the names of keys that say something and are not used; turns of which none is an answer to
    learn are refused where they must be `answered`."""
    turns = parsed(turns)
    if not isinstance(turns, list) or not turns:
        raise DataError(f"column {column!r} must be a list of turns, not {shown(turns)}.")
    messages = [_turn(turn, column, number, unused) for number, turn in enumerate(turns)]
    if answered and not any(map(learnt, messages)):
        left_out = " but what has the weight 0" if any("weight" in turn for turn in messages) else ""
        raise DataError(f"column {column!r} has no assistant turn{left_out}, so there is nothing to learn.")
    return messages


def plain(messages: list[Message], column: str) -> list[Message]:
    """The messages, where each is a role and a content and nothing more; else a DataError."""
    for number, turn in enumerate(messages):
        more = [key for key in turn if key not in ("role", "content")]
        if turn["role"] == "tool" or more:
            said = f"the key {more[0]!r}" if more else "the role 'tool'"
            raise DataError(f"column {column!r}, turn {number}: {said} is not supported here. Drop such rows.")
    return messages


def _turn(turn: Any, column: str, number: int, unused: set[str]) -> Message:
    where = f"column {column!r}, turn {number}"
    if not isinstance(turn, dict):
        raise DataError(f"{where} must be an object, not {shown(turn)}.")
    speaker = turn.get("role") or turn.get("from")
    if speaker is None:
        given = {name: value for name, value in turn.items() if value is not None}  # Arrow adds the others' keys
        raise DataError(f"{where} has neither 'role' nor 'from': {shown(given)}.")
    role = ROLES.get(str(speaker).lower())
    if role is None:
        raise DataError(f"{where}: unknown role {speaker!r}; known are {', '.join(ROLES)}.")
    content = turn["content"] if turn.get("content") is not None else turn.get("value")
    if role == "tool" and isinstance(content, dict):
        content = json.dumps(content, ensure_ascii=False)
    more: Message = {}
    if str(speaker).lower() in tools.CALLERS:
        more["tool_calls"], content = tools.calls(content, where), ""
    for key, value in turn.items():
        if key in SPOKEN:
            continue
        if key in LEARNT_KEYS:
            more |= _weight(role, key, value, where)
        elif not says_something(value):
            continue
        elif role == "assistant" and key in tools.KEYS:
            more["tool_calls"] = tools.calls(value, f"{where}: {key!r}")
            content = "" if content is None else content
        elif role == "assistant" and key in REASONING:
            more |= dict.fromkeys(REASONING[:2], text_of(value, f"{column!r}, turn {number}: {key!r}"))
        elif role == "tool" and key in RESULT_KEYS:
            more[key] = value
        else:
            unused.add(passed_over("message key", key, REFUSED_KEYS, f"{where}: "))
    return {**message(role, content, f"{column!r}, turn {number}: the content"), **more}


def _weight(role: str, key: str, value: Any, where: str) -> Message:
    """Whether a turn is learnt, as OpenAI's and axolotl's formats say it."""
    if role == "assistant" and value in (None, 0, 1):
        return {} if value in (None, 1) else {"weight": 0}
    if role == "assistant" or (value and key != "weight"):
        raise DataError(
            f"{where}: {key!r} is {value}, but here a turn of the assistant is learnt (1) or not (0), and no other. "
            "Drop the key to accept that, or drop the turn."
        )
    return {}


def said(turn: Message) -> str:
    """What a turn says, as text: its content, and its calls as JSON."""
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in turn.get("tool_calls", ())]
    return "\n".join(filter(None, (turn["content"], *calls)))


def passed_over(what: str, name: str, refused: dict[str, str], where: str = "") -> str:
    """What to call a column or key that is not used; a DataError where that is `refused`."""
    if name in refused:
        raise DataError(f"{where}the {what} {name!r} is not supported: {refused[name]}. Drop it, or such rows.")
    return f"{what} {name!r}"


def message(role: str, content: Any, where: str) -> Message:
    """A role and a content; a DataError where that is neither text nor parts that all are, as
    `[{"type": "text", "text": ...}]`."""
    if isinstance(content, list) and content:
        kinds = {part.get("type", "text") if isinstance(part, dict) else "text" for part in content}
        if other := sorted(map(str, kinds - {"text"})):
            raise DataError(f"column {where} has a part of the type {other[0]!r}: only text is trained on.")
        parts: list[Any] = [part.get("text") if isinstance(part, dict) else part for part in content]
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
