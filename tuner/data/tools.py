"""Tools in a conversation, as data sets write them (OpenAI, ShareGPT, LLaMA-Factory), made OpenAI's.

    what may be called   {"type": "function", "function": {"name": str, "description": str, "parameters": JSON schema}}
    a call               {"type": "function", "id": str (where it has one), "function": {"name": str, "arguments": {}}}

A call is the assistant's, and learnt; its result is a turn of the role `tool`, and read. Beside them a row may say what
else its chat template reads, under the name that TRL has for it: `chat_template_kwargs`.
"""

from __future__ import annotations

from typing import Any

from tuner.data.json_text import read_json
from tuner.errors import DataError

# What a chat template reads that is not in a conversation, and what of it is no row's to say.
VARIABLES = "chat_template_kwargs"
OURS = ("messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "pad_token", "unk_token")
# Columns of what may be called, roles whose turn is a result, and roles whose turn is a call in its content.
COLUMNS = ("tools", "functions")
THINKING = "enable_thinking"  # verl has it in a column of its own
GIVEN = (*COLUMNS, VARIABLES, THINKING)
RESULTS = ("tool", "function", "observation", "tool_response", "ipython")
CALLERS = ("function_call", "tool_call")
# Keys of an assistant's turn that hold calls.
KEYS = ("tool_calls", "function_call")
CALL_KEYS = (
    *("type", "id", "call_id", "index", "function", "name", "arguments", "parameters"),
    *("description", "strict"),
)
FUNCTION = '{"name": "...", "arguments": {...}}'


def tools_of(row: dict[str, Any]) -> list[dict[str, Any]] | None:
    """What may be called in a row's conversation; a DataError where two columns say it."""
    found = {column: tools for column in COLUMNS if (tools := definitions(row.get(column), column))}
    if len(found) > 1:
        raise DataError(f"the columns {' and '.join(map(repr, found))} both say what may be called. Drop one.")
    return next(iter(found.values()), None)


def variables_of(row: dict[str, Any]) -> dict[str, Any] | None:
    """What a row says that its chat template reads; None where that is nothing, and a DataError where it is no
    object, or not a row's to say."""
    found = _parsed(row.get(VARIABLES), f"column {VARIABLES!r}")
    if found is not None and not isinstance(found, dict):
        raise DataError(f"column {VARIABLES!r} must be an object, not {type(found).__name__}.")
    if row.get(THINKING) is not None:
        found = {THINKING: row[THINKING]} | (found or {})
    if taken := [name for name in found or () if name in OURS]:
        raise DataError(f"column {VARIABLES!r}: {taken[0]!r} is known otherwise. Leave it out.")
    return {name: value for name, value in (found or {}).items() if value not in (None, "", [], {})} or None


def are_told(tools: list[dict[str, Any]] | None, messages: list[dict[str, Any]]) -> bool:
    """Whether a conversation's system message has its tools already, as Hermes' data sets write them."""
    told = messages[0]["content"] if tools and messages and messages[0]["role"] == "system" else ""
    return "<tools>" in told and all(f'"{tool["function"]["name"]}"' in told for tool in tools or ())


def given(row: dict[str, Any]) -> dict[str, Any]:
    """What a chat template is given beside a canonical row's turns."""
    return {"tools": row.get("tools"), **(row.get(VARIABLES) or {})}


def given_of(row: dict[str, Any]) -> dict[str, Any]:
    """The same of a row as it comes, with canonical turns in `prompt` if any. Raises as `tools_of` and
    `variables_of`."""
    tools, prompt = tools_of(row), row.get("prompt")
    told = isinstance(prompt, list) and are_told(tools, prompt)
    return given({"tools": None if told else tools, VARIABLES: variables_of(row)})


def definitions(value: Any, column: str) -> list[dict[str, Any]] | None:
    """What may be called, of a list or a JSON text of one; None where there is nothing. Else a DataError."""
    found = _parsed(value, f"column {column!r}")
    if not found:
        return None
    found = [found] if isinstance(found, dict) else found
    if not isinstance(found, list):
        raise DataError(f"column {column!r} must be a list of functions, not {type(found).__name__}.")
    tools = []
    for number, tool in enumerate(found):
        tool = _parsed(tool, f"column {column!r}, function {number}")
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise DataError(f"column {column!r}, function {number} must be an object with a 'name'.")
        if str(function.get("parameters")).lstrip().startswith("{") and isinstance(function["parameters"], str):
            where = f"column {column!r}, function {number}: the parameters"
            function = {**function, "parameters": _parsed(function["parameters"], where)}
        tools.append(
            {**tool, "function": function} if "function" in tool else {"type": "function", "function": function}
        )
    return tools


def calls(value: Any, where: str) -> list[dict[str, Any]]:
    """The calls of a turn: of OpenAI's `tool_calls`, of one function with its arguments, or of a JSON text of either. A
    DataError where it is none."""
    found = _parsed(value, where)
    found = [found] if isinstance(found, dict) else found
    if not isinstance(found, list) or not found:
        raise DataError(f"{where} must be a call, {FUNCTION}, or a list of such.")
    return [_call(call, where) for call in found]


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DataError(f"{where} must be a call, {FUNCTION}: one has no 'name'.")
    arguments = _parsed(function.get("arguments", function.get("parameters")), f"{where}: the arguments") or {}
    unknown = [key for each in (call, function) for key, said in each.items() if key not in CALL_KEYS and said]
    if unknown:
        raise DataError(f"{where}: the key {unknown[0]!r} of a call is not supported. Drop it, or such rows.")
    if not isinstance(arguments, dict):
        raise DataError(f"{where}: the arguments of {function['name']!r} must be an object.")
    known = {"id": call["id"]} if call.get("id") else {}
    return {"type": "function", **known, "function": {"name": function["name"], "arguments": arguments}}


def _parsed(value: Any, where: str) -> Any:
    if not isinstance(value, str) or not value.strip():
        return value or None
    try:
        return read_json(value)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} must be JSON, and is not: {str(error).splitlines()[0]}.") from error
