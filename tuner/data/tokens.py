"""Documents to tokens: whole ones, or blocks of one stream. Columns of numbers from end to end, no lists in between."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from tuner.data.cache_key import map_batches
from tuner.data.encoding_report import EncodingReport, nothing_to_learn, too_long, too_much_lost
from tuner.data.sources import SOURCE_ROW
from tuner.errors import DataError
from tuner.text import word_cache as words
from tuner.text.word_cache import missing_ends, tokenize


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
    stream, _ = tokens_of(documents, tokenizer, None, end, num_proc)
    width = length if start is None else length - 1
    count = len(stream) // width
    if count == 0:
        raise DataError(f"{name} has {len(stream)} tokens, fewer than one block of --max_length {length}.")
    blocks = stream[: count * width].reshape(count, width)
    if start is not None:
        blocks = np.concatenate([np.full((count, 1), start, blocks.dtype), blocks], axis=1)
    return Dataset(pa.table({"input_ids": pa.FixedSizeListArray.from_arrays(pa.array(blocks.reshape(-1)), length)}))


def whole_documents(
    documents: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    truncation_mode: str = "split",
    max_labels_lost: float = 0.05,
    num_proc: int | None = None,
    name: str = "the dataset",
) -> tuple[Dataset, EncodingReport]:
    """Every document as a sequence, all of it to be learnt.

    Args:
        truncation_mode, max_labels_lost: of documents that are longer than `max_length`; see `tuner.data.encode`.

    Returns:
        Rows of `input_ids`, `labels` (-100 at the first token, which nothing precedes) and `rows` (the source row), and
        the account.

    Raises:
        DataError: documents that are too long, or nothing to learn.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    ids, lengths = tokens_of(documents, tokenizer, bos if bos != eos else None, eos, num_proc)
    rows = np.arange(len(lengths))
    if SOURCE_ROW in documents.column_names:
        rows = documents.with_format("numpy")[SOURCE_ROW][:]
    if truncation_mode == "error" and (lengths > max_length).any():
        first = int((lengths > max_length).argmax())
        raise too_long(f"{name}, row {rows[first]}", int(lengths[first]), max_length)
    starts = np.cumsum(lengths) - lengths
    if truncation_mode == "split":
        pieces = -(-lengths // max_length)
        within = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        starts, rows = np.repeat(starts, pieces) + within * max_length, np.repeat(rows, pieces)
        lengths = np.minimum(np.repeat(lengths, pieces) - within * max_length, max_length)
    kept = np.minimum(lengths, max_length)
    supervised, lost = int((kept - 1).sum()), int((lengths - kept).sum())
    if supervised == 0:
        raise nothing_to_learn(name)
    if lost > max_labels_lost * (supervised + lost):
        raise too_much_lost(name, max_length, lost / (supervised + lost), max_labels_lost, truncation_mode)
    labelled = kept > 1  # of a single token nothing is learnt
    starts, rows, kept = starts[labelled], rows[labelled], kept[labelled]
    offsets = np.concatenate([[0], np.cumsum(kept)])
    taken = ids[np.repeat(starts - offsets[:-1], kept) + np.arange(offsets[-1])]
    labels = taken.copy()
    labels[offsets[:-1]] = -100
    columns = {"input_ids": taken, "labels": labels}
    lists = {key: pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(found)) for key, found in columns.items()}
    table = pa.table({**lists, "rows": pa.FixedSizeListArray.from_arrays(pa.array(rows, pa.int64()), 1)})
    counts = int(kept.sum()), supervised, lost, lost, int((~labelled).sum())
    return Dataset(table), EncodingReport(len(documents), len(rows), *counts)


def tokens_of(
    documents: Dataset, tokenizer: PreTrainedTokenizerBase, start: int | None, end: int | None, num_proc: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """All documents' tokens one after the other, int32, and how many are each document's; with a token before and
    after each where there is one, and where the text does not spell it there itself."""
    if len(documents) == 0:
        return np.zeros(0, np.int32), np.zeros(0, np.int64)
    found = map_batches(
        documents.select_columns(["text"]).with_format("arrow"),
        _tokenize,
        [__file__, words.__file__],
        {"tokenizer": tokenizer, "start": start, "end": end},
        num_proc=num_proc,
        remove_columns=["text"],
        features=Features({"input_ids": List(Value("int32"))}),
        desc="Tokenizing",
    )
    lists = found.with_format("arrow")[:]["input_ids"]
    chunks = [(chunk.flatten().to_numpy(), chunk.value_lengths().to_numpy()) for chunk in lists.chunks]
    ids, lengths = ([chunk[part] for chunk in chunks] for part in (0, 1))
    return np.concatenate(ids), np.concatenate(lengths).astype(np.int64)


def _tokenize(batch: pa.Table, tokenizer: PreTrainedTokenizerBase, start: int | None, end: int | None) -> pa.Table:
    texts = batch["text"].to_pylist()
    ids, lengths = tokenize(tokenizer, texts)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    missing = missing_ends(tokenizer, texts, start, end)
    if missing.any():  # document after document: of two marks at one place the end comes before the next start
        places, values = np.stack([bounds[:-1], bounds[1:]], 1)[missing], np.array([[start, end]] * len(texts))[missing]
        ids = np.insert(ids, places, values.astype(ids.dtype))
        bounds = np.concatenate([[0], np.cumsum(lengths + missing.sum(1))])
    return pa.table({"input_ids": pa.ListArray.from_arrays(pa.array(bounds, pa.int32()), pa.array(ids, pa.int32()))})
