"""Calls of tools and reasoning under a chat template: in the form that it reads, and whether it shows them at all."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

Message = dict[str, Any]
WORD = re.compile(r"[A-Za-z0-9]+")


def with_text_arguments(messages: Sequence[Message]) -> list[Message]:
    """Messages whose calls have their arguments as JSON text, as OpenAI's server sends them, for templates that join
    that to other text."""

    def call(said: dict[str, Any]) -> dict[str, Any]:
        function = said["function"]
        return {
            **said,
            "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)},
        }

    return [{**m, "tool_calls": [call(c) for c in m["tool_calls"]]} if m.get("tool_calls") else m for m in messages]


def shows_python(text: str, messages: Sequence[Message]) -> bool:
    """Whether a template has written arguments as Python shows a dictionary, and not as JSON."""
    called = (call["function"]["arguments"] for message in messages for call in message.get("tool_calls") or ())
    return any(arguments and isinstance(arguments, dict) and str(arguments) in text for arguments in called)


def not_shown(text: str, messages: Sequence[Message], tools: Sequence[Any] | None) -> str | None:
    """What of tools a template has left out of a text; None where there is nothing. It is looked for by names, and a
    result by its longest word, which no template changes."""
    for tool in tools or ():
        if tool["function"]["name"] not in text:
            return f"the definition of the tool {tool['function']['name']!r}"
    called = Counter(call["function"]["name"] for message in messages for call in message.get("tool_calls") or ())
    defined = Counter({tool["function"]["name"] for tool in tools or ()})  # where they stand too
    for name, times in called.items():
        if text.count(name) < times + defined[name]:
            return f"{'the definition or a call of the tool' if defined[name] else 'the call of'} {name!r}"
    for message in messages:
        if message["role"] == "tool" and max(WORD.findall(message["content"]), key=len, default="") not in text:
            return f"the result {message['content'][:40]!r}"
    return None


def hidden_reasoning(text: str, messages: Sequence[Message]) -> int:
    """How many turns of the assistant have reasoning that is not in a text."""
    return sum((message.get("reasoning_content") or "").strip() not in text for message in messages)
