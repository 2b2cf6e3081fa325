"""Raw text in its parts: documents, their lines and sentences, pairs of neighbouring segments.

A document is a text; its parts are its lines, long lines in sentences. A conversation is a document with a line a turn.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from tuner.data.cache_key import map_batches
from tuner.data.schema import CANONICAL, Kind
from tuner.data.sources import SOURCE_ROW
from tuner.data.turns import Message, said
from tuner.errors import DataError
from tuner.text import words
from tuner.text.words import SENTENCE

LONG_LINE = 200  # characters; longer ones are taken in sentences


def to_documents(rows: Dataset, kind: Kind) -> Dataset:
    """Canonical rows as documents: `text` and `source_row`. Each turn of a conversation becomes a line."""
    if kind == "text":
        return rows
    gone = [column for column in CANONICAL[kind] if column in rows.column_names and column != SOURCE_ROW]
    return map_batches(rows, _lines_of_batch, [__file__], {}, remove_columns=gone, features=CANONICAL["text"])


def _lines_of_batch(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {"text": [turns_to_lines(turns) for turns in batch["messages"]], SOURCE_ROW: batch[SOURCE_ROW]}


def turns_to_lines(turns: list[Message]) -> str:
    """A conversation as text: a line a turn, in which what was thought comes before what was said."""
    return "\n".join(" ".join(f"{turn.get('thinking', '')} {said(turn)}".split()) for turn in turns)


def parts(text: str) -> list[str]:
    """The lines of a document that say something, long ones in sentences."""
    lines = (line.strip() for line in text.splitlines())
    split = ([line] if len(line) <= LONG_LINE else SENTENCE.split(line) for line in lines)
    return list(filter(None, chain.from_iterable(split)))


def segment_pairs(
    documents: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    longest: int,
    whole: bool,
    num_proc: int | None = None,
    name: str = "the dataset",
) -> Dataset:
    """Neighbouring segments of each document.

    Args:
        longest: tokens in a segment, at most.
        whole: a segment is as many whole parts as fit; otherwise one part.

    Returns:
        Rows of `first`, `second` (token ids) and `document` (its row in `documents`).

    Raises:
        DataError: no document has two segments.
    """
    features = {"first": List(Value("int32")), "second": List(Value("int32")), "document": Value("int64")}
    how = {"remove_columns": documents.column_names, "features": Features(features), "desc": "Pairing segments"}
    arguments = {"tokenizer": tokenizer, "longest": longest, "whole": whole}
    pairs = map_batches(
        documents, _pair_up, [__file__, words.__file__], arguments, with_indices=True, num_proc=num_proc, **how
    )
    if len(pairs) == 0:
        raise DataError(f"{name}: no document has two neighbouring segments, lines or sentences, to be paired.")
    return pairs


def _pair_up(
    batch: dict[str, list[Any]], indices: list[int], tokenizer: PreTrainedTokenizerBase, longest: int, whole: bool
) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {"first": [], "second": [], "document": []}
    for index, text in zip(indices, batch["text"], strict=True):
        lines = parts(text)
        if whole:  # what stands between parts is white space: without it words would run into one another
            lines[1:] = [f" {part}" for part in lines[1:]]
        encoded = tokenizer(lines, add_special_tokens=False, verbose=False)["input_ids"] if lines else []
        segments = [ids[:longest] for ids in encoded if ids]
        if whole:
            segments = list(_join(segments, longest))
        columns["first"] += segments[:-1]
        columns["second"] += segments[1:]
        columns["document"] += [index] * (len(segments) - 1)
    return columns


def _join(pieces: list[list[int]], longest: int) -> Iterator[list[int]]:
    segment: list[int] = []
    for piece in pieces:
        if segment and len(segment) + len(piece) > longest:
            yield segment
            segment = []
        segment = segment + piece
    if segment:
        yield segment
