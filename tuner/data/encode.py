"""Canonical rows to `input_ids` and `labels`, with an account of everything that did not fit.

A row longer than `max_length` is, by `truncation_mode`: `split` between turns into conversations of their own (text:
between tokens), so that nothing is lost; or cut after `max_length` tokens (`keep_start`); or refused (`error`). What is
cut is counted, and a run that would lose more labels than it was told to stops before it starts.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from tuner.data import cut as cut_module
from tuner.data.cache_key import map_batches
from tuner.data.cut import COUNTS, Encoded, account, cut
from tuner.data.encoding_report import EncodingReport, too_long
from tuner.data.schema import Kind
from tuner.data.sources import SOURCE_ROW
from tuner.data.tokens import whole_documents
from tuner.text import chat
from tuner.text.chat import Message, encode_conversations, require_generation_marks


def encode_dataset(
    rows: Dataset,
    kind: Kind,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    truncation_mode: str = "split",
    max_labels_lost: float = 0.05,
    num_proc: int | None = None,
    name: str = "the dataset",
) -> tuple[Dataset, EncodingReport]:
    """Encode canonical rows.

    Args:
        rows: a dataset with the column `kind` and, where rows are known by other numbers, `source_row`.
        max_length: longest sequence, in tokens.
        truncation_mode: `split`, `keep_start` or `error`; see the module's header.
        max_labels_lost: largest share of supervised tokens that may be cut off.
        num_proc: processes; the result does not depend on it.

    Returns:
        Rows of `input_ids`, `labels` (-100 where nothing is learnt, always at the first token, which nothing precedes)
        and `rows` (the source row), every one with a label, and the account.

    Raises:
        DataError: rows that are too long, or no supervised token at all.
        ModelError: a chat template that cannot be trained with.
    """
    if kind == "text":
        return whole_documents(rows, tokenizer, max_length, truncation_mode, max_labels_lost, num_proc, name)
    require_generation_marks(tokenizer)
    encoded = map_batches(
        rows,
        _encode_batch,
        [__file__, cut_module.__file__, chat.__file__],
        {"tokenizer": tokenizer, "max_length": max_length, "truncation_mode": truncation_mode, "name": name},
        with_indices=True,
        batch_size=500,
        num_proc=num_proc,
        remove_columns=rows.column_names,
        desc="Tokenizing",
    )
    return account(encoded, len(rows), max_length, max_labels_lost, truncation_mode, name)


def _encode_batch(
    batch: dict[str, list[Any]],
    indices: list[int],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    truncation_mode: str,
    name: str,
) -> dict[str, list[Any]]:
    values, indices = batch["messages"], batch.get(SOURCE_ROW, indices)
    encoded = encode_conversations(tokenizer, values, names=[f"{name}, row {index}" for index in indices])
    longer = [i for i, row in enumerate(encoded) if len(row["input_ids"]) > max_length]
    if longer and truncation_mode == "error":
        raise too_long(f"{name}, row {indices[longer[0]]}", len(encoded[longer[0]]["input_ids"]), max_length)
    pieces = {i: [row] for i, row in enumerate(encoded)}
    if truncation_mode == "split":
        pieces |= _split_conversations(tokenizer, {i: values[i] for i in longer}, dict(enumerate(encoded)), max_length)
    columns: dict[str, list[Any]] = {name: [] for name in ("input_ids", "labels", "rows", *COUNTS)}
    for position, index in enumerate(indices):
        for piece in pieces[position]:
            ids, labels, counts = cut(piece, max_length)
            for column, value in zip(columns.values(), (ids, labels, [index], *counts), strict=True):
                column.append(value)
    return columns


def _split_conversations(
    tokenizer: PreTrainedTokenizerBase,
    conversations: dict[int, list[Message]],
    encoded: dict[int, Encoded],
    max_length: int,
) -> dict[int, list[Encoded]]:
    """Cut conversations after answers into pieces that fit, each encoded as a conversation of its own.

    A system message leads every piece of its conversation. A single exchange that is longer than `max_length` stays
    whole here; the caller cuts it, and counts what is lost.
    """
    runs = {}
    for i, turns in conversations.items():
        # What the template puts before the first turn comes again in every piece: a system message, a few marks.
        system = turns[0]["content"] if turns[0]["role"] == "system" else ""
        overhead = len(tokenizer(system, add_special_tokens=False)["input_ids"]) + 8
        turn_ends = [turn for turn, message in enumerate(turns, 1) if message["role"] == "assistant"]
        token_ends = _answer_ends(tokenizer, turns, encoded[i], turn_ends)
        runs[i] = _cut_after_answers(turns, turn_ends, token_ends, max_length, overhead)
    flat = [run for pieces in runs.values() for run in pieces]
    rows = encode_conversations(tokenizer, flat, eos_required=False) if flat else []
    # A template may repeat more than `overhead`, a system message of its own for instance: then the piece is cut again.
    again = {
        n: run
        for n, run in enumerate(flat)
        if rows[n]["labels"][max_length:].count(-100) < len(rows[n]["labels"][max_length:])
        and sum(message["role"] == "assistant" for message in run) > 1
    }
    finer = _split_conversations(tokenizer, again, dict(enumerate(rows)), max_length) if again else {}
    pieces_of = iter([finer.get(n, [row]) for n, row in enumerate(rows)])
    return {i: [piece for _ in pieces for piece in next(pieces_of)] for i, pieces in runs.items()}


def _answer_ends(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], row: Encoded, turn_ends: list[int]
) -> list[int]:
    """The number of tokens up to the end of each answer, where `turn_ends` says after how many messages that is."""
    steps = enumerate(pairwise([*row["labels"], -100]), 1)
    ends = [t for t, (label, after) in steps if label != -100 and after == -100]
    if len(ends) == len(turn_ends):  # each answer is one stretch of labels, nearly always
        return ends
    # Answers that touch one another or have no token.
    heads = encode_conversations(tokenizer, [messages[:turn] for turn in turn_ends], eos_required=False)
    return [len(head["input_ids"]) for head in heads]


def _cut_after_answers(
    messages: list[Message], turn_ends: list[int], token_ends: list[int], max_length: int, overhead: int
) -> list[list[Message]]:
    """As few runs of whole exchanges as fit `max_length` tokens, from the front."""
    system = messages[:1] if messages[0]["role"] == "system" else []
    runs, start, token_start, room = [], 0, 0, max_length
    for number, (turn, token) in enumerate(zip(turn_ends, token_ends, strict=True)):
        if number + 1 == len(turn_ends) or token_ends[number + 1] - token_start > room:
            runs.append((system if start else []) + messages[start:turn])
            start, token_start, room = turn, token, max_length - overhead
    return runs
