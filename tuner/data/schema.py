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
from tuner.data.turns import MEDIA, NO_TOOLS, history_of, message, messages_of, passed_over, says_something, text_of
from tuner.errors import DataError

Kind = Literal["messages", "text", "preference", "unpaired"]
Row = dict[str, Any]

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
    **dict.fromkeys(("tools", "functions"), NO_TOOLS),
    **MEDIA,
    "history": "it belongs beside 'instruction' or a 'prompt' that is a string",
}


class Shape(NamedTuple):
    """A shape of rows: its columns, what it is a row of, what makes it canonical, what else may be there, and what its
    columns hold. A conversion is given the row, the set that takes the names of what is not used, and the columns."""

    needed: tuple[str, ...]
    kind: Kind
    convert: Callable[..., Any]
    accepted: str
    optional: tuple[str, ...] = ()


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
    listed = ", ".join(f"{key} ({100 * share:.3g} % of the rows)" for key, share in unused.items())
    return f"{name}: not used are {listed}." if unused else None


def shape_of(row: Row, name: str, kinds: tuple[Kind, ...] = ("messages", "text")) -> Shape:
    """The shape of a row, by its columns; a DataError where it has none, or one of another kind."""
    known = [shape for shape in SHAPES if row.keys() >= set(shape.needed)]
    judged = "unpaired" not in kinds and isinstance(row.get("label"), bool)  # SFT would learn the bad answers too
    for shape in known:
        if shape.kind in kinds and not (judged and shape.needed == ("prompt", "completion")):
            return shape
    wanted = [f"\n  {' + '.join(shape.needed):<31} {shape.accepted}" for shape in SHAPES if shape.kind in kinds]
    accepted = f"The shapes accepted are:{''.join(wanted)}"
    if known:
        needed, kind, called = ", ".join(known[0].needed), known[0].kind, " or ".join(CALLED[kind] for kind in kinds)
        raise DataError(f"{name}: its rows are {CALLED[kind]} (columns {needed}), but {called} are needed.\n{accepted}")
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
    converted: dict[str, Any] = shape.convert(row, unused, *shape.needed)
    for column in SYSTEM_COLUMNS:
        if column in shape.optional and says_something(row.get(column)):
            system, said = message("system", row[column], f"{column!r}"), converted["messages"]
            if said[0]["role"] != "system":
                said.insert(0, system)
            elif said[0] != system:
                raise DataError(f"the column {column!r} and the first message are two system messages. Drop one.")
    refused = {} if shape.kind == "text" else REFUSED_COLUMNS
    for column in row.keys() - {*shape.needed, *shape.optional, SOURCE_ROW}:
        if says_something(row[column]):
            unused.add(passed_over("column", column, refused))
    return converted


def _convert_batch(batch: dict[str, list[Any]], indices: list[int], shape: int, name: str) -> dict[str, list[Any]]:
    rows = []
    for position, number in enumerate(batch.get(SOURCE_ROW, indices)):
        unused: set[str] = set()
        try:
            row = canonical({column: values[position] for column, values in batch.items()}, SHAPES[shape], unused)
        except DataError as error:
            raise DataError(f"{name}, row {number}: {error}") from None
        rows.append({**row, SOURCE_ROW: number, _UNUSED: sorted(unused)})
    return {column: [row[column] for row in rows] for column in rows[0]}


def _from_text(row: Row, unused: set[str], column: str) -> Row:
    return {"text": text_of(row[column], f"{column!r}")}


def _from_turns(row: Row, unused: set[str], column: str) -> Row:
    return {"messages": messages_of(row[column], column, unused)}


def _from_answer(row: Row, unused: set[str], question: str, answer: str) -> Row:
    """A prompt and a completion, or an instruction, which may have an input, and an output."""
    if question == "prompt" and (isinstance(row[question], list) or isinstance(row[answer], list)):
        if says_something(row.get("history")):
            raise DataError(f"the column 'history' is not supported: {REFUSED_COLUMNS['history']}.")
        asked = messages_of(row[question], question, unused, answered=False)
        return {"messages": asked + messages_of(row[answer], answer, unused)}
    asked = [message("user", row[question], f"{question!r}"), message("assistant", row[answer], f"{answer!r}")]
    if question == "instruction" and row.get("input"):
        asked[0]["content"] += "\n\n" + text_of(row["input"], "'input'")
    return {"messages": history_of(row.get("history")) + asked}


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
    Shape(("prompt", "completion"), "messages", _from_answer, _EITHER, _ALPACA[1:]),
    Shape(("instruction", "output"), "messages", _from_answer, "strings; also input, system and history", _ALPACA),
    Shape(("text",), "text", _from_text, "a string"),
)
