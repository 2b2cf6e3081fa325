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
from typing import Any

from tuner.data import tools
from tuner.data.json_text import read_json
from tuner.errors import DataError
from tuner.text.answers import Message, learnt

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
PART_MEDIA = (*MEDIA, "image_url", "audio_url", "video_url", "input_audio", "file")
# What a turn says beside its content, and what its user can do.
REFUSED_KEYS = {
    **MEDIA,
    **dict.fromkeys(tools.KEYS, "only the assistant calls tools"),
    **dict.fromkeys(tools.COLUMNS, "what may be called belongs in a column of its own"),
    "training_detail": "a turn is learnt, or not (train)",
    "refusal": "what the assistant says is its 'content'",
}
REFUSED_COLUMNS = {
    **MEDIA,
    "history": "it belongs beside 'instruction' or a 'prompt' that is a string",
}
# Columns beside a conversation that are its system message.
SYSTEM_COLUMNS = ("system", "system_prompt")
# OpenAI's, axolotl's and ms-swift's flags for turns that are not learnt.
LEARNT_KEYS = ("weight", "train", "training", "loss")


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
    if len({ROLES.get(str(turn[key]).lower()) for key in ("role", "from") if turn.get(key)}) > 1:
        raise DataError(f"{where} has 'role' and 'from', which say two things. Drop one.")
    if speaker is None:
        given = {name: value for name, value in turn.items() if value is not None}  # Arrow adds the others' keys
        raise DataError(f"{where} has neither 'role' nor 'from': {shown(given)}.")
    role = ROLES.get(str(speaker).lower())
    if role is None:
        raise DataError(f"{where}: unknown role {speaker!r}; known are {', '.join(ROLES)}.")
    content, value = turn.get("content"), turn.get("value")
    if content and value and content != value:
        raise DataError(f"{where} has 'content' and 'value', which say two things. Drop one.")
    content = value if not content and value is not None else content
    if role == "tool" and isinstance(content, dict):
        content = json.dumps(content, ensure_ascii=False)
    more: Message = {}
    if str(speaker).lower() in tools.CALLERS:
        more["tool_calls"], content = tools.calls(content, where), ""
    for key, value in turn.items():
        if key in SPOKEN:
            continue
        if key in LEARNT_KEYS and (key != "loss" or value in (None, True, False)):  # it may also be a measured one
            more |= _weight(role, key, value, where)
        elif not says_something(value):
            continue
        elif role == "assistant" and key in tools.KEYS:
            found: Message = {"tool_calls": tools.calls(value, f"{where}: {key!r}")}
            more = _once(more, found, "calls", where)
            content = "" if content is None else content
        elif role == "assistant" and key in REASONING:
            found = dict.fromkeys(REASONING[:2], text_of(value, f"{column!r}, turn {number}: {key!r}"))
            more = _once(more, found, "reasoning", where)
        elif role == "tool" and key in RESULT_KEYS:
            more[key] = value
        else:
            unused.add(passed_over("message key", key, REFUSED_KEYS, f"{where}: "))
    return {**message(role, content, f"{column!r}, turn {number}: the content"), **more}


def _once(known: Message, found: Message, what: str, where: str) -> Message:
    """What is known of a turn and what was found; a DataError where another key said it otherwise."""
    if any(known.get(key, value) != value for key, value in found.items()):
        raise DataError(f"{where} has {what} under two keys, which say two things. Drop one.")
    return known | found


def _weight(role: str, key: str, value: Any, where: str) -> Message:
    """Whether a turn is learnt, as OpenAI's and axolotl's formats say it."""
    if role == "assistant" and value in (None, 0, 1):
        return {} if value in (None, 1) else {"weight": 0}
    if role == "assistant" or (value and key != "weight"):
        raise DataError(
            f"{where}: {key!r} is {value!r}, but here a turn of the assistant is learnt (1) or not (0), and no "
            "other. Drop the key to accept that, or drop the turn."
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
        other = sorted(map(str, kinds - {"text"}))
        keys = (key for part in content if isinstance(part, dict) for key in part if says_something(part[key]))
        if other := other or [key for key in keys if key in PART_MEDIA]:
            raise DataError(f"column {where} has a part of the type {other[0]!r}: only text is trained on.")
        parts: list[Any] = [part.get("text") if isinstance(part, dict) else part for part in content]
        if len(parts) > 1 and not any(isinstance(part, dict) for part in content):
            raise DataError(f"column {where} is a list of {len(parts)} texts, of which one is needed.")
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


def add_system(row: Row, messages: list[Message]) -> None:
    """Begin a row's conversation with the system message that a column beside it holds; a DataError where it begins
    with another."""
    for column in SYSTEM_COLUMNS:
        if says_something(row.get(column)):
            system = message("system", row[column], f"{column!r}")
            if not messages or messages[0]["role"] != "system":
                messages.insert(0, system)
            elif messages[0] != system:
                raise DataError(f"the column {column!r} and the first message are two system messages. Drop one.")


def parsed(value: Any) -> Any:
    """The list that a JSON text says, as in a field of a CSV; else the value."""
    try:
        found = read_json(value) if isinstance(value, str) else None
    except (ValueError, RecursionError):
        return value
    return found if isinstance(found, list) else value


def says_something(value: Any) -> bool:
    """Whether a key or column is more than there: neither null nor empty, nor JSON text of that."""
    return value is not None and value not in ("", [], {}, "[]", "{}", "null")


def as_number(value: Any) -> float | None:
    """A number, or what a text of one says, as a CSV has it; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def shown(value: Any) -> str:
    """A value's type and beginning, for messages."""
    text = repr(value)
    return "null" if value is None else f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def conversation(row: Row, unused: set[str], column: str) -> Row:
    """A column of turns."""
    return {"messages": messages_of(row[column], column, unused)}


def answered(row: Row, unused: set[str], asked: str, answer: str) -> Row:
    """A question and its answer, with what instruction formats have beside them."""
    first, last = turns_in(row[asked]), turns_in(row[answer])
    if asked == "prompt" and (isinstance(first, list) or isinstance(last, list)):
        return {"messages": [*map(read, prompt_of(row, unused)), *either(row, answer, "assistant", unused)]}
    return {"messages": [*question(row, asked), message("assistant", row[answer], f"{answer!r}")]}


def refuse_history(row: Row) -> None:
    """A DataError where there are earlier questions beside messages, which say them already."""
    if says_something(row.get("history")):
        raise DataError(f"the column 'history' is not supported: {REFUSED_COLUMNS['history']}.")


def prompt_of(row: Row, unused: set[str]) -> list[Message]:
    """The column `prompt`: messages, or a text with the earlier questions beside it."""
    if isinstance(turns_in(row["prompt"]), str):
        return question(row, "prompt")
    refuse_history(row)
    return either(row, "prompt", "user", unused)


def question(row: Row, asked: str) -> list[Message]:
    """What is asked, with Alpaca's `input` and LLaMA-Factory's `history`."""
    found = message("user", row[asked], f"{asked!r}")
    if asked == "instruction" and row.get("input"):
        found["content"] = "\n\n".join(filter(None, (found["content"], text_of(row["input"], "'input'"))))
    return [*history_of(row.get("history")), found]


def read(turn: Message) -> Message:
    """A turn that is not learnt: in TRL's format a prompt is not, whoever speaks in it."""
    return {**turn, "weight": 0} if turn["role"] == "assistant" else turn


def either(row: Row, column: str, role: str, unused: set[str]) -> list[Message]:
    """A list of messages, or a text as one of the role."""
    found = turns_in(row[column])
    if isinstance(found, list):
        return messages_of(found, column, unused, answered=role == "assistant")
    return [message(role, found, f"{column!r}")]


def turns_in(value: Any) -> Any:
    """A column's turns: one alone as a list of one, and of a JSON text the list, as a CSV has it; else the value. An
    answer may be JSON too: turns are a known role and what it says."""
    if not isinstance(value, str):
        return [value] if isinstance(value, dict) else value
    found = parsed(value)
    return found if isinstance(found, list) and found and all(map(_is_turn, found)) else value


def _is_turn(value: Any) -> bool:
    spoken = isinstance(value, dict) and {"content", "value", *tools.KEYS} & value.keys()
    return bool(spoken) and str(value.get("role") or value.get("from")).lower() in ROLES
