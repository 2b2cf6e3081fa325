"""Prompts: rows of text or messages as tokens, and which row an episode has.

Rows keep the data set's own columns, which reward functions are given. A prompt that is a string is what a user says,
as in every recipe here, with what stands beside it: a system message, earlier questions, Alpaca's `input`. One to be
continued as raw text is in a column `text` or `query`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from tuner.data import turns, unused
from tuner.data.cache_key import map_batches
from tuner.data.columns import suggestion
from tuner.data.sources import SOURCE_ROW
from tuner.data.tools import tools_of, variables_of
from tuner.errors import DataError
from tuner.text.chat import generation_prompt, require_chat_template

# Columns that hold a prompt: the first that is there is taken. Those of raw text come last.
COLUMNS = ("prompt", "messages", "conversations", "instruction", "text", "query")
RAW = ("text", "query")


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
    column = next((c for c in COLUMNS if c in rows.column_names), "")
    if not column:
        advice = suggestion(rows.column_names, [("prompt",)])
        raise DataError(
            f"{name}: no column {', '.join(COLUMNS)}; there are {', '.join(rows.column_names)}."
            f"{f' Try {advice}.' if advice else ''}"
        )
    arguments = {"column": column, "name": name}
    kept = "text" if column in RAW else "prompt"
    gone = [column] if column != kept else []
    options: dict[str, Any] = {"with_indices": True, "remove_columns": gone, "desc": "Reading prompts"}
    return unused.counted(map_batches(rows, _read, [__file__, turns.__file__], arguments, **options))


def _read(batch: dict[str, list[Any]], indices: list[int], column: str, name: str) -> dict[str, list[Any]]:
    found, kept = [], "text" if column in RAW else "prompt"
    for position, number in enumerate(batch.get(SOURCE_ROW, indices)):
        rest: set[str] = set()
        try:
            row = {name: values[position] for name, values in batch.items()}
            found.append({kept: _prompt(row, column, rest), unused.UNUSED: sorted(rest)})
        except DataError as error:
            raise DataError(f"{name}, row {number}: {error}") from None
    return {key: [row[key] for row in found] for key in (kept, unused.UNUSED)}


def _prompt(row: dict[str, Any], column: str, rest: set[str]) -> Any:
    """A text, or the messages that the assistant is to answer: what it says last in a conversation is left out."""
    value = row[column]
    if column in RAW or isinstance(turns.parsed(value), str):
        if not turns.text_of(value, f"{column!r}").strip():
            raise DataError(f"column {column!r} is empty.")
        if column in RAW:
            return value
        messages = turns.question(row, column)
        turns.add_system(row, messages)
        return messages
    messages = turns.messages_of(value, column, rest, answered=False)
    earlier = turns.history_of(row.get("history"))
    if [turn for turn in messages if turn["role"] != "system"][
        : len(earlier)
    ] != earlier:  # else it is a prompt of ours
        turns.refuse_history(row)
    turns.add_system(row, messages)
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
        rows = map_batches(rows, _encode, [__file__], {"tokenizer": tokenizer}, desc="Encoding prompts")
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


def _encode(batch: dict[str, list[Any]], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Any]]:
    if "prompt" in batch:
        rows = ({column: batch[column][number] for column in batch} for number in range(len(batch["prompt"])))
        given = ((row["prompt"], {"tools": tools_of(row), **(variables_of(row) or {})}) for row in rows)
        prompts = (generation_prompt(tokenizer, *both) for both in given)
        return {"input_ids": [prompt["input_ids"][0].tolist() for prompt in prompts]}
    return {"input_ids": tokenizer(batch["text"])["input_ids"]}


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
