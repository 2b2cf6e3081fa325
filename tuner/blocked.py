"""Attention by blocks of queries: no (time x time) matrix, and nothing computed where the mask is empty.

Torch's fused kernel is slow on CPUs, its backward pass above all, and a dense mask makes packed rows cost as much as
one long conversation. Here each block of queries meets only the keys that its mask lets it see: half of them under a
causal mask, one conversation's under a packed one, a window's under a sliding one. Weights are computed again in the
backward pass (Dao et al. 2022, https://arxiv.org/abs/2205.14135), so what is kept grows with the length, not with its
square.

Registered as "blocked" with transformers' attention and mask interfaces: any of its models takes
`attn_implementation="blocked"`. Decoding over a cache, attention dropout and masks in compiled graphs are left to SDPA.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

BLOCKED = "blocked"
# Queries of one block: more waste more of their triangle, fewer make products too small to be fast.
QUERIES = 192
# Sizes are rounded up to a multiple of this. For every new size a CPU's kernels are compiled anew, a millisecond each,
# and kept, most of a MiB each: conversations of every length would fill the memory with code.
STEP = 64


@dataclass(frozen=True)
class Block:
    """Some queries and the keys they meet.

    Attributes:
        rows: rows of the batch that this holds for.
        queries, keys: their tokens, each rounded up in number; outside `keys` no query of the block sees anything.
        count: the queries that are the block's own; the others are the next block's, or none.
        edge: every query sees every key of the block before this one, counted within the block.
        hidden: `(queries, keys from the edge on)`, True where a query does not see a key.
    """

    rows: slice
    queries: slice
    keys: slice
    count: int
    edge: int
    hidden: torch.Tensor


@dataclass(frozen=True)
class BlockPlan:
    """What a batch's mask leaves to compute, and the mask itself (None: plainly causal), as SDPA takes it."""

    blocks: list[Block]
    mask: torch.Tensor | None
    _biases: dict[torch.dtype, list[torch.Tensor]] = field(default_factory=dict)

    def with_biases(self, dtype: torch.dtype) -> Iterator[tuple[Block, torch.Tensor]]:
        """Each block and what is added to its scores `(queries, groups, keys from the edge on)`. Every layer asks for
        the same, so it is made once. The smallest number and not -inf: padding may see nothing at all."""
        if dtype not in self._biases:
            least = torch.finfo(dtype).min
            self._biases[dtype] = [
                torch.zeros(b.hidden.shape, dtype=dtype, device=b.hidden.device).masked_fill_(b.hidden, least)[:, None]
                for b in self.blocks
            ]
        return zip(self.blocks, self._biases[dtype], strict=True)


def plan_causal(time: int, device: torch.device) -> BlockPlan:
    """The plan of plain causal attention over `time` tokens."""
    triangle = torch.ones(QUERIES, QUERIES, dtype=torch.bool, device=device).triu(1)
    return BlockPlan(
        [
            _block(slice(None), start, stop, 0, start, triangle[: stop - start, : stop - start])
            for start, stop in _cut([0, time])
        ],
        None,
    )


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
    return Block(rows, slice(start, start + queries), slice(first_key, first_key + keys), stop - start, edge, hidden)


def _cut(bounds: list[int]) -> Iterator[tuple[int, int]]:
    for low, high in pairwise(bounds):
        for start in range(low, high, QUERIES):
            yield start, min(start + QUERIES, high)


class _BlockedAttention(torch.autograd.Function):
    """softmax(q kᵀ · scale) v over a plan's blocks: query, key, value and result are `(batch, heads, time, head_dim)`,
    key and value with heads of their own number, each shared by a group of the query's."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: BlockPlan, scale: float
    ) -> torch.Tensor:
        heads, ctx.time = key.shape[1:3]
        query, key, value = _by_key(query, heads), _by_key(key, heads), _by_key(value, heads)
        ctx.save_for_backward(query, key, value)
        ctx.plan, ctx.scale = plan, scale
        return _by_token(_attend(query, key, value, plan, scale), ctx.time)

    @staticmethod
    def backward(ctx: Any, out_grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        gradients = _gradients(_by_key(out_grad, key.shape[1]), query, key, value, ctx.plan, ctx.scale)
        return *(_by_token(gradient, ctx.time) for gradient in gradients), None, None


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: BlockPlan, scale: float) -> torch.Tensor:
    out = torch.empty_like(query)
    for block, bias in plan.with_biases(query.dtype):
        # What a block writes beyond its own queries, the next one writes again.
        _rows(out, block, block.queries).copy_(
            _weights(query, key, block, bias, scale) @ _rows(value, block, block.keys)
        )
    return out


def _gradients(
    out_grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: BlockPlan, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    query_grad = torch.empty_like(query)
    # A key meets many blocks of queries: their sum is made in float32.
    wide = torch.promote_types(key.dtype, torch.float32)
    key_grad, value_grad = torch.zeros_like(key, dtype=wide), torch.zeros_like(value, dtype=wide)
    for block, bias in plan.with_biases(query.dtype):
        weights, grad = _weights(query, key, block, bias, scale), _rows(out_grad, block, block.queries)
        _rows(value_grad, block, block.keys).add_(weights.transpose(1, 2) @ grad)
        weights_grad = grad @ _rows(value, block, block.keys).transpose(1, 2)
        scores_grad = torch._softmax_backward_data(weights_grad, weights, -1, weights.dtype).mul_(scale)
        _rows(query_grad, block, block.queries).copy_(scores_grad @ _rows(key, block, block.keys))
        _rows(key_grad, block, block.keys).add_(scores_grad.transpose(1, 2) @ _rows(query, block, block.queries))
    return query_grad, key_grad.to(key.dtype), value_grad.to(value.dtype)


# A compiler takes plain causal attention as one operation; it would unroll the blocks and learn nothing from them.
@torch.library.custom_op("tuner::blocked_causal", mutates_args=())
def _causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    heads, time = key.shape[1:3]
    query, key, value = (_by_key(states, heads) for states in (query, key, value))
    return _by_token(_attend(query, key, value, plan_causal(time, query.device), scale), time)


@torch.library.custom_op("tuner::blocked_causal_backward", mutates_args=())
def _causal_backward(
    out_grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    heads, time = key.shape[1:3]
    out_grad, query, key, value = (_by_key(states, heads) for states in (out_grad, query, key, value))
    grads = _gradients(out_grad, query, key, value, plan_causal(time, query.device), scale)
    return _by_token(grads[0], time), _by_token(grads[1], time), _by_token(grads[2], time)


def _like(states: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return _by_token(_by_key(states, key.shape[1]), states.shape[2])


def _remember(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


_causal.register_fake(lambda query, key, value, scale: _like(query, key))
_causal_backward.register_fake(
    lambda out_grad, query, key, value, scale: tuple(_like(states, key) for states in (query, key, value))
)
_causal.register_autograd(
    lambda ctx, grad: (*_causal_backward(grad, *ctx.saved_tensors, ctx.scale), None), setup_context=_remember
)


def _by_key(heads: torch.Tensor, key_value_heads: int) -> torch.Tensor:
    """`(batch, heads, time, head_dim)` to `(batch, key_value_heads, time + STEP, groups, head_dim)`.

    What shares a key at a time lies together, so that a block of queries of all heads in a group is one matrix without
    a copy. Sizes that were rounded up reach into the zeros at the end.
    """
    grouped = heads.unflatten(1, (key_value_heads, -1)).transpose(2, 3)
    return nn.functional.pad(grouped, (0, 0, 0, 0, 0, STEP))


def _by_token(grouped: torch.Tensor, time: int) -> torch.Tensor:
    """Back to `(batch, heads, time, head_dim)`, over memory where a token's heads lie together."""
    return grouped[:, :, :time].transpose(1, 2).flatten(2, 3).transpose(1, 2)


def _rows(grouped: torch.Tensor, block: Block, tokens: slice) -> torch.Tensor:
    """A view of some tokens' queries, keys or values: `(rows · key_value_heads, tokens · groups, head_dim)`."""
    return grouped[block.rows].flatten(0, 1)[:, tokens].flatten(1, 2)


def _weights(query: torch.Tensor, key: torch.Tensor, block: Block, bias: torch.Tensor, scale: float) -> torch.Tensor:
    """`(rows · key_value_heads, queries · groups, keys)`: rows sum to 1, and those that are not the block's to 0."""
    queries, keys = _rows(query, block, block.queries), _rows(key, block, block.keys)
    scores = torch.baddbmm(queries.new_empty(1, 1, 1), queries, keys.transpose(1, 2), beta=0, alpha=scale)
    scores.unflatten(1, (len(bias), -1))[..., block.edge :].add_(bias)
    weights = torch.softmax(scores, dim=-1)
    weights[:, block.count * query.shape[3] :] = 0
    return weights


def blocked_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    allow_is_bidirectional_skip: bool = False,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> BlockPlan | torch.Tensor | None:
    """transformers' mask interface: a plan where queries and keys are the same tokens, else SDPA's mask."""
    mask = sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        allow_is_bidirectional_skip=allow_is_bidirectional_skip,
        device=device,
        **kwargs,
    )
    if q_length != kv_length or q_length == 1 or allow_is_bidirectional_skip or torch.compiler.is_compiling():
        return mask
    return plan_causal(q_length, torch.device(device)) if mask is None else plan_blocks(mask)


def blocked_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: BlockPlan | torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface; shapes as in `eager_attention_forward`, no weights are returned."""
    plan = attention_mask if isinstance(attention_mask, BlockPlan) else None
    compiled = torch.compiler.is_compiling() and attention_mask is None and _is_causal(module, query, key, kwargs)
    extras = dropout or any(kwargs.get(name) is not None for name in ("softcap", "position_bias"))
    if extras or (plan is None and not compiled):
        mask = attention_mask if plan is None else plan.mask
        return sdpa_attention_forward(module, query, key, value, mask, dropout, scaling, **kwargs)
    device = query.device.type
    if torch.is_autocast_enabled(device):
        query, key, value = (t.to(torch.get_autocast_dtype(device)) for t in (query, key, value))
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    with torch.autocast(device, enabled=False):
        if plan is None:
            return _causal(query, key, value, scale).transpose(1, 2), None
        return _BlockedAttention.apply(query, key, value, plan, scale).transpose(1, 2), None


def _is_causal(module: nn.Module, query: torch.Tensor, key: torch.Tensor, options: dict[str, Any]) -> bool:
    """What a missing mask means; SDPA's interface asks the same."""
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    return bool(causal) and query.shape[2] == key.shape[2] > 1


def can_be_blocked(model: PreTrainedModel) -> bool:
    """Whether a model hands its masks and attention to transformers' interfaces, and would otherwise use SDPA."""
    softmax = getattr(model.config, "attention_type", "softmax") == "softmax"  # a field of ours
    return bool(model._supports_attention_backend) and softmax and model.config._attn_implementation == "sdpa"


AttentionInterface.register(BLOCKED, blocked_attention_forward)
AttentionMaskInterface.register(BLOCKED, blocked_mask)
