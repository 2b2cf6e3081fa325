"""Documents to tokens: whole ones, or blocks of one stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from tuner.data.cache_key import map_batches
from tuner.errors import DataError

# Characters at either end among which a control token is looked for.
LONGEST = 80


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], start: int | None, end: int | None
) -> list[list[int]]:
    """The tokens of each document, with `start` before and `end` behind them where there is one and the text does not
    spell it there itself, white space aside. A text that begins with a control token was written by a chat template: it
    gets no start, and no end where it ends with one."""
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
    first, last = (None if token is None else str(tokenizer.convert_ids_to_tokens(token)) for token in (start, end))
    control = tuple(t.content for t in tokenizer.added_tokens_decoder.values() if t.special and t.content.strip())
    rows = []
    for text, ids in zip(texts, encoded["input_ids"], strict=True):
        templated = text[:LONGEST].lstrip().startswith(tuple(c for c in control if c != last))
        opening = [] if first is None or templated or text[:LONGEST].lstrip().startswith(first) else [start]
        ended = last is None or text[-LONGEST:].rstrip().endswith((last, *control) if templated else last)
        closing = [] if ended else [end]
        rows.append([*opening, *ids, *closing])
    return rows


def documents(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of whole documents, with their beginning and end; one mark for both, as GPT-2's, stands at the end."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    return tokenize(tokenizer, texts, bos if bos != eos else None, eos)


def token_blocks(
    documents: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    start: int | None = None,
    end: int | None = None,
    num_proc: int | None = None,
    name: str = "the dataset",
) -> Dataset:
    """The documents in one stream of tokens, cut into blocks without a gap (Liu et al. 2019, section 4.2,
    https://arxiv.org/abs/1907.11692).

    Args:
        length: tokens in a block.
        start: a token that begins every block.
        end: a token after every document.

    Returns:
        Rows of `input_ids`, all of `length` tokens. What does not fill the last block is left out.

    Raises:
        DataError: less text than one block.
    """
    encoded = map_batches(
        documents.select_columns(["text"]),
        _tokens,
        [__file__],
        {"tokenizer": tokenizer, "end": end},
        num_proc=num_proc,
        remove_columns=["text"],
        features=Features({"input_ids": List(Value("int32"))}),
        desc="Tokenizing",
    )
    chunks = encoded.with_format("arrow")[:]["input_ids"].chunks if len(encoded) else []
    stream = np.concatenate([np.zeros(0, np.int32), *(chunk.flatten().to_numpy() for chunk in chunks)])
    width = length if start is None else length - 1
    count = len(stream) // width
    if count == 0:
        raise DataError(f"{name} has {len(stream)} tokens, fewer than one block of --max_length {length}.")
    blocks = stream[: count * width].reshape(count, width)
    if start is not None:
        blocks = np.concatenate([np.full((count, 1), start, blocks.dtype), blocks], axis=1)
    return Dataset(pa.table({"input_ids": pa.FixedSizeListArray.from_arrays(pa.array(blocks.reshape(-1)), length)}))


def _tokens(batch: dict[str, list[Any]], tokenizer: PreTrainedTokenizerBase, end: int | None) -> dict[str, list[Any]]:
    return {"input_ids": tokenize(tokenizer, batch["text"], None, end)}
