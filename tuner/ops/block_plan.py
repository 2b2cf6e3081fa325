"""A mask cut into blocks of queries, each with the keys that it meets: what attention by blocks computes.

A dense mask makes packed rows cost as much as one long conversation. Cut up, half of the keys are left under a causal
mask, one conversation's under a packed one, a window's under a sliding one, a row's own under padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

# Queries of one block: more waste more of their triangle, fewer make products too small to be fast.
QUERIES = 192
# Sizes are rounded up to a multiple of this. For every new size a CPU's kernels are compiled anew, a millisecond each,
# and kept, most of a MiB each: conversations of every length would fill the memory with code.
STEP = 64
# In reach of every dtype, and not -inf: padding may see nothing at all.
HIDDEN = torch.finfo(torch.float16).min


@dataclass(frozen=True)
class Block:
    """Some queries and the keys they meet.

    Attributes:
        rows: of the batch.
        queries, keys: their tokens, each rounded up in number; outside `keys` no query of the block sees anything.
        count: the queries that are the block's own; the others are the next block's, or none.
        edge: every query sees every key of the block before this one, counted within the block.
        bias: `(queries, 1, keys from the edge on)`, what is added to scores: `HIDDEN` where a query does not see a key.
    """

    rows: slice
    queries: slice
    keys: slice
    count: int
    edge: int
    bias: torch.Tensor


@dataclass(frozen=True)
class BlockPlan:
    """What a batch's mask leaves to compute, and the mask as SDPA takes it."""

    blocks: list[Block]
    mask: torch.Tensor | None


def plan_time(time: int, causal: bool, device: torch.device | str = "cpu") -> BlockPlan:
    """The plan of `time` tokens that each see all, or, `causal`, all up to itself."""
    blocks = []
    for start, stop in _cut([0, time]):
        size = stop - start
        hidden = torch.ones(size, size if causal else 0, dtype=torch.bool, device=device).triu(1)
        blocks.append(_block(slice(None), start, stop, 0, start if causal else time, hidden))
    return BlockPlan(blocks, None)


def plan_blocks(mask: torch.Tensor) -> BlockPlan:
    """The plan of a mask `(batch, 1, time, time)`, True where a query sees a key.

    A block also ends where a token sees nothing before itself, so that packed conversations stay apart.
    """
    time = mask.shape[-1]
    shared = len(mask) == 1 or bool((mask[1:] == mask[:1]).all())
    blocks: list[Block] = []
    for row, seen in enumerate(mask[:1, 0] if shared else mask[:, 0]):
        rows = slice(None) if shared else slice(row, row + 1)
        first = seen.byte().argmax(dim=-1)
        after_last = time - seen.flip(-1).byte().argmax(dim=-1)
        starts = (first == torch.arange(time, device=seen.device)).nonzero().flatten().tolist()
        for start, stop in _cut(sorted({0, *starts, time})):
            low, high = int(first[start:stop].min()), int(after_last[start:stop].max())
            hidden = ~seen[start:stop, low:high]
            somewhere = hidden.any(dim=0).nonzero()
            edge = int(somewhere[0]) if len(somewhere) else high - low
            blocks.append(_block(rows, start, stop, low, edge, hidden[:, edge:]))
    return BlockPlan(blocks, mask)


def _block(rows: slice, start: int, stop: int, first_key: int, edge: int, hidden: torch.Tensor) -> Block:
    queries, keys = (-(-size // STEP) * STEP for size in (stop - start, edge + hidden.shape[1]))
    hidden = nn.functional.pad(hidden, (0, keys - edge - hidden.shape[1], 0, queries - len(hidden)), value=True)
    bias = torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, HIDDEN)[:, None]
    return Block(rows, slice(start, start + queries), slice(first_key, first_key + keys), stop - start, edge, bias)


def _cut(bounds: list[int]) -> Iterator[tuple[int, int]]:
    for low, high in pairwise(bounds):
        for start in range(low, high, QUERIES):
            yield start, min(start + QUERIES, high)
