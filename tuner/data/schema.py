"""Which shape is this row? Every shape the field uses, mapped to one canonical one.

Conversations of all kinds become `messages`: a list of `{"role": "system" | "user" | "assistant", "content": str}`.
Text without turns becomes `text`. Nothing else reaches the encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from datasets import Dataset, Features, List, Value

from tuner.data.cache_key import cache_key
from tuner.data.sources import SOURCE_ROW
from tuner.errors import DataError

Kind = Literal["messages", "text"]
Row = dict[str, Any]

# ShareGPT and its relatives name the speakers otherwise.
ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
}

CANONICAL: dict[Kind, Features] = {
    "messages": Features(
        {"messages": List({"role": Value("string"), "content": Value("string")}), SOURCE_ROW: Value("int64")}
    ),
    "text": Features({"text": Value("string"), SOURCE_ROW: Value("int64")}),
}

ACCEPTED = """\
  messages                        [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]
  conversations                   [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]
  prompt + completion             strings, or lists of messages
  instruction (+ input) + output  strings
  text                            a string"""


def canonicalize(rows: Dataset, name: str) -> tuple[Kind, Dataset]:
    """Recognise the shape of `rows` by its columns and map every row to the canonical one.

    Returns:
        `"messages"` or `"text"`, and a dataset with that column and `source_row`.

    Raises:
        DataError: columns of no known shape (the message shows them, a row, and the shapes accepted), or a row that
            breaks its shape (the message names row and column).
    """
    kind, convert = shape_of(rows[0] if len(rows) else dict.fromkeys(rows.column_names), name)
    mapped = rows.map(
        _convert_batch,
        with_indices=True,
        batched=True,
        remove_columns=rows.column_names,
        features=CANONICAL[kind],  # else turns keep keys that the source had beside role and content
        fn_kwargs={"kind": kind, "convert": convert, "name": name, "cache_key": cache_key(__file__)},
        desc="Reading rows",
    )
    return kind, mapped


def shape_of(row: Row, name: str) -> tuple[Kind, Callable[[Row], Any]]:
    """The kind of a row, by its columns, and what makes it canonical.

    Raises:
        DataError: columns of no known shape.
    """
    for needed, kind, convert in SHAPES:
        if needed <= row.keys():
            return kind, convert
    found = {column: value for column, value in row.items() if column != SOURCE_ROW}
    shown = {k: v if len(str(v)) <= 80 else f"{str(v)[:77]}..." for k, v in found.items()}
    raise DataError(
        f"{name}: no known shape has the columns {', '.join(found)}.\nA row is {shown}.\n"
        f"The shapes accepted are:\n{ACCEPTED}"
    )


def _convert_batch(
    batch: dict[str, list[Any]],
    indices: list[int],
    kind: Kind,
    convert: Callable[[Row], Any],
    name: str,
    cache_key: str,
) -> dict[str, list[Any]]:
    """`cache_key` is for the cache alone."""
    converted = []
    numbers = batch.get(SOURCE_ROW, indices)
    for position, number in enumerate(numbers):
        try:
            converted.append(convert({column: values[position] for column, values in batch.items()}))
        except DataError as error:
            raise DataError(f"{name}, row {number}: {error}") from None
    return {kind: converted, SOURCE_ROW: numbers}


def _from_messages(row: Row) -> list[dict[str, str]]:
    return _messages(row["messages"], "messages")


def _from_conversations(row: Row) -> list[dict[str, str]]:
    return _messages(row["conversations"], "conversations")


def _from_prompt_completion(row: Row) -> list[dict[str, str]]:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list) or isinstance(completion, list):
        return _messages(prompt, "prompt", answered=False) + _messages(completion, "completion")
    return [_message("user", prompt, "'prompt'"), _message("assistant", completion, "'completion'")]


def _from_instruction(row: Row) -> list[dict[str, str]]:
    question = _message("user", row["instruction"], "'instruction'")
    if row.get("input"):
        question["content"] += "\n\n" + _text(row["input"], "'input'")
    return [question, _message("assistant", row["output"], "'output'")]


def _from_text(row: Row) -> str:
    return _text(row["text"], "'text'")


# The order matters: the first shape whose columns are all there is the row's.
SHAPES: list[tuple[set[str], Kind, Callable[[Row], Any]]] = [
    ({"messages"}, "messages", _from_messages),
    ({"conversations"}, "messages", _from_conversations),
    ({"prompt", "completion"}, "messages", _from_prompt_completion),
    ({"instruction", "output"}, "messages", _from_instruction),
    ({"text"}, "text", _from_text),
]


def _messages(turns: Any, column: str, answered: bool = True) -> list[dict[str, str]]:
    if not isinstance(turns, list) or not turns:
        raise DataError(f"column {column!r} must be a list of turns, not {_shown(turns)}.")
    messages = []
    for number, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise DataError(f"column {column!r}, turn {number} must be an object, not {_shown(turn)}.")
        speaker = turn.get("role") or turn.get("from")
        content = turn["content"] if turn.get("content") is not None else turn.get("value")
        if speaker is None:
            raise DataError(f"column {column!r}, turn {number} has neither 'role' nor 'from': {_shown(turn)}.")
        role = ROLES.get(speaker.lower()) if isinstance(speaker, str) else None
        if role is None:
            known = ", ".join(ROLES)
            raise DataError(f"column {column!r}, turn {number}: unknown role {speaker!r}; known are {known}.")
        messages.append(_message(role, content, f"{column!r}, turn {number}: the content"))
    if answered and not any(m["role"] == "assistant" for m in messages):
        raise DataError(f"column {column!r} has no assistant turn, so there is nothing to learn.")
    return messages


def _message(role: str, content: Any, where: str) -> dict[str, str]:
    return {"role": role, "content": _text(content, where)}


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"column {where} must be a string, not {_shown(value)}.")
    return value


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
