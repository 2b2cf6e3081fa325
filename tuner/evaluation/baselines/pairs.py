"""What a summary costs nothing to beat: the first sentences of its text (See et al. 2017, section 4,
https://arxiv.org/abs/1704.04368)."""

from __future__ import annotations

from typing import Any

from tuner.text.words import SENTENCE_OR_LINE

MEASURED = 1000


def sentences(text: str) -> list[str]:
    """The sentences of a text, by their ends."""
    return [part.strip() for part in SENTENCE_OR_LINE.split(text) if part.strip()]


def lead_sentences(text: str, count: int) -> str:
    """The first sentences of a text, by a space; the text itself where there are no more."""
    found = sentences(text)
    return text if len(found) <= count else " ".join(found[:count])


def lead_length(rows: Any) -> int:
    """How many sentences the targets of rows have on average (the first 1,000 are looked at); at least one."""
    targets = rows[:MEASURED]["target"]
    return max(round(sum(len(sentences(text)) for text in targets) / max(len(targets), 1)), 1)
