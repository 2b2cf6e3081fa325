"""Canonical rows to `input_ids` and `labels`, with an account of everything that did not fit.

A row is one conversation, or of preferences two: the prompt, in which nothing is labelled, with either answer. What is
longer than `max_length` is, by `truncation_mode`: `split` between turns into conversations of their own (text: between
tokens), so that nothing is lost; or cut after `max_length` tokens (`keep_start`, and answers to a prompt in any case);
or refused (`error`). What is cut is counted, and a run that would lose more labels than allowed does not start.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from tuner.data import tokens, tools
from tuner.data.cache_key import map_batches
from tuner.data.encoding_report import EncodingReport
from tuner.data.schema import TOOLS, Kind
from tuner.data.sources import SOURCE_ROW
from tuner.data.tools import VARIABLES, given
from tuner.errors import DataError
from tuner.text import answers, chat, tool_use
from tuner.text.answers import Message, learnt, training_tokenizer
from tuner.text.chat import Given, encode_conversations, require_chat_template

Encoded = dict[str, Any]
# The columns of a kind that become sequences, and what the encoded columns' names have before them.
SEQUENCES: dict[Kind, dict[str, str]] = {
    "messages": {"messages": ""},
    "text": {"text": ""},
    "preference": {"chosen": "chosen_", "rejected": "rejected_"},
    "ranked": {"chosen": "chosen_", "rejected": "rejected_"},
}
# Columns of canonical rows that stay as they are.
PASSED = ("label", "margin", "tie")
# Of a row: tokens that stay, those of them with a label, as many of either that were cut off, answers that the chat
# template hides, answers whose reasoning it hides, two answers the same.
COUNTS = ("tokens", "supervised", "lost_tokens", "lost_supervised", "unlearnt_answers", "hidden_reasoning", "identical")


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
    """Encode canonical rows of a kind (a key of `SEQUENCES`), which may have a column `source_row`, where they are
    known by other numbers, and those of `PASSED`, which are passed on.

    Args:
        max_length, truncation_mode: longest sequence, in tokens, and what becomes of longer ones; see the header.
        max_labels_lost: largest share of supervised tokens that may be cut off.
        num_proc: processes; the result does not depend on it.

    Returns:
        Rows of `input_ids`, `labels` (-100 where nothing is learnt, always at the first token, which nothing precedes)
        and `rows` (the source row), of two answers with `chosen_` and `rejected_` before the first two; every sequence
        with a label. And the account.

    Raises:
        DataError: rows that are too long, or no supervised token at all.
        ModelError: a chat template that cannot be trained with.
    """
    if kind != "text":
        require_chat_template(tokenizer)
        tokenizer, _ = training_tokenizer(tokenizer)
    if len(rows) == 0:
        raise _nothing_to_learn(name)
    arguments = {"tokenizer": tokenizer, "kind": kind, "max_length": max_length, "mode": truncation_mode, "name": name}
    how = {"batch_size": 500, "num_proc": num_proc, "remove_columns": rows.column_names, "desc": "Tokenizing"}
    sources = [__file__, *(str(part.__file__) for part in (tokens, tools, answers, chat, tool_use))]
    encoded = map_batches(rows, _encode_batch, sources, arguments, with_indices=True, **how)
    counts = encoded.select_columns(list(COUNTS)).with_format("numpy")[:]
    kept = np.flatnonzero(counts["supervised"])  # a batch without a label would have a loss of 0 / 0
    sums = {column: int(numbers.sum()) for column, numbers in counts.items()}
    report = EncodingReport(len(rows), len(kept), unlabelled=len(encoded) - len(kept), **sums)
    if report.supervised == 0:
        if report.unlearnt_answers:
            raise DataError(
                f"{name}: {chat.origin(tokenizer)} shows none of the {report.unlearnt_answers:,} answers, or writes "
                "them otherwise than its generation prompt begins them. Pass one with {% generation %} marks."
            )
        raise _nothing_to_learn(name)
    if report.share_labels_lost > max_labels_lost:
        cure = "" if truncation_mode == "split" or kind in ("preference", "ranked") else ", use --truncation_mode split"
        raise DataError(
            f"{name}: cutting rows to --max_length {max_length} would lose {report.share_labels_lost:.0%} of the "
            f"answers' tokens; --max_labels_lost allows {max_labels_lost:.0%}. Raise --max_length{cure}, or allow it."
        )
    encoded = encoded.remove_columns(list(COUNTS))
    return encoded.select(kept) if report.unlabelled else encoded, report


def _nothing_to_learn(name: str) -> DataError:
    return DataError(f"{name}: no token within --max_length is supervised, so there is nothing to learn.")


def _encode_batch(
    batch: dict[str, list[Any]], indices: list[int], tokenizer: Any, kind: Kind, max_length: int, mode: str, name: str
) -> dict[str, list[Any]]:
    numbers = batch.get(SOURCE_ROW, indices)
    names = [f"{name}, row {number}" for number in numbers]
    prompts = batch.get("prompt", [[]] * len(numbers))
    columns = [column for column in (TOOLS, VARIABLES) if column in batch]
    beside = [given({column: batch[column][place] for column in columns}) for place in range(len(numbers))]
    encoded: list[list[Encoded]] = []
    for column in SEQUENCES[kind]:
        if kind == "text":
            encoded.append([{"input_ids": ids, "labels": ids} for ids in tokens.documents(tokenizer, batch[column])])
        else:
            whole = [[*prompt, *answer] for prompt, answer in zip(prompts, batch[column], strict=True)]
            before = [len(prompt) for prompt in prompts]
            encoded.append(encode_conversations(tokenizer, whole, names=names, prompts=before, given=beside))
    longest = [max(len(sequence["input_ids"]) for sequence in found) for found in zip(*encoded, strict=True)]
    longer = [position for position, length in enumerate(longest) if length > max_length]
    if longer and mode == "error":
        found = f"{names[longer[0]]}: {longest[longer[0]]} tokens, longer than --max_length {max_length}"
        raise DataError(f"{found} (--truncation_mode error).")
    pieces: dict[int, list[Any]] = {position: [found] for position, found in enumerate(zip(*encoded, strict=True))}
    if kind == "messages" and mode == "split":
        conversations = {position: batch["messages"][position] for position in longer}
        split = _split(tokenizer, conversations, beside, dict(enumerate(encoded[0])), max_length)
        pieces |= {position: [[part] for part in parts] for position, parts in split.items()}
    if kind == "text" and mode == "split":
        for position in longer:
            document, starts = encoded[0][position], range(0, longest[position], max_length)
            pieces[position] = [[{k: ids[at : at + max_length] for k, ids in document.items()}] for at in starts]
    rows = []
    for position, number in enumerate(numbers):
        passed = {name: batch[name][position] for name in PASSED if name in batch}
        rows += [{"rows": [number], **passed, **_cut(piece, kind, max_length)} for piece in pieces[position]]
    return {column: [row[column] for row in rows] for column in rows[0]}


def _cut(sequences: list[Encoded], kind: Kind, max_length: int) -> dict[str, Any]:
    """The beginnings of a row's sequences, each up to its last label, and its `COUNTS`; a row of which one sequence has
    no label has none."""
    row: dict[str, Any] = {}
    counts: list[tuple[int, ...]] = []
    for prefix, sequence in zip(SEQUENCES[kind].values(), sequences, strict=True):
        ids, labels = sequence["input_ids"], [-100, *sequence["labels"][1:]]  # nothing precedes the first token
        # What follows the last answer is seen by nothing that is learnt: it would only cost time. But of a ranked one
        # the score is read there, by whoever writes the conversation with the same template.
        most = min(len(ids), max_length)
        kept = next((t for t in range(most, 0, -1) if labels[t - 1] != -100), 0)
        kept = most if kept and kind == "ranked" else kept
        row |= {f"{prefix}input_ids": ids[:kept], f"{prefix}labels": labels[:kept]}
        labelled, within = (len(part) - part.count(-100) for part in (labels, labels[:kept]))
        counts.append((kept, within, max(len(ids) - max_length, 0), labelled - within))
    kept, within, *lost = map(sum, zip(*counts, strict=True))
    hidden = [sum(sequence.get(name, 0) for sequence in sequences) for name in ("unlearnt", "unreasoned")]
    whole = all(labelled for _, labelled, *_ in counts)
    identical = len({tuple(sequence["input_ids"]) for sequence in sequences}) < len(sequences)
    return row | dict(zip(COUNTS, (kept * whole, within * whole, *lost, *hidden, identical), strict=True))


def _split(
    tokenizer: PreTrainedTokenizerBase,
    conversations: dict[int, list[Message]],
    beside: Sequence[Given],
    encoded: dict[int, Encoded],
    max_length: int,
) -> dict[int, list[Encoded]]:
    """Conversations cut after answers into pieces that fit, each encoded as a conversation of its own, which its system
    message leads. A single exchange that is longer stays whole, as a call does with its result: `_cut` cuts it, and
    counts what is lost."""
    runs = {}
    for i, turns in conversations.items():
        # What the template puts before the first turn comes again in every piece: a system message, a few marks.
        system = turns[0]["content"] if turns[0]["role"] == "system" else ""
        overhead = len(tokenizer(system, add_special_tokens=False)["input_ids"]) + 8
        answers = [turn for turn, message in enumerate(turns, 1) if learnt(message)]
        ends = dict(zip(answers, _answer_ends(tokenizer, turns, beside[i], encoded[i], answers), strict=True))
        cuts = _cuts(turns)
        runs[i] = _cut_after_answers(turns, cuts, [ends[turn] for turn in cuts], max_length, overhead)
    flat, same = [run for pieces in runs.values() for run in pieces], [beside[i] for i in runs for _ in runs[i]]
    rows = encode_conversations(tokenizer, flat, eos_required=False, given=same) if flat else []
    # A template may repeat more than `overhead`, a system message of its own or what may be called: then the piece is
    # cut again.
    again = {
        n: run for n, run in enumerate(flat) if set(rows[n]["labels"][max_length:]) - {-100} and len(_cuts(run)) > 1
    }
    finer = _split(tokenizer, again, same, dict(enumerate(rows)), max_length) if again else {}
    pieces_of = iter([finer.get(n, [row]) for n, row in enumerate(rows)])
    return {i: [piece for _ in pieces for piece in next(pieces_of)] for i, pieces in runs.items()}


def _cuts(turns: list[Message]) -> list[int]:
    """After how many messages a conversation may be cut: behind an answer, but not between a call and its result; the
    last answer counts in any case."""
    answers = [turn for turn, message in enumerate(turns, 1) if learnt(message)]
    return [turn for turn in answers if turn == answers[-1] or turns[turn]["role"] != "tool"]


def _answer_ends(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Message],
    beside: Given,
    row: Encoded,
    turn_ends: list[int],
) -> list[int]:
    """The number of tokens up to the end of each answer, where `turn_ends` says after how many messages that is."""
    steps = enumerate(pairwise([*row["labels"], -100]), 1)
    ends = [t for t, (label, after) in steps if label != -100 and after == -100]
    if len(ends) == len(turn_ends):  # each answer is one stretch of labels, nearly always
        return ends
    # Answers that touch one another or have no token.
    heads = [messages[:turn] for turn in turn_ends]
    found = encode_conversations(tokenizer, heads, eos_required=False, given=[beside] * len(heads))
    return [len(head["input_ids"]) for head in found]


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
