"""Texts and what they are to become: translations, summaries, and any other rewriting."""

from __future__ import annotations

from typing import Any

from datasets import Dataset

from tuner.data.cache_key import map_batches
from tuner.data.sources import SOURCE_ROW
from tuner.data.turns import Row, shown, text_of
from tuner.errors import DataError

# Columns of source and target, under the names that data sets give them, and what a shape says of them.
NAMES = (
    (("source", "target"), "strings"),
    (("document", "summary"), "strings"),
    (("article", "highlights"), "strings"),
    (("dialogue", "summary"), "strings"),
    (("text", "summary"), "strings"),
)
TRANSLATION = "translation"
LANGUAGES = "--source_lang and --target_lang say which of its languages are read and written"


def pair(row: Row, unused: set[str], source: str, target: str) -> Row:
    """A source and its target."""
    return {"source": text_of(row[source], f"{source!r}"), "target": text_of(row[target], f"{target!r}")}


def needs_languages(row: Row, unused: set[str], column: str) -> Row:
    """Refuse a text by language, of which it is not known which is the source."""
    raise DataError(f"column {column!r} holds a text by language: {LANGUAGES}.")


def translated(rows: Dataset, languages: tuple[str, str], name: str) -> Dataset:
    """Rows of `{"translation": {language: text}}` with `source` and `target` in its place, in the languages named, of
    which `en_XX` is also called `en`; rows without that column as they are. A DataError where a language is not there.
    """
    if TRANSLATION not in rows.column_names:
        return rows
    arguments = {"languages": languages, "name": name}
    return map_batches(rows, _translated, [__file__], arguments, with_indices=True, remove_columns=[TRANSLATION])


def _translated(batch: Any, indices: list[int], languages: tuple[str, str], name: str) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {"source": [], "target": []}
    for number, texts in zip(batch.get(SOURCE_ROW, indices), batch[TRANSLATION], strict=True):
        there = {k: text for k, text in texts.items() if text is not None} if isinstance(texts, dict) else {}
        for column, language in zip(found, languages, strict=True):
            text = there.get(language, there.get(language.split("_")[0]))
            if text is None:
                has = ", ".join(there) or shown(texts)
                raise DataError(f"{name}, row {number}: column {TRANSLATION!r} has no text in {language!r}: {has}.")
            found[column].append(text)
    return found
