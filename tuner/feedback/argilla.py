"""Preferences that people gave in Argilla, from its flat export.

A record holds its fields by name, and of each question the columns `<question>.responses`, `.responses.users` and
`.responses.status`, lists of one length. A ranking is a list of names of fields, the best first, or of `{rank, value}`,
where equal ranks are ties. A label is the name of the better field, or of what stands for it. Responses that are not
submitted do not count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any

from tuner.data.turns import Row, messages_of, plain, shown, text_of
from tuner.data.written import parsed
from tuner.errors import DataError, nearest

RESPONSES = ".responses"
TIE = "tie"


def read_argilla(
    records: Iterable[Row], name: str, question: str | None, prompt: str, labels: Mapping[str, str]
) -> tuple[list[Row], Counter[str]]:
    """Preferences, as `tuner.feedback.export.preferences` gives them, and how many responses had which status.

    Of a ranking of more than two completions, each two are a pair.

    Args:
        question: which one; None where there is only one.
        prompt: the name of the field.
        labels: what a response stands for: the name of a field, or `tie`. A label needs it, names in a ranking may.

    Raises:
        DataError: no such question or field, or a response that names none.
    """
    rows: list[Row] = []
    statuses = Counter[str]()
    for number, record in enumerate(records):
        try:
            question = question or _only_question(record)
            parts = ("", ".users", ".status")
            columns = [parsed(_field(record, f"{question}{RESPONSES}{part}")) or [] for part in parts]
            if len({len(column) if isinstance(column, list) else str(column) for column in columns}) > 1:
                raise DataError(f"the columns {question}{RESPONSES}, .users and .status are not lists of one length.")
            for value, user, status in zip(*columns, strict=True):
                statuses[str(status)] += 1
                if status == "submitted":
                    asked = _field(record, prompt)
                    turns = asked
                    if not isinstance(asked, str):
                        turns = plain(messages_of(asked, prompt, set(), answered=False), prompt)
                    for better, worse, tie in _pairs(value, labels):
                        texts = {"chosen": _text(record, better), "rejected": _text(record, worse)}
                        rows.append({"prompt": turns, **texts, "tie": "tie" if tie else "", "annotator": str(user)})
        except DataError as error:
            raise DataError(f"{name}, row {number}: {error}") from None
    return rows, statuses


def _only_question(record: Row) -> str:
    found = [column.removesuffix(RESPONSES) for column in record if column.endswith(RESPONSES)]
    if len(found) != 1:
        listed = ", ".join(found) or f"none; a column <question>{RESPONSES} is expected"
        raise DataError(f"--question says which question holds the preferences: {listed}.")
    return found[0]


def _pairs(value: Any, labels: Mapping[str, str]) -> Iterator[tuple[str, str, bool]]:
    """Names of the better and the worse field, and whether it is a tie."""
    value = parsed(value)
    if isinstance(value, str):
        known = list(dict.fromkeys(field for field in labels.values() if field != TIE))
        if value not in labels or len(known) != 2:
            raise DataError(
                f"a response is the label {value!r}: say what each label stands for, two fields or {TIE}, as in "
                "--label A=response1 --label B=response2 --label same=tie."
            )
        better = labels[value]
        first, second = known if better in (TIE, known[0]) else known[::-1]
        yield first, second, better == TIE
        return
    if not isinstance(value, list) or len(value) < 2:
        raise DataError(f"a response must be a label or a ranking of two or more, not {shown(value)}.")
    ranks = [each if isinstance(each, dict) else {"rank": rank, "value": each} for rank, each in enumerate(value)]
    if not all(isinstance(each.get("rank"), int) and isinstance(each.get("value"), str) for each in ranks):
        raise DataError(f"a ranking must be names, or objects with 'rank' and 'value', not {shown(value)}.")
    for one, other in combinations(sorted(ranks, key=lambda each: int(each["rank"])), 2):
        names = (labels.get(each["value"], each["value"]) for each in (one, other))
        yield *names, one["rank"] == other["rank"]


def _field(record: Row, name: str) -> Any:
    if name not in record:
        raise DataError(f"has no field {name!r}; it has {', '.join(record)}.{nearest(name, record)}")
    return record[name]


def _text(record: Row, name: str) -> str:
    return text_of(_field(record, name), f"{name!r}")
