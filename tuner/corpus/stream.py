"""A corpus larger than the disk: cleaned, tokenized and cut into blocks on the way.

The stream has no end: after its last document begins the next epoch, with other draws and, where the documents are
shuffled, in an order of its own, which is a function of their seed and the epoch. A place in it is three numbers,
the epoch, the documents of it that were read before a block, and the tokens used of the next one. A checkpoint keeps
them, and a resumed run reads on from there: reading to that document costs time, but no tokenizing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerBase

from tuner.data.tokens import tokenize
from tuner.errors import DataError

# Documents that are tokenized at once.
BATCH = 256
# Blocks whose places are remembered: more than a trainer ever reads ahead.
REMEMBERED = 100_000

Place = tuple[int, int, int]  # epoch, documents of it before, tokens used of the next one


class TokenStream(IterableDataset[dict[str, Any]]):
    """Blocks of tokens of a stream of documents, without a gap and without end.

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
        self.head = np.array([] if start is None else [start], np.int64)
        self.before, self.after = before, after
        self.clean = clean
        self._first, self._place = 0, (0, 0, 0)
        self._places: deque[tuple[int, Place]] = deque(maxlen=REMEMBERED)

    def place(self, blocks: int) -> dict[str, int]:
        """Where the stream stands after so many blocks that it has come to and not long passed, for a checkpoint."""
        epoch, documents, tokens = dict(self._places)[blocks]
        return {"blocks": blocks, "epoch": epoch, "documents": documents, "tokens": tokens}

    def go_to(self, place: dict[str, int]) -> None:
        """Begin at a place that `place` told."""
        self._first = place["blocks"]
        self._place = (place["epoch"], place["documents"], place["tokens"])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        number, (begun, skipped, used) = self._first, self._place
        waiting: deque[tuple[int, int, int]] = deque()  # documents not all used: epoch, number, tokens
        tokens = np.zeros(0, np.int64)
        width, taken = self.length - len(self.head), used
        for epoch, document, ids in self._tokenized(begun, skipped):
            waiting.append((epoch, document, len(ids)))
            tokens = np.concatenate([tokens, np.array(ids[taken:], np.int64)])
            taken = 0
            while len(tokens) >= width:
                block, tokens = np.concatenate([self.head, tokens[:width]]), tokens[width:]
                used += width
                while waiting and used >= waiting[0][2]:
                    used -= waiting.popleft()[2]
                self._places.append((number + 1, (*(waiting[0][:2] if waiting else (epoch, document + 1)), used)))
                yield {"input_ids": block, "row": number, "draw": number}
                number += 1

    def _tokenized(self, epoch: int, skipped: int) -> Iterator[tuple[int, int, list[int]]]:
        """Epoch, number and tokens of each document from there on; those left out have none. A DataError if all are."""
        while True:
            number, found, passed = skipped, skipped, 0  # before a place there was something
            self.documents.set_epoch(epoch)
            for batch in self.documents.iter(batch_size=BATCH):
                texts = batch["text"][max(skipped - passed, 0) :]  # `skip` would keep the order of the files
                passed += len(batch["text"])
                if self.clean:
                    texts = list(map(self.clean, texts))
                rows = iter(tokenize(self.tokenizer, [text for text in texts if text], self.before, self.after))
                for text in texts:
                    ids = next(rows) if text else []
                    yield epoch, number, ids
                    number, found = number + 1, found + len(ids)
            if not found:
                what = "cleaning leaves" if self.clean else "it has"
                raise DataError(f"The stream has come to its end, and not one token is in what {what} of it.")
            epoch, skipped = epoch + 1, 0
