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
import re
from typing import Any

from tuner.data import tools
from tuner.data.written import ROLES, is_dialogue, parsed, spelled_out, turns_in
from tuner.errors import DataError
from tuner.text.answers import Message, learnt

Row = dict[str, Any]

SPOKEN = {"role", "content", "from", "value"}
REASONING = ("reasoning_content", "thinking", "reasoning")
# A result as Hermes' template writes it, and its data sets have it.
RESULT = re.compile(r"\s*<tool_response>\s*(.*?)\s*</tool_response>\s*", re.DOTALL)
# Of a result: whose it is.
RESULT_KEYS = ("tool_call_id", "name")
MEDIA = dict.fromkeys(
    ("images", "image", "audio", "audios", "videos", "video", "image_path", "image_paths", "audio_path", "video_path"),
    "only text is trained on",
)
PART_MEDIA = (*MEDIA, "image_url", "audio_url", "video_url", "input_audio", "file")
# What a turn says beside its content, and what its user can do.
REFUSED_KEYS = {
    **MEDIA,
    **dict.fromkeys(tools.KEYS, "only the assistant calls tools"),
    **dict.fromkeys(tools.COLUMNS, "what may be called belongs in a column of its own"),
    **dict.fromkeys(("train_detail", "training_detail"), "a turn is learnt, or not (train)"),
    "refusal": "what the assistant says is its 'content'",
}
REFUSED_COLUMNS = {
    **MEDIA,
    "history": "it belongs beside 'instruction' or a 'prompt' that is a string",
}
# Columns of whole conversations.
WHOLE = ("messages", "conversations")
# OpenAI's, axolotl's and ms-swift's flags for turns that are not learnt.
LEARNT_KEYS = ("weight", "train", "training", "loss", "loss_weight")
# Keys of a part of the content that hold its text.
PART_TEXTS = ("text", "content", "value")


def messages_of(turns: Any, column: str, unused: set[str], answered: bool = True) -> list[Message]:
    """A list of turns, or a text of one, as canonical messages; a DataError for anything else, which names column and
    turn. Calls that have turns of their own are part of the assistant's before, as in ms-swift. `unused` takes the
    names of keys that say something and are not used; turns of which none is an answer to learn are refused where they
    must be `answered`."""
    turns = turns_in(turns, asked=True) if is_dialogue(turns) else parsed(turns)
    turns = spelled_out(turns) if column in WHOLE else turns
    if not isinstance(turns, list) or not turns:
        raise DataError(f"column {column!r} must be a list of turns, not {shown(turns)}.")
    messages: list[Message] = []
    for number, turn in enumerate(turns):
        said = _turn(turn, column, number, unused)
        before = messages[-1] if messages else {}
        calls = str(turn.get("role") or turn.get("from")).lower() in tools.CALLERS and "thinking" not in said
        if calls and before.get("role") == "assistant" and before.get("weight") == said.get("weight"):
            messages[-1] = {**before, "tool_calls": [*before.get("tool_calls", ()), *said["tool_calls"]]}
        else:
            messages.append(said)
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
    if role == "tool" and isinstance(content, str) and (wrapped := RESULT.fullmatch(content)):
        content = wrapped[1]  # the template writes it too
    more: Message = {}
    if str(speaker).lower() in tools.CALLERS:
        more["tool_calls"], content = tools.calls(content, where), ""
    for key, value in turn.items():
        if key in SPOKEN:
            continue
        if key == "masked":  # torchtune's
            more |= _weight(role, key, None if value is None else not value, where)
        elif key in LEARNT_KEYS and (key != "loss" or value in (None, True, False)):  # it may also be a measured one
            more |= _weight(role, key, value, where)
        elif not says_something(value):
            continue
        elif role == "assistant" and key in tools.KEYS:
            found: Message = {"tool_calls": tools.calls(value, f"{where}: {key!r}")}
            more = once(more, found, "calls", where)
            content = "" if content is None else content
        elif role == "assistant" and key in REASONING:
            found = dict.fromkeys(REASONING[:2], text_of(value, f"{column!r}, turn {number}: {key!r}"))
            more = once(more, found, "reasoning", where)
        elif role == "tool" and key in RESULT_KEYS:
            more[key] = value
        else:
            unused.add(passed_over("message key", key, REFUSED_KEYS, f"{where}: "))
    for part in content if isinstance(content, list) else ():
        keys = part.keys() - {"type", *PART_TEXTS} if isinstance(part, dict) else ()
        if role == "assistant" and any(part[key] in (0, 0.0, False) for key in keys if key in LEARNT_KEYS):
            raise DataError(f"{where}: the parts of a turn are learnt together. Split it, or drop their 'train'.")
        unused.update(passed_over("key of a part", key, {}) for key in keys if says_something(part[key]))
    return {**message(role, content, f"{column!r}, turn {number}: the content"), **more}


def once(known: Message, found: Message, what: str, where: str) -> Message:
    """What is known of a turn and what was found; a DataError where another key said it otherwise."""
    if any(known.get(key, value) != value for key, value in found.items()):
        raise DataError(f"{where} has {what} under two keys, which say two things. Drop one.")
    return known | found


def _weight(role: str, key: str, value: Any, where: str) -> Message:
    """Whether a turn is learnt, as OpenAI's and axolotl's formats say it."""
    if role == "assistant" and value in (None, 0, 1):
        return {} if value in (None, 1) else {"weight": 0}
    if role == "assistant" or (value and key != "weight"):
        own = not value if key == "masked" else value
        raise DataError(
            f"{where}: {key!r} is {own!r}, but here a turn of the assistant is learnt (1) or not (0), and no "
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
        parts: list[Any] = [_text_of_part(part) if isinstance(part, dict) else part for part in content]
        if len(parts) > 1 and not any(isinstance(part, dict) for part in content):
            raise DataError(f"column {where} is a list of {len(parts)} texts, of which one is needed.")
        if all(isinstance(part, str) for part in parts):
            content = "".join(parts)
    return {"role": role, "content": text_of(content, where)}


def _text_of_part(part: dict[str, Any]) -> Any:
    return next((part[key] for key in PART_TEXTS if isinstance(part.get(key), str)), None)


def text_of(value: Any, where: str) -> str:
    """A column's text; a DataError where it is none."""
    if not isinstance(value, str):
        raise DataError(f"column {where} must be a string, not {shown(value)}.")
    return value


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


def branch(row: Row, unused: set[str], *_: str) -> Row:
    """Refuse one message of a tree of conversations, which is none by itself."""
    raise DataError(
        "it is one message of a tree of conversations (OpenAssistant): put each path together as 'messages', or take a "
        "set in which that is done. As raw text: --column_mapping message_tree_id=tree."
    )
