"""Documents to tokens: whole ones, or blocks of one stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from tuner.data import cut as cut_module
from tuner.data.cache_key import map_batches
from tuner.data.cut import COUNTS, account, cut
from tuner.data.encoding_report import EncodingReport, too_long
from tuner.data.sources import SOURCE_ROW
from tuner.errors import DataError


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], start: int | None, end: int | None
) -> list[list[int]]:
    """The tokens of each document, with `start` before and `end` behind them where there is one and the text does not
    spell it there itself, white space aside, as a text does that a chat template wrote."""
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
    first, last = (None if token is None else str(tokenizer.convert_ids_to_tokens(token)) for token in (start, end))
    rows = []
    for text, ids in zip(texts, encoded["input_ids"], strict=True):
        opening = [] if first is None or text[: len(first) + 8].lstrip().startswith(first) else [start]
        closing = [] if last is None or text[-len(last) - 8 :].rstrip().endswith(last) else [end]
        rows.append([*opening, *ids, *closing])
    return rows


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


def whole_documents(
    documents: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    truncation_mode: str = "split",
    max_labels_lost: float = 0.05,
    num_proc: int | None = None,
    name: str = "the dataset",
) -> tuple[Dataset, EncodingReport]:
    """Every document as a sequence, all of it to be learnt: as `tuner.data.encode.encode_dataset` does, of text."""
    encoded = map_batches(
        documents,
        _pieces,
        [__file__, cut_module.__file__],
        {"tokenizer": tokenizer, "max_length": max_length, "truncation_mode": truncation_mode, "name": name},
        with_indices=True,
        num_proc=num_proc,
        remove_columns=documents.column_names,
        desc="Tokenizing",
    )
    return account(encoded, len(documents), max_length, max_labels_lost, truncation_mode, name)


def _pieces(
    batch: dict[str, list[Any]],
    indices: list[int],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    truncation_mode: str,
    name: str,
) -> dict[str, list[Any]]:
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    documents = tokenize(tokenizer, batch["text"], bos if bos != eos else None, eos)
    columns: dict[str, list[Any]] = {name: [] for name in ("input_ids", "labels", "rows", *COUNTS)}
    for index, document in zip(batch.get(SOURCE_ROW, indices), documents, strict=True):
        if truncation_mode == "error" and len(document) > max_length:
            raise too_long(f"{name}, row {index}", len(document), max_length)
        size = max_length if truncation_mode == "split" else max(len(document), 1)
        for start in range(0, len(document), size):
            piece = document[start : start + size]
            ids, labels, counts = cut({"input_ids": piece, "labels": piece}, max_length)
            for column, value in zip(columns.values(), (ids, labels, [index], *counts), strict=True):
                column.append(value)
    return columns
