"""Prompts: rows of text or messages as tokens, and which row an episode has.

Rows keep the data set's own columns, which reward functions are given. A prompt that is a string is what a user says,
as in every recipe here, with what stands beside it: a system message, earlier questions, Alpaca's `input`. One to be
continued as raw text is in a column `text` or `query`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset, Features, Json, List, Value
from transformers import PreTrainedTokenizerBase

from tuner.data import json_text, questions, schema, tools, turns, unused, written
from tuner.data.cache_key import map_batches
from tuner.data.columns import suggestion, undecoded
from tuner.data.schema import filled_columns, without_nulls
from tuner.data.sources import SOURCE_ROW
from tuner.errors import DataError
from tuner.text import answers, chat, tool_use
from tuner.text.chat import generation_prompt, require_chat_template

# Columns that hold a prompt: the first that is there is taken. Those of raw text come last.
COLUMNS = ("prompt", "messages", "conversations", "instruction", "text", "query")
RAW = ("text", "query")
# Columns that are a part of what a conversation is written from.
BESIDE = (*questions.SYSTEM_COLUMNS, "history", *tools.GIVEN)


def prompt_column(rows: Dataset) -> str:
    """The column that holds the prompt; nothing where there is none."""
    return next((column for column in COLUMNS if column in rows.column_names), "")


def read_prompts(rows: Dataset, name: str) -> tuple[Dataset, dict[str, float]]:
    """Rows with their own columns, and the prompt in one of two: `prompt`, messages that the assistant is to answer,
    or `text`, which is to be continued. Reading them again changes nothing.

    Args:
        name: of the data set, for messages.

    Returns:
        The rows, and of every key of a message that says something and is not used the share of rows that have it.

    Raises:
        DataError: no column with a prompt, or a row without one.
    """
    rows, column = undecoded(rows), prompt_column(rows)
    if not column:
        advice = suggestion(rows[0] if len(rows) else {}, [("prompt",)])
        raise DataError(
            f"{name}: no column {', '.join(COLUMNS)}; there are {', '.join(rows.column_names)}."
            f"{f' Try {advice}.' if advice else ''}"
        )
    if {"message_tree_id", "parent_id"} <= set(rows.column_names):
        raise DataError(f"{name}: its rows are single messages of trees of conversations (OpenAssistant).")
    arguments: dict[str, Any] = {"column": column, "name": name}
    if not len(rows):
        raise DataError(f"{name}: there are no rows.")
    kept = "text" if column in RAW else "prompt"
    gone = [column] if column != kept else []
    features = {c: rows.features[c] for c in rows.column_names if c not in gone}
    features |= {kept: Value("string") if kept == "text" else List(Json()), unused.UNUSED: unused.FEATURE}
    arguments["filled"] = filled_columns(rows)
    options: dict[str, Any] = {"with_indices": True, "remove_columns": gone, "desc": "Reading prompts"}
    code = [__file__, *(str(part.__file__) for part in (turns, questions, written, tools, schema, json_text))]
    return unused.counted(map_batches(rows, _read, code, arguments, features=Features(features), **options))


def _read(
    batch: dict[str, list[Any]], indices: list[int], column: str, name: str, filled: list[str]
) -> dict[str, list[Any]]:
    found, kept = [], "text" if column in RAW else "prompt"
    for position, number in enumerate(batch.get(SOURCE_ROW, indices)):
        rest: set[str] = set()
        try:
            row = {c: values[position] for c, values in batch.items()}
            row |= {c: without_nulls(row[c]) for c in filled}
            found.append({kept: _prompt(row, column, rest), unused.UNUSED: sorted(rest)})
        except DataError as error:
            raise DataError(f"{name}, row {number}: {error}") from None
    return {key: [row[key] for row in found] for key in (kept, unused.UNUSED)}


def _prompt(row: dict[str, Any], column: str, rest: set[str]) -> Any:
    """A text, or the messages that the assistant is to answer: what it says last in a conversation is left out."""
    for other in turns.REFUSED_COLUMNS.keys() & row.keys() - {"history"}:
        if turns.says_something(row[other]):
            turns.passed_over("column", other, turns.REFUSED_COLUMNS)
    whole = column in RAW or (column == "instruction" and isinstance(row[column], str))
    value = row[column] if whole else written.turns_in(row[column], asked=True)
    if isinstance(value, str) or column in RAW:
        if not turns.text_of(value, f"{column!r}").strip():
            raise DataError(f"column {column!r} is empty.")
        if column in RAW:
            for other in BESIDE:
                if turns.says_something(row.get(other)):
                    raise DataError(
                        f"the column {other!r} is for a conversation, and {column!r} is a text to be continued. Pass "
                        f"--column_mapping {column}=prompt where somebody asks, or drop it."
                    )
            return value
        tools.given_of(row)  # what is wrong with it is said with the row
        messages = questions.question(row, column)
        questions.add_system(row, messages)
        return messages
    tools.given_of(row)  # what is wrong with it is said with the row
    messages = turns.messages_of(value, column, rest, answered=False)
    earlier = questions.history_of(row.get("history"))
    if [turn for turn in messages if turn["role"] != "system"][
        : len(earlier)
    ] != earlier:  # else it is a prompt of ours
        questions.refuse_history(row)
    questions.add_system(row, messages)
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages or not messages[-1]["content"].strip():
        raise DataError(f"column {column!r} has nothing that an assistant could answer.")
    return messages


def encode_prompts(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, room: int, longest: int | None, name: str
) -> tuple[Dataset, int]:
    """Rows with `input_ids`, which those of `read_prompts` get; and how many were left out because they have more than
    `longest` tokens.

    Args:
        room: tokens of a prompt that the model can read, and still write a completion.
        name: of the data set, for messages.

    Raises:
        DataError: a prompt without tokens, or with too many.
        ModelError: messages, and a tokenizer without a chat template.
    """
    if "input_ids" not in rows.column_names:
        if "prompt" in rows.column_names:
            require_chat_template(tokenizer)
        filled = [column for column in filled_columns(rows) if column != "prompt"]  # which is clean
        how = {"tokenizer": tokenizer, "filled": filled, "name": name}
        code = [__file__, *(str(part.__file__) for part in (tools, schema, chat, answers, tool_use))]
        rows = map_batches(rows, _encode, code, how, with_indices=True, desc="Encoding prompts")
    lengths = np.array([len(ids) for ids in rows["input_ids"]], dtype=int)
    numbers = rows[SOURCE_ROW] if SOURCE_ROW in rows.column_names else range(len(rows))
    if not lengths.all():
        raise DataError(f"{name}, row {numbers[int(lengths.argmin())]}: the prompt has no tokens.")
    kept = np.flatnonzero(lengths <= (longest or lengths.max()))
    if not len(kept):
        raise DataError(f"{name}: no prompt has at most {longest} tokens (--max_prompt_length).")
    if lengths[kept].max() > room:
        worst = int(kept[lengths[kept].argmax()])
        raise DataError(
            f"{name}, row {numbers[worst]}: the prompt has {lengths[worst]:,} tokens, and the model can read {room:,} "
            f"and still write a completion. --max_prompt_length {room} leaves such rows out."
        )
    return rows.select(kept), len(rows) - len(kept)


def _encode(
    batch: dict[str, list[Any]],
    indices: list[int],
    tokenizer: PreTrainedTokenizerBase,
    filled: list[str],
    name: str,
) -> dict[str, list[Any]]:
    if "prompt" not in batch:
        return {"input_ids": tokenizer(batch["text"])["input_ids"]}
    found = []
    for place, number in enumerate(batch.get(SOURCE_ROW, indices)):
        row = {column: values[place] for column, values in batch.items()}
        row |= {column: without_nulls(row[column]) for column in filled}
        ids = generation_prompt(tokenizer, row["prompt"], tools.given_of(row), f"{name}, row {number}")["input_ids"]
        found.append(ids[0].tolist())
    return {"input_ids": found}


class EpisodeOrder:
    """Which row each episode has: a function of (seed, episode). Rows come in a new order in every epoch, each as often
    in a row as a prompt has completions."""

    def __init__(self, rows: int, seed: int, generations: int):
        self.rows, self.seed, self.generations = rows, seed, generations
        self._epoch, self._order = -1, np.zeros(0, dtype=int)

    def __call__(self, episodes: Sequence[int]) -> list[int]:
        """The rows of these episodes."""
        found = []
        for episode in episodes:
            epoch, place = divmod(episode // self.generations, self.rows)
            if epoch != self._epoch:
                self._epoch, self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.rows)
            found.append(int(self._order[place]))
        return found
