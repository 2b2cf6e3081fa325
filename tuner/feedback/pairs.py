"""Rows as pairs of completions to compare, or as prompts whose completions are to be sampled."""

from __future__ import annotations

from datasets import Dataset

from tuner.data import tools
from tuner.data.preferences import preference
from tuner.data.turns import (
    REFUSED_COLUMNS,
    Row,
    message,
    messages_of,
    passed_over,
    plain,
    says_something,
)
from tuner.errors import DataError, notice
from tuner.feedback.store import Prompt, messages

# Columns that hold a prompt, the first that a row has; of conversations without the answer that they end with.
PROMPTS = ("prompt", "messages", "conversations")
# Columns of two completions, under the names that data sets give them.
COMPLETIONS = (("chosen", "rejected"), ("completion_a", "completion_b"), ("response_a", "response_b"))
# What the page does not show.
NOT_SHOWN = {**REFUSED_COLUMNS, **dict.fromkeys((*tools.COLUMNS, tools.VARIABLES), "tool use is not shown here")}
Pair = tuple[int, Prompt, str | None, str | None]


def read_pairs(rows: Dataset, name: str, sampled: bool, system: str | None = None) -> list[Pair]:
    """The number, prompt and completions of each row; None for completions that are to be `sampled`. What is left out
    or not used is said.

    Args:
        system: a system message to put before each prompt.

    Raises:
        DataError: a row without a prompt, or without two completions where they are needed.
    """
    pairs: list[Pair] = []
    equal, unused = list[int](), set[str]()
    for number, row in enumerate(rows):
        try:
            prompt, first, second = (_prompt(row, unused), None, None) if sampled else _pair(row, unused)
            if system is not None:
                turns = messages(prompt)
                if turns[0]["role"] == "system":
                    raise DataError("the prompt begins with a system message, and --system is another. Drop one.")
                prompt = [message("system", system, ""), *turns]
        except DataError as error:
            raise DataError(f"{name}, row {number}: {error}") from None
        if first is not None and second is not None and first.strip() == second.strip():
            equal.append(number)
        else:
            pairs.append((number, prompt, first, second))
    if unused:
        notice(f"{name}: not used are {', '.join(sorted(unused))}.")
    say_equal(equal, f"{name}: ")
    return pairs


def say_equal(numbers: list[int], where: str = "") -> None:
    """Say which rows have no pair to show, if any."""
    if numbers:
        listed = ", ".join(map(str, numbers[:10])) + (", ..." if len(numbers) > 10 else "")
        notice(f"{where}{len(numbers):,} left out, because both completions are the same: row {listed}.")


def _prompt(row: Row, unused: set[str]) -> Prompt:
    column = next((name for name in PROMPTS if row.get(name) is not None), None)
    if column is None:
        raise DataError(f"has none of the columns {', '.join(PROMPTS)}; it has {', '.join(row)}.")
    _tell(row, {column}, unused)
    if column == "prompt" and isinstance(row[column], str):
        return str(row[column])
    turns = plain(messages_of(row[column], column, unused, answered=False), column)
    if turns[-1]["role"] == "assistant":
        if column == "prompt" or len(turns) == 1:
            raise DataError(f"column {column!r} ends with the assistant's turn: there is nothing to answer.")
        turns.pop()
    return turns


def _pair(row: Row, unused: set[str]) -> tuple[Prompt, str, str]:
    columns = next((names for names in COMPLETIONS if all(row.get(name) is not None for name in names)), None)
    if columns is None:
        wanted = "; ".join(" and ".join(names) for names in COMPLETIONS)
        raise DataError(f"has no two completions ({wanted}); it has {', '.join(row)}. A MODEL would write them.")
    _tell(row, {"prompt", *columns}, unused)
    asked = row.get("prompt")
    both = {"chosen": row[columns[0]], "rejected": row[columns[1]]}
    found = preference(both if asked is None else {"prompt": asked, **both}, unused)
    for column, turns in found.items():
        plain(turns, column)
    if len(found["chosen"]) > 1 or len(found["rejected"]) > 1:
        raise DataError(f"column {columns[0]!r} or {columns[1]!r} goes on for several turns; one answer is compared.")
    prompt = asked if isinstance(asked, str) and messages(asked) == found["prompt"] else found["prompt"]
    return prompt, found["chosen"][0]["content"], found["rejected"][0]["content"]


def _tell(row: Row, used: set[str], unused: set[str]) -> None:
    for column in row.keys() - used:
        if says_something(row[column]):
            unused.add(passed_over("column", column, NOT_SHOWN))
