"""JSON as data sets hold it, in files and in the texts of their columns: nothing in it is rounded, lost or half."""

from __future__ import annotations

import json
import re
from typing import Any

HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(text: str) -> Any:
    """What a JSON text says. NaN and Infinity, which are no JSON, are what others write for a missing number; of a
    whole number beyond 64 bits the digits are kept as text.

    Raises:
        ValueError: no JSON (a `json.JSONDecodeError`), a key that is there twice, half a character.
        RecursionError: a nesting beyond Python's limits.
    """
    value = _DECODER.decode(text)
    if HALF_CHARACTER.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError("a string holds half a character (a lone surrogate)") from error
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found


def _integer(digits: str) -> int | str:
    number = int(digits)
    return number if -(2**63) <= number < 2**63 else digits


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_constant=lambda _: None)
