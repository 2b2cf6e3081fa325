"""Which shape is this row? Every shape the field uses, mapped to a canonical one by kind.

    messages    a conversation      {"messages": [{"role": "system" | "user" | "assistant" | "tool", "content": str}]}
    text        text without turns  {"text": str}
    preference  of two answers      {"prompt": [messages], "chosen": [messages], "rejected": [messages]}
    ranked      the same, by how much   {..., "margin": float, "tie": bool}
    unpaired    one judged answer   {"prompt": [messages], "completion": [messages], "label": bool}
    pair        a rewritten text    {"source": str, "target": str}

and those of `tuner.data.labels`. Beside turns `tools` says what may be called, and a turn may hold more (see `turns`).
Nothing else reaches the encoders. What of a row is not used is counted; what has a meaning that cannot be honoured is
refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from datasets import Dataset, Features, Json, List, Value

from tuner.data import columns, json_text, labels, pairs, preferences, questions, tools, turns, unused, written
from tuner.data.cache_key import map_batches
from tuner.data.columns import INPUTS, suggestion, undecoded
from tuner.data.labels import TAG_COLUMNS, TEXTS, is_class, is_number, named
from tuner.data.questions import SYSTEM_COLUMNS, THOUGHT, add_system, answered, is_passages
from tuner.data.sources import LABEL_COLUMNS, SOURCE_ROW
from tuner.data.turns import Row, passed_over, says_something, text_of
from tuner.errors import DataError

Kind = Literal[
    "messages", "text", "preference", "ranked", "unpaired", "pair", "class", "classes", "score", "tags", "question"
]

_TURNS = List(Json())
_TEXTS = {"text": Value("string"), "text_pair": Value("string")}
_NAMES = List(Value("string"))
TOOLS = "tools"
_GIVEN = {TOOLS: Json(), tools.VARIABLES: Json()}
_PREFERENCE = {"prompt": _TURNS, "chosen": _TURNS, "rejected": _TURNS, **_GIVEN}
_COLUMNS: dict[Kind, dict[str, Any]] = {
    "messages": {"messages": _TURNS, **_GIVEN},
    "text": {"text": Value("string")},
    "preference": _PREFERENCE,
    "ranked": {**_PREFERENCE, "margin": Value("float64"), "tie": Value("bool")},
    "unpaired": {"prompt": _TURNS, "completion": _TURNS, "label": Value("bool"), **_GIVEN},
    "pair": {"source": Value("string"), "target": Value("string")},
    "class": {**_TEXTS, "label": Value("string")},
    "classes": {**_TEXTS, "labels": _NAMES},
    "score": {**_TEXTS, "label": Value("float64")},
    "tags": {"tokens": _NAMES, "tags": _NAMES},
    "question": {
        **{"question": Value("string"), "context": Value("string")},
        "answers": List({"text": Value("string"), "start": Value("int64")}),
    },
}
CANONICAL = {kind: Features({**columns, SOURCE_ROW: Value("int64")}) for kind, columns in _COLUMNS.items()}
CALLED = {
    **{"messages": "conversations", "text": "texts", "unpaired": "judged answers"},
    **{"preference": "pairs of answers", "ranked": "pairs of answers"},
    "pair": "sources with targets",
    **labels.CALLED,
}
# What makes rows canonical beside this file.
PARTS = (turns, questions, written, preferences, tools, json_text, labels, pairs, columns)
# Columns that say whether an answer is good.
BAD = ("label", "kto_tag")
# Columns that hold turns, or what may be called.
SPOKEN = (
    *("messages", "conversations", "prompt", "completion", "chosen", "rejected", "input", *tools.COLUMNS),
    tools.VARIABLES,
    *("preferred_output", "non_preferred_output", "chosen_response", *preferences.REJECTED),
)
# Kinds beside which a column like `tools` means nothing.
ANY_COLUMNS = ("text", "pair", *labels.CALLED)


class Shape(NamedTuple):
    """A shape of rows: its columns, what it is a row of, what makes it canonical (a function of the row, the set of
    names of what is not used, and the columns), what its columns hold (nothing where another spelling is named),
    columns that may be there too, and what the last column's value must be like."""

    needed: tuple[str, ...]
    kind: Kind
    convert: Callable[..., Row]
    accepted: str
    optional: tuple[str, ...] = ()
    fits: Callable[[Any], bool] = lambda value: True


def canonicalize(
    rows: Dataset, name: str, kinds: tuple[Kind, ...] = ("messages", "text")
) -> tuple[Kind, Dataset, dict[str, float]]:
    """Recognise the shape of `rows` by its columns, the first of a kind that is wanted, and map every row to the
    canonical one.

    Returns:
        The kind; a dataset with the kind's columns and `source_row`; and of every column and key of a message that says
        something and is not used, the share of rows that have it.

    Raises:
        DataError: columns of no known shape or of another kind, or a row that breaks its shape.
    """
    rows, names = undecoded(rows), named(rows)
    first = rows[0] if len(rows) else dict.fromkeys(rows.column_names)
    shape = shape_of(_with_names(first, names), name, kinds)
    mapped = map_batches(
        rows,
        _convert_batch,
        [__file__, *(str(part.__file__) for part in PARTS)],
        {"shape": SHAPES.index(shape), "name": name, "names": names, "filled": filled_columns(rows)},
        with_indices=True,
        remove_columns=rows.column_names,
        features=Features({**CANONICAL[shape.kind], unused.UNUSED: unused.FEATURE}),
        desc="Reading rows",
    )
    return shape.kind, *unused.counted(mapped)


def shape_of(row: Row, name: str, kinds: tuple[Kind, ...] = ("messages", "text")) -> Shape:
    """The shape of a row, by its columns; a DataError where it has none, or one of another kind."""
    known = [shape for shape in SHAPES if row.keys() >= set(shape.needed) and shape.fits(row[shape.needed[-1]])]
    judged = "unpaired" not in kinds and isinstance(row.get("label"), bool)  # SFT would learn the bad answers too
    for shape in known:
        if shape.kind in kinds and not (judged and shape.needed == ("prompt", "completion")):
            return shape
    wanted = [
        f"\n  {' + '.join(shape.needed):<31} {shape.accepted}"
        for shape in SHAPES
        if shape.kind in kinds and shape.accepted
    ]
    accepted = f"The shapes accepted are:{''.join(wanted)}"
    if known:
        shape = max(known, key=lambda shape: len(shape.needed))
        its, needed = f"{CALLED[shape.kind]} (columns {', '.join(shape.needed)})", [CALLED[kind] for kind in kinds]
        raise DataError(f"{name}: its rows are {its}, but {' or '.join(needed)} are needed.\n{accepted}")
    found = {column: value for column, value in row.items() if column != SOURCE_ROW}
    shapes = [shape.needed for shape in SHAPES if shape.kind in kinds]
    advice = suggestion(found, shapes)
    cut = {column: v if len(str(v)) <= 80 else f"{str(v)[:77]}..." for column, v in found.items()}
    raise DataError(
        f"{name}: no known shape has the columns {', '.join(found)}.{f' Try {advice}.' if advice else ''}"
        f"\nA row is {cut}.\n{accepted}"
    )


def canonical(row: Row, shape: Shape, rest: set[str]) -> Row:
    """A row in its kind's canonical columns; `rest` takes the names of what says something and is not used. A
    DataError for one that breaks its shape, or says what cannot be honoured."""
    if shape.kind == "messages" and any(preferences.is_bad(row.get(column)) for column in BAD):
        raise DataError("an answer is marked as bad (label, kto_tag): drop such rows, or the column, or take KTO.")
    converted = shape.convert(row, rest, *shape.needed)
    if set(SYSTEM_COLUMNS) & set(shape.optional):
        add_system(row, converted["messages" if "messages" in converted else "prompt"])
    spoken = TOOLS in CANONICAL[shape.kind]
    if spoken:
        converted[TOOLS] = converted.get(TOOLS) or tools.tools_of(row)
        if tools.are_told(converted[TOOLS], converted["messages" if "messages" in converted else "prompt"]):
            converted[TOOLS] = None
            rest.add("column 'tools' (the system message has them)")
        converted[tools.VARIABLES] = tools.variables_of(row)
    used = {*shape.needed, *shape.optional, SOURCE_ROW, *(tools.GIVEN if spoken else ())}
    for column in row:
        if (column not in used or is_passages(column, row[column])) and says_something(row[column]):
            rest.add(passed_over("column", column, {} if shape.kind in ANY_COLUMNS else turns.REFUSED_COLUMNS))
    return converted


def _convert_batch(
    batch: dict[str, list[Any]],
    indices: list[int],
    shape: int,
    name: str,
    names: dict[str, list[str]],
    filled: list[str],
) -> dict[str, list[Any]]:
    rows = []
    for position, number in enumerate(batch.get(SOURCE_ROW, indices)):
        rest: set[str] = set()
        try:
            found = _with_names({column: values[position] for column, values in batch.items()}, names)
            found |= {column: without_nulls(found[column]) for column in filled}
            row = canonical(found, SHAPES[shape], rest)
        except DataError as error:
            raise DataError(f"{name}, row {number}: {error}") from None
        rows.append({**row, SOURCE_ROW: number, unused.UNUSED: sorted(rest)})
    return {column: [row[column] for row in rows] for column in rows[0]}


def filled_columns(rows: Dataset) -> list[str]:
    """Columns of turns or tools that are no JSON: there each turn has the keys of all, and those of others are null."""
    return [c for c, feature in (rows.features or {}).items() if c in SPOKEN and not isinstance(feature, Json)]


def without_nulls(value: Any) -> Any:
    """A value without the keys that only others have."""
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return value


def _with_names(row: Row, names: dict[str, list[str]]) -> Row:
    """A row with the names of its `ClassLabel`s; a number that has none, as -1 for "not known", is None."""

    def name(value: Any, known: list[str]) -> Any:
        if isinstance(value, list):
            return [name(each, known) for each in value]
        return known[value] if value is not None and 0 <= value < len(known) else None

    return row | {column: name(row[column], known) for column, known in names.items()}


_OPENAI = '[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
_SHAREGPT = '[{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]'
_EITHER, _ALIKE = "strings, or lists of messages", "whole conversations that begin alike"
_BESIDE = (*SYSTEM_COLUMNS, "history")
_RANKED = f"{_EITHER}; also margin (a number) and tie (true or false)"
MARGINS = ("margin", "tie")
# Where others have the prompt of two answers, and what is beside it there.
_ASKED = {
    **{"instruction": (*INPUTS, *_BESIDE), **dict.fromkeys(("question", "input", "query"), _BESIDE)},
    **dict.fromkeys(("messages", "conversations"), SYSTEM_COLUMNS),
}
_PAIRS: tuple[tuple[Kind, Callable[..., Row], tuple[str, ...]], ...] = (
    ("preference", preferences.asked_elsewhere, ()),
    ("ranked", preferences.ranked, MARGINS),
)
_CHOSEN = ("chosen_response", *SYSTEM_COLUMNS)
_OPENAI_PAIR = ("input", "preferred_output", "non_preferred_output")
_ALPACA = "strings; also input, system and history"
_LABELLED: tuple[tuple[Kind, Callable[..., Row], Callable[[Any], bool], str], ...] = (
    ("class", labels.one_class, is_class, "a string (and a text_pair), and the name of a class"),
    ("classes", labels.any_classes, lambda value: isinstance(written.parsed(value), list), "... and a list of classes"),
    ("score", labels.one_number, is_number, "... and a number"),
)
# The order matters: the first shape whose columns are all there is the row's.
SHAPES: tuple[Shape, ...] = (
    Shape(("prompt", "chosen", "rejected"), "preference", preferences.preference, _EITHER, _BESIDE),
    Shape(("prompt", "chosen", "rejected"), "ranked", preferences.ranked, _RANKED, (*MARGINS, *_BESIDE)),
    *(
        Shape((column, "chosen", "rejected"), kind, convert, "", (*more, *beside))
        for column, beside in _ASKED.items()
        for kind, convert, more in _PAIRS
    ),
    *(
        Shape(("messages", other), kind, convert if more else preferences.rejected_beside, "", (*more, *_CHOSEN))
        for other in preferences.REJECTED
        for kind, convert, more in _PAIRS
    ),
    Shape(_OPENAI_PAIR, "preference", preferences.openai, "", SYSTEM_COLUMNS),
    Shape(_OPENAI_PAIR, "ranked", preferences.ranked, "", (*MARGINS, *SYSTEM_COLUMNS)),
    Shape(("chosen", "rejected"), "preference", preferences.preference, _ALIKE, SYSTEM_COLUMNS),
    Shape(("chosen", "rejected"), "ranked", preferences.ranked, _ALIKE, (*MARGINS, *SYSTEM_COLUMNS)),
    *(
        Shape((column, label), "unpaired", preferences.unpaired_conversation, "", SYSTEM_COLUMNS)
        for column in ("messages", "conversations")
        for label in BAD
    ),
    *(
        Shape(("instruction", answer, label), "unpaired", preferences.unpaired_instruction, "", (*INPUTS, *_BESIDE))
        for answer in ("output", "response")
        for label in BAD
    ),
    Shape(("messages",), "messages", turns.conversation, _OPENAI, SYSTEM_COLUMNS),
    Shape(("conversations",), "messages", turns.conversation, _SHAREGPT, SYSTEM_COLUMNS),
    *(
        Shape(("prompt", "completion", label), "unpaired", preferences.unpaired, said, _BESIDE)
        for label, said in zip(BAD, (f"{_EITHER}; true or false", ""), strict=True)
    ),
    Shape(("prompt", "completion"), "messages", answered, _EITHER, (*THOUGHT, *_BESIDE)),
    Shape(("instruction", "output"), "messages", answered, _ALPACA, (*INPUTS, *THOUGHT, *_BESIDE)),
    Shape(("instruction", "response"), "messages", answered, "", (*INPUTS, *THOUGHT, *_BESIDE)),
    Shape(("message_tree_id", "parent_id", "text"), "text", turns.branch, ""),
    Shape(("text",), "text", lambda row, _, column: {"text": text_of(row[column], f"{column!r}")}, "a string"),
    *(
        Shape(
            (*filter(None, texts), column),
            kind,
            convert,
            said if (*texts, column) == ("text", "", "label") else "",
            fits=fits,
        )
        for texts in TEXTS
        for column in LABEL_COLUMNS
        for kind, convert, fits, said in _LABELLED
    ),
    *(
        Shape(("tokens", column), "tags", labels.tagged, "lists of one length" if column == "tags" else "")
        for column in TAG_COLUMNS
    ),
    *(Shape(columns, "pair", pairs.pair, said) for columns, said in pairs.NAMES),
    Shape((pairs.TRANSLATION,), "pair", pairs.needs_languages, f"texts by language; {pairs.LANGUAGES}"),
    Shape(("question", "context", "answers"), "question", labels.asked, "strings; lists 'text' and 'answer_start'"),
)
