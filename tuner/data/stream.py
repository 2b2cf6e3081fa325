"""A corpus larger than the disk: read, cleaned, tokenized and cut into blocks on the way.

A place in the stream is two numbers, the documents that were read before a block and the tokens used of the next one. A
checkpoint keeps them, and a resumed run reads on from there: reading to that document costs time, but no tokenizing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerBase

from tuner.data.schema import SHAPES
from tuner.data.sources import BUILDERS, load_splits
from tuner.errors import DataError
from tuner.text.words import tokenize

# Documents that are tokenized at once.
BATCH = 256
# Blocks whose places are remembered: more than a trainer ever reads ahead.
REMEMBERED = 100_000

Place = tuple[int, int]


def open_stream(name: str, config: str | None, split: str, seed: int, buffer_size: int) -> Any:
    """The documents of a source, one at a time, as a `datasets.IterableDataset` with `text`, shuffled in a buffer.

    Raises:
        DataError: nothing there, or columns of no known shape.
    """
    path = Path(name).expanduser()
    if name.startswith("builtin:"):
        rows = load_splits(name)[0].to_iterable_dataset()
    elif path.exists():
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix.lower() in BUILDERS)
        kinds = {BUILDERS.get(file.suffix.lower()) for file in files}
        if len(kinds) != 1 or None in kinds:
            raise DataError(
                f"--dataset_name {name}: to be streamed its files must be of one kind: {', '.join(BUILDERS)}."
            )
        rows = datasets.load_dataset(kinds.pop(), data_files=[str(f) for f in files], split="train", streaming=True)
    else:
        try:
            rows = datasets.load_dataset(name, config, split=split, streaming=True)
        except Exception as error:  # the Hub client's and every reader's exception types are many and private
            raise DataError(f"--dataset_name {name} cannot be streamed: {' '.join(str(error).split())}") from error
    first = next(iter(rows), None)
    if first is None:
        raise DataError(f"{name} is empty.")
    for needed, kind, convert in SHAPES:
        if needed <= set(first):
            rows = rows.map(_to_text, fn_kwargs={"kind": kind, "convert": convert}, remove_columns=list(first))
            return rows.shuffle(seed=seed, buffer_size=buffer_size) if buffer_size > 1 else rows
    raise DataError(f"{name}: no known shape has the columns {', '.join(first)}.")


def _to_text(row: dict[str, Any], kind: str, convert: Callable[[dict[str, Any]], Any]) -> dict[str, str]:
    found = convert(row)
    return {"text": found if kind == "text" else "\n".join(" ".join(turn["content"].split()) for turn in found)}


class TokenStream(IterableDataset[dict[str, Any]]):
    """Blocks of tokens of a stream of documents, without a gap.

    Items are `input_ids` `(length,)`, and as in `Draws` `row` and `draw`, the number of the block.

    Args:
        documents: a `datasets.IterableDataset` with `text`.
        length: tokens in a block.
        start: a token that begins every block.
        before, after: tokens around every document.
        clean: a document's text as it is to be, or None where it is to be left out.
    """

    def __init__(
        self,
        documents: Any,
        tokenizer: PreTrainedTokenizerBase,
        length: int,
        start: int | None = None,
        before: int | None = None,
        after: int | None = None,
        clean: Callable[[str], str | None] | None = None,
    ):
        self.documents, self.tokenizer, self.length = documents, tokenizer, length
        self.head = [] if start is None else [start]
        self.around = [[] if token is None else [token] for token in (before, after)]
        self.clean = clean
        self._first, self._place = 0, (0, 0)
        self._places: deque[tuple[int, Place]] = deque(maxlen=REMEMBERED)

    def place(self, blocks: int) -> dict[str, int]:
        """Where the stream stands after so many blocks, for a checkpoint.

        Raises:
            KeyError: blocks that it has not come to, or long passed.
        """
        documents, tokens = dict(self._places)[blocks]
        return {"blocks": blocks, "documents": documents, "tokens": tokens}

    def go_to(self, place: dict[str, int]) -> None:
        """Begin at a place that `place` told."""
        self._first, self._place = place["blocks"], (place["documents"], place["tokens"])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        number, (documents, used) = self._first, self._place
        width = self.length - len(self.head)
        waiting: deque[tuple[int, list[int]]] = deque()  # documents not all used: their numbers, their tokens
        available = 0
        for document, ids in self._tokenized(documents):
            waiting.append((document, ids))
            available += len(ids)
            while available - used >= width:
                yield {"input_ids": np.array(self.head + _take(waiting, used, width)), "row": number, "draw": number}
                used += width
                while waiting and used >= len(waiting[0][1]):
                    used -= len(waiting[0][1])
                    available -= len(waiting.popleft()[1])
                number += 1
                self._places.append((number, (waiting[0][0] if waiting else document + 1, used)))

    def _tokenized(self, skipped: int) -> Iterator[tuple[int, list[int]]]:
        """The number of each document from `skipped` on, and its tokens; those left out have none."""
        number = skipped
        for batch in self.documents.skip(skipped).iter(batch_size=BATCH):
            texts = [text if self.clean is None else self.clean(text) for text in batch["text"]]
            kept = [text for text in texts if text]
            ids, lengths = tokenize(self.tokenizer, kept)
            encoded = iter(np.split(ids, np.cumsum(lengths)[:-1]))
            for text in texts:
                yield number, [*self.around[0], *next(encoded).tolist(), *self.around[1]] if text else []
                number += 1


def _take(waiting: deque[tuple[int, list[int]]], used: int, width: int) -> list[int]:
    """The next `width` tokens, after the first `used`."""
    found: list[int] = []
    for _, ids in waiting:
        found += ids[used : used + width - len(found)]
        used = max(used - len(ids), 0)
        if len(found) == width:
            break
    return found


def set_aside(documents: Any, count: int) -> tuple[Any, Dataset]:
    """The stream without its first `count` documents, and those, in memory, to validate on."""
    return documents.skip(count), Dataset.from_list(list(documents.take(count)))
