"""Prompts: rows of text or messages as tokens, and which row an episode has.

Rows keep the data set's own columns, which reward functions are given. A prompt that is a string is what a user says,
as in every recipe here; one to be continued as raw text is in a column `text` or `query`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from tuner.data.cache_key import map_batches
from tuner.data.sources import SOURCE_ROW
from tuner.data.turns import message, messages_of, text_of
from tuner.errors import DataError
from tuner.text.chat import generation_prompt, require_chat_template

# Columns that hold a prompt: the first that is there is taken. Those of raw text come last.
COLUMNS = ("prompt", "messages", "conversations", "text", "query")
RAW = ("text", "query")


def encode_prompts(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, room: int, longest: int | None, name: str
) -> tuple[Dataset, int]:
    """Rows with `input_ids`, and `prompt` as text or messages, beside their own columns; and how many were left out
    because they have more than `longest` tokens.

    Args:
        room: tokens of a prompt that the model can read, and still write a completion.
        name: of the data set, for messages.

    Raises:
        DataError: no column with a prompt; a row without one, or with one that is too long.
    """
    if "input_ids" in rows.column_names:
        found, column = rows, "input_ids"
    else:
        column = next((c for c in COLUMNS if c in rows.column_names), "")
        if not column:
            raise DataError(f"{name}: no column {', '.join(COLUMNS)} or input_ids; there are {rows.column_names}.")
        if column not in RAW:
            require_chat_template(tokenizer)
        arguments = {"tokenizer": tokenizer, "column": column, "name": name}
        found = map_batches(rows, _encode, [__file__], arguments, with_indices=True, desc="Reading prompts")
    lengths = np.array([len(ids) for ids in found["input_ids"]], dtype=int)
    numbers = found[SOURCE_ROW] if SOURCE_ROW in found.column_names else range(len(found))
    if len(lengths) and not lengths.all():
        raise DataError(f"{name}, row {numbers[int(lengths.argmin())]}: column {column!r} is empty.")
    kept = np.flatnonzero(lengths <= (longest or lengths.max(initial=0)))
    if len(kept) and lengths[kept].max() > room:
        worst = int(kept[lengths[kept].argmax()])
        raise DataError(
            f"{name}, row {numbers[worst]}: the prompt has {lengths[worst]:,} tokens, and the model can read {room:,} "
            f"and still write a completion. --max_prompt_length {room} leaves such rows out."
        )
    if not len(kept):
        raise DataError(f"{name}: {len(rows):,} rows, and no prompt of at most {longest} tokens (--max_prompt_length).")
    return found.select(kept), len(found) - len(kept)


def _encode(
    batch: dict[str, list[Any]], indices: list[int], tokenizer: PreTrainedTokenizerBase, column: str, name: str
) -> dict[str, list[Any]]:
    prompts, encoded = [], []
    for number, value in zip(batch.get(SOURCE_ROW, indices), batch[column], strict=True):
        try:
            prompt = _prompt(value, column)
        except DataError as error:
            raise DataError(f"{name}, row {number}: {error}") from None
        if isinstance(prompt, str):
            encoded.append(tokenizer(prompt)["input_ids"])
        else:
            encoded.append(generation_prompt(tokenizer, prompt)["input_ids"][0].tolist())
        prompts.append(prompt)
    return {"prompt": prompts, "input_ids": encoded}


def _prompt(value: Any, column: str) -> Any:
    """A text, or the messages that the assistant is to answer: what it says last in a conversation is left out."""
    if column in RAW:
        text = text_of(value, f"{column!r}")
        if not text.strip():
            raise DataError(f"column {column!r} is empty.")
        return text
    if column == "prompt" and isinstance(value, str):
        if not value.strip():
            raise DataError(f"column {column!r} is empty.")
        return [message("user", value, f"{column!r}")]
    messages = messages_of(value, column, set(), answered=False)
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages or not messages[-1]["content"].strip():
        raise DataError(f"column {column!r} has nothing that an assistant could answer.")
    return messages


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
