"""Which shape is this row? Every shape the field uses, mapped to a canonical one by kind.

    messages    a conversation      {"messages": [{"role": "system" | "user" | "assistant", "content": str}]}
    text        text without turns  {"text": str}
    preference  of two answers      {"prompt": [messages], "chosen": [messages], "rejected": [messages]}
    unpaired    one judged answer   {"prompt": [messages], "completion": [messages], "label": bool}

Nothing else reaches the encoders. What of a row is not used is counted; what has a meaning that cannot be honoured is
refused (see also `turns`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value

from tuner.data import preference_rows, turns
from tuner.data.cache_key import map_batches
from tuner.data.preference_rows import preference, unpaired
from tuner.data.sources import SOURCE_ROW
from tuner.data.turns import Message, history_of, message, messages_of, says_something, text_of
from tuner.errors import DataError

Kind = Literal["messages", "text", "preference", "unpaired"]
Row = dict[str, Any]
Convert = Callable[[Row, set[str]], dict[str, Any]]

_TURNS = List({"role": Value("string"), "content": Value("string")})
_UNUSED = "_unused"
_COLUMNS: dict[Kind, dict[str, Any]] = {
    "messages": {"messages": _TURNS},
    "text": {"text": Value("string")},
    "preference": {"prompt": _TURNS, "chosen": _TURNS, "rejected": _TURNS},
    "unpaired": {"prompt": _TURNS, "completion": _TURNS, "label": Value("bool")},
}
CANONICAL = {kind: Features({**columns, SOURCE_ROW: Value("int64")}) for kind, columns in _COLUMNS.items()}
CALLED: dict[Kind, str] = {
    "messages": "conversations",
    "text": "texts",
    "preference": "preferences between two answers",
    "unpaired": "answers judged good or bad",
}
# Columns of instruction formats that mean something to a conversation.
SYSTEM_COLUMNS = ("system", "system_prompt")
REFUSED_COLUMNS = {
    **dict.fromkeys(("tools", "functions"), "tool use is not trained here"),
    **dict.fromkeys(("images", "image", "audio", "audios", "videos", "video"), "only text is trained on"),
    "history": "it belongs beside 'instruction' or a 'prompt' that is a string",
}


def canonicalize(
    rows: Dataset, name: str, kinds: tuple[Kind, ...] = ("messages", "text")
) -> tuple[Kind, Dataset, dict[str, float]]:
    """Recognise the shape of `rows` by its columns and map every row to the canonical one.

    Args:
        kinds: those that are wanted; of shapes that a row could have, the first of such a kind counts.

    Returns:
        The kind; a dataset with the kind's columns and `source_row`; and of every column and key of a message that says
        something and is not used, the share of rows that have it.

    Raises:
        DataError: columns of no known shape or of another kind (the message shows them, a row, and the shapes
            accepted), or a row that breaks its shape (the message names row and column).
    """
    shape = shape_of(rows[0] if len(rows) else dict.fromkeys(rows.column_names), name, kinds)
    mapped = map_batches(
        rows,
        _convert_batch,
        [__file__, turns.__file__, preference_rows.__file__],
        {"shape": SHAPES.index(shape), "name": name},
        with_indices=True,
        remove_columns=rows.column_names,
        features=Features({**CANONICAL[shape.kind], _UNUSED: List(Value("string"))}),
        desc="Reading rows",
    )
    found: Counter[str] = Counter()
    for batch in mapped.select_columns([_UNUSED]).with_format("arrow").iter(batch_size=100_000):
        counts = pc.value_counts(pc.list_flatten(batch[_UNUSED]))
        found.update({entry["values"].as_py(): entry["counts"].as_py() for entry in counts})
    return shape.kind, mapped.remove_columns(_UNUSED), {key: n / len(rows) for key, n in sorted(found.items())}


def unused_sentence(unused: dict[str, float], name: str) -> str | None:
    """What `canonicalize` says is not used, in a line; None where there is nothing."""
    if not unused:
        return None
    listed = ", ".join(f"{key} ({100 * share:.3g} % of the rows)" for key, share in unused.items())
    return f"{name}: not used are {listed}."


class Shape(NamedTuple):
    """A shape of rows: its columns, what it is a row of, what makes it canonical, and columns that may be there too."""

    needed: tuple[str, ...]
    kind: Kind
    convert: Convert
    accepted: str
    optional: tuple[str, ...] = ()


def shape_of(row: Row, name: str, kinds: tuple[Kind, ...] = ("messages", "text")) -> Shape:
    """The shape of a row, by its columns; a DataError where it has none, or one of another kind."""
    known = [shape for shape in SHAPES if row.keys() >= set(shape.needed)]
    wanted_shapes = [f"  {' + '.join(shape.needed):<31} {shape.accepted}" for shape in SHAPES if shape.kind in kinds]
    accepted = "\n".join(["The shapes accepted are:", *wanted_shapes])
    judged = "unpaired" not in kinds and isinstance(row.get("label"), bool)  # SFT would learn the bad answers too
    for shape in known:
        if shape.kind in kinds and not (judged and shape.needed == ("prompt", "completion")):
            return shape
    if known:
        wanted = " or ".join(CALLED[kind] for kind in kinds)
        columns = ", ".join(known[0].needed)
        raise DataError(
            f"{name}: its rows are {CALLED[known[0].kind]} (columns {columns}), but {wanted} are needed.\n{accepted}"
        )
    found = {column: value for column, value in row.items() if column != SOURCE_ROW}
    shown = {k: v if len(str(v)) <= 80 else f"{str(v)[:77]}..." for k, v in found.items()}
    raise DataError(f"{name}: no known shape has the columns {', '.join(found)}.\nA row is {shown}.\n{accepted}")


def canonical(row: Row, shape: Shape, unused: set[str]) -> dict[str, Any]:
    """A row in its kind's canonical columns.

    Args:
        unused: takes the names of what says something and is not used.

    Raises:
        DataError: a row that breaks its shape, or says what cannot be honoured.
    """
    converted = shape.convert(row, unused)
    for column in row.keys() - {*shape.needed, *shape.optional, SOURCE_ROW}:
        if says_something(row[column]):
            if column in REFUSED_COLUMNS and shape.kind != "text":
                raise DataError(f"the column {column!r} is not supported: {REFUSED_COLUMNS[column]}. Drop the column.")
            unused.add(f"column {column!r}")
    return converted


def _convert_batch(batch: dict[str, list[Any]], indices: list[int], shape: int, name: str) -> dict[str, list[Any]]:
    numbers = batch.get(SOURCE_ROW, indices)
    columns: dict[str, list[Any]] = {column: [] for column in CANONICAL[SHAPES[shape].kind]} | {_UNUSED: []}
    for position, number in enumerate(numbers):
        unused: set[str] = set()
        try:
            row = canonical({column: values[position] for column, values in batch.items()}, SHAPES[shape], unused)
        except DataError as error:
            raise DataError(f"{name}, row {number}: {error}") from None
        for column, value in (row | {SOURCE_ROW: number, _UNUSED: sorted(unused)}).items():
            columns[column].append(value)
    return columns


def _with_system(row: Row, messages: list[Message]) -> list[Message]:
    for column in SYSTEM_COLUMNS:
        if says_something(row.get(column)):
            system = message("system", row[column], f"{column!r}")
            if messages[0]["role"] != "system":
                return [system, *messages]
            if messages[0] != system:
                raise DataError(f"the column {column!r} and the first message are two system messages. Drop one.")
    return messages


def _from_turns(row: Row, unused: set[str]) -> dict[str, Any]:
    column = "messages" if "messages" in row else "conversations"
    return {"messages": _with_system(row, messages_of(row[column], column, unused))}


def _from_prompt_completion(row: Row, unused: set[str]) -> dict[str, Any]:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list) or isinstance(completion, list):
        if says_something(row.get("history")):
            raise DataError(f"the column 'history' is not supported: {REFUSED_COLUMNS['history']}.")
        asked = messages_of(prompt, "prompt", unused, answered=False)
        return {"messages": _with_system(row, asked + messages_of(completion, "completion", unused))}
    asked = [message("user", prompt, "'prompt'"), message("assistant", completion, "'completion'")]
    return {"messages": _with_system(row, history_of(row.get("history")) + asked)}


def _from_instruction(row: Row, unused: set[str]) -> dict[str, Any]:
    question = message("user", row["instruction"], "'instruction'")
    if row.get("input"):
        question["content"] += "\n\n" + text_of(row["input"], "'input'")
    asked = [*history_of(row.get("history")), question, message("assistant", row["output"], "'output'")]
    return {"messages": _with_system(row, asked)}


_OPENAI = '[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
_SHAREGPT = '[{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]'
_EITHER = "strings, or lists of messages"
_ALPACA = ("input", *SYSTEM_COLUMNS, "history")
# The order matters: the first shape whose columns are all there is the row's.
SHAPES: tuple[Shape, ...] = (
    Shape(("prompt", "chosen", "rejected"), "preference", preference, _EITHER),
    Shape(("chosen", "rejected"), "preference", preference, "whole conversations that begin alike"),
    Shape(("messages",), "messages", _from_turns, _OPENAI, SYSTEM_COLUMNS),
    Shape(("conversations",), "messages", _from_turns, _SHAREGPT, SYSTEM_COLUMNS),
    Shape(("prompt", "completion", "label"), "unpaired", unpaired, f"{_EITHER}; true or false"),
    Shape(("prompt", "completion"), "messages", _from_prompt_completion, _EITHER, (*SYSTEM_COLUMNS, "history")),
    Shape(("instruction", "output"), "messages", _from_instruction, "strings; also input, system and history", _ALPACA),
    Shape(("text",), "text", lambda row, _: {"text": text_of(row["text"], "'text'")}, "a string"),
)
