"""Turns of a conversation as data sets write them, made canonical: a role and a content, both strings.

Keys that mean something to the formats that have them (OpenAI's chat format, ShareGPT, axolotl, LLaMA-Factory), and
that training here cannot honour, are refused where they say something. Other keys are passed over, and told.
"""

from __future__ import annotations

import json
from typing import Any

from tuner.errors import DataError

Message = dict[str, str]

# ShareGPT and its relatives name the speakers otherwise.
ROLES = {
    "system": "system",
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model"), "assistant"),
}
TOOL_ROLES = ("tool", "function", "function_call", "tool_call", "tool_response", "observation", "ipython")
SPOKEN = {"role", "content", "from", "value"}
# What a turn says beside its content, and what its user can do.
REASONING = ("reasoning_content", "reasoning", "thinking")
TOOLS = ("tool_calls", "function_call", "tool_call_id")
MEDIA = ("images", "image", "audio", "audios", "videos", "video")
REFUSED_KEYS = {
    **dict.fromkeys(REASONING, "write the reasoning into the content, or drop the key"),
    **dict.fromkeys(TOOLS, "drop the key, or rows with it: tool use is not trained here"),
    **dict.fromkeys(MEDIA, "drop the key: only text is trained on"),
}
# OpenAI's and axolotl's flags for turns that are not learnt.
LEARNT_KEYS = ("weight", "train", "training")


def messages_of(turns: Any, column: str, unused: set[str], answered: bool = True) -> list[Message]:
    """A list of turns, or a JSON text of one, as canonical messages.

    Args:
        column: where they are, for messages.
        unused: takes the names of keys that say something and are not used.
        answered: refuse turns of which none is the assistant's.

    Raises:
        DataError: anything else, naming column and turn.
    """
    if isinstance(turns, str):
        turns = parsed(turns)
    if not isinstance(turns, list) or not turns:
        raise DataError(f"column {column!r} must be a list of turns, not {shown(turns)}.")
    messages = []
    for number, turn in enumerate(turns):
        where = f"column {column!r}, turn {number}"
        if not isinstance(turn, dict):
            raise DataError(f"{where} must be an object, not {shown(turn)}.")
        speaker = turn.get("role") or turn.get("from")
        content = turn["content"] if turn.get("content") is not None else turn.get("value")
        if speaker is None:
            given = {name: value for name, value in turn.items() if value is not None}  # Arrow adds the others' keys
            raise DataError(f"{where} has neither 'role' nor 'from': {shown(given)}.")
        role = ROLES.get(speaker.lower()) if isinstance(speaker, str) else None
        if role is None:
            raise _unknown_role(speaker, where)
        if not turn.keys() <= SPOKEN:
            _check_keys(turn, role, where, unused)
        messages.append(message(role, content, f"{column!r}, turn {number}: the content"))
    if answered and not any(m["role"] == "assistant" for m in messages):
        raise DataError(f"column {column!r} has no assistant turn, so there is nothing to learn.")
    return messages


def _unknown_role(speaker: Any, where: str) -> DataError:
    if isinstance(speaker, str) and speaker.lower() in TOOL_ROLES:
        return DataError(
            f"{where}: the role {speaker!r} is not supported: tool use is not trained here. Drop such rows."
        )
    return DataError(f"{where}: unknown role {speaker!r}; known are {', '.join(ROLES)}.")


def _check_keys(turn: dict[str, Any], role: str, where: str, unused: set[str]) -> None:
    for key in turn.keys() - SPOKEN:
        value = turn[key]
        if key in LEARNT_KEYS:
            off = role == "assistant" and value is not None and value != 1
            on = role != "assistant" and key != "weight" and value
            if off or on:
                raise DataError(
                    f"{where}: {key!r} is {value}, but here every turn of the assistant is learnt and no other. "
                    "Drop the key to accept that, or drop the turn."
                )
        elif says_something(value):
            if key in REFUSED_KEYS:
                raise DataError(f"{where}: the key {key!r} is not supported: {REFUSED_KEYS[key]}.")
            unused.add(f"message key {key!r}")


def message(role: str, content: Any, where: str) -> Message:
    """One canonical message; a DataError where the content is not text."""
    return {"role": role, "content": content if isinstance(content, str) else text_of(_joined(content), where)}


def _joined(content: Any) -> Any:
    """Content in parts (`[{"type": "text", "text": ...}]`) as one text, where all parts are text."""
    if isinstance(content, list) and content:
        texts: list[Any] = [p.get("text") if isinstance(p, dict) and p.get("type") == "text" else None for p in content]
        if all(isinstance(text, str) for text in texts):
            return "".join(texts)
    return content


def text_of(value: Any, where: str) -> str:
    """A column's text; a DataError where it is none."""
    if not isinstance(value, str):
        raise DataError(f"column {where} must be a string, not {shown(value)}.")
    return value


def history_of(value: Any) -> list[Message]:
    """Earlier `[question, answer]` pairs, as LLaMA-Factory's `history` holds them; a DataError for anything else."""
    if not says_something(value):
        return []
    pairs = parsed(value) if isinstance(value, str) else value
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise DataError(f"column 'history' must be a list of [question, answer] pairs, not {shown(value)}.")
    return [
        message(role, content, f"'history', pair {number}")
        for number, pair in enumerate(pairs)
        for role, content in zip(("user", "assistant"), pair, strict=True)
    ]


def parsed(text: str) -> Any:
    """The list that a JSON text says, as in a field of a CSV; else the text."""
    try:
        value = json.loads(text) if text.lstrip().startswith("[") else text
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, list) else text


def says_something(value: Any) -> bool:
    """Whether a key or column is more than there: neither null nor empty, nor JSON text of that."""
    return value is not None and value not in ("", [], {}, "[]", "{}", "null")


def shown(value: Any) -> str:
    """A value's type and beginning, for messages."""
    if value is None:
        return "null"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
