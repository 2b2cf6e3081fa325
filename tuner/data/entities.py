"""Entities in tagged tokens, read as seqeval reads them by default (as the CoNLL-2000 script did).

Own code: seqeval's last release, of 2020, is a source package that has to be built.
"""

from __future__ import annotations

from collections.abc import Collection

# IOB and IOB2, BIOES and its other spellings (BILOU, BMES).
PREFIXES = {"B": "B", "I": "I", "E": "E", "S": "S", "L": "E", "U": "S", "M": "I"}

Entity = tuple[str, int, int]


def entities(tags: list[str]) -> set[Entity]:
    """(type, first, last) of every entity. A tag without a prefix continues one of its type, as I- does.

    An entity ends before O, another type, B- or S-, and after E- or S-. What continues nothing begins one.
    """
    found, before = list[Entity](), "O"
    last = ""
    for number, tag in enumerate(tags):
        prefix, kind = split_tag(tag)
        if prefix == "O":
            before = "O"
            continue
        if before in "BI" and prefix in "IE" and kind == last:
            found[-1] = (kind, found[-1][1], number)
        else:
            found.append((kind, number, number))
        before, last = prefix, kind
    return set(found)


def split_tag(tag: str) -> tuple[str, str]:
    """B, I, E, S or O, and the type; the type of a bare prefix is `_`."""
    if tag == "O":
        return "O", ""
    prefix, dash, kind = tag.partition("-")
    if prefix in PREFIXES and (dash or not kind):
        return PREFIXES[prefix], kind or "_"
    return "I", tag


def marks_entities(names: Collection[str]) -> bool:
    """Whether tags are IOB or BIOES: `O`, and others with such a prefix; without `O` each has one and a dash."""
    others, has_outside = set(names) - {"O"}, "O" in names
    return bool(others) and all(tag.partition("-")[0] in PREFIXES and ("-" in tag or has_outside) for tag in others)
