"""Attention by blocks of queries: no (time x time) matrix, and nothing computed where the mask is empty.

Torch's fused kernel is slow on CPUs, its backward pass above all. Here each block of queries meets only the keys that
its mask lets it see (`block_plan.py`). Weights are computed again in the backward pass (Dao et al. 2022,
https://arxiv.org/abs/2205.14135), so what is kept grows with the length, not with its square.

Registered with transformers' attention and mask interfaces: any of its models takes
`attn_implementation="block_attention"`. Decoding over a cache, attention to another sequence and dropout of the weights
are left to SDPA. To a compiler it is one operation, which makes its plan of the mask that it is given.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tuner.ops import block_plan as blocks
from tuner.ops.block_plan import Block, BlockPlan, plan_blocks, plan_time

BLOCK_ATTENTION = "block_attention"


class _BlockAttention(torch.autograd.Function):
    """softmax(q kᵀ · scale) v over a plan's blocks: query, key, value and result are `(batch, heads, time, head_dim)`,
    key and value with heads of their own number, each shared by a group of the query's."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: BlockPlan, scale: float
    ) -> torch.Tensor:
        time, (query, key, value) = key.shape[2], _all_by_key(query, key, value)
        ctx.save_for_backward(query, key, value)
        ctx.plan, ctx.scale = plan, scale
        return _attend(query, key, value, plan, scale, time)

    @staticmethod
    def backward(ctx: Any, out_grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("block_attention has no second derivative; use attn_implementation sdpa or eager.")
        query, key, value = ctx.saved_tensors
        return *_gradients(out_grad, query, key, value, ctx.plan, ctx.scale), None, None


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: BlockPlan, scale: float, time: int
) -> torch.Tensor:
    out = torch.empty_like(query)
    for block in plan.blocks:
        # What a block writes beyond its own queries, the next one writes again.
        _rows(out, block, block.queries).copy_(_weights(query, key, block, scale) @ _rows(value, block, block.keys))
    return _by_token(out, time)


def _gradients(
    out_grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: BlockPlan, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    time, out_grad = out_grad.shape[2], _by_key(out_grad, key.shape[1])
    query_grad = torch.empty_like(query)
    # A key meets many blocks of queries: their sum is made in float32.
    wide = torch.promote_types(key.dtype, torch.float32)
    key_grad, value_grad = torch.zeros_like(key, dtype=wide), torch.zeros_like(value, dtype=wide)
    for block in plan.blocks:
        weights, grad = _weights(query, key, block, scale), _rows(out_grad, block, block.queries)
        _rows(value_grad, block, block.keys).add_(weights.transpose(1, 2) @ grad)
        weights_grad = grad @ _rows(value, block, block.keys).transpose(1, 2)
        scores_grad = torch._softmax_backward_data(weights_grad, weights, -1, weights.dtype).mul_(scale)
        _rows(query_grad, block, block.queries).copy_(scores_grad @ _rows(key, block, block.keys))
        _rows(key_grad, block, block.keys).add_(scores_grad.transpose(1, 2) @ _rows(query, block, block.queries))
    key_grad, value_grad = key_grad.to(key.dtype), value_grad.to(value.dtype)
    return _by_token(query_grad, time), _by_token(key_grad, time), _by_token(value_grad, time)


# A compiler takes attention as one operation; it would unroll the blocks and learn nothing from them.
@torch.library.custom_op("tuner::block_attention", mutates_args=())
def _operation(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, causal: bool, scale: float
) -> torch.Tensor:
    plan, time = _plan_again(mask, causal, key), key.shape[2]
    query, key, value = _all_by_key(query, key, value)
    return _attend(query, key, value, plan, scale, time)


@torch.library.custom_op("tuner::block_attention_backward", mutates_args=())
def _operation_backward(
    out_grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    plan = _plan_again(mask, causal, key)
    query, key, value = _all_by_key(query, key, value)
    return _gradients(out_grad, query, key, value, plan, scale)


def _plan_again(mask: torch.Tensor | None, causal: bool, key: torch.Tensor) -> BlockPlan:
    """The plan of an operation that knows no other layer: of the mask before, if that was the same."""
    if mask is None:
        return plan_time(key.shape[2], causal, key.device)
    if not _plans or _plans[0].mask.shape != mask.shape or not torch.equal(_plans[0].mask, mask):
        _plans[:] = [plan_blocks(mask.clone())]
    return _plans[0]


_plans: list[Any] = []  # the last one


def _like(states: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return _by_token(_by_key(states, key.shape[1]), states.shape[2])


def _remember(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    *tensors, ctx.causal, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


_operation.register_fake(lambda query, key, *rest: _like(query, key))
_operation_backward.register_fake(
    lambda grad, query, key, value, *rest: tuple(_like(t, key) for t in (query, key, value))
)
_operation.register_autograd(
    lambda ctx, grad: (*_operation_backward(grad, *ctx.saved_tensors, ctx.causal, ctx.scale), None, None, None),
    setup_context=_remember,
)


def _all_by_key(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    heads = key.shape[1]
    return _by_key(query, heads), _by_key(key, heads), _by_key(value, heads)


def _by_key(heads: torch.Tensor, key_value_heads: int) -> torch.Tensor:
    """`(batch, heads, time, head_dim)` to `(batch, key_value_heads, time + STEP, groups, head_dim)`.

    What shares a key at a time lies together, so that a block of queries of all heads in a group is one matrix without
    a copy. Sizes that were rounded up reach into the zeros at the end.
    """
    grouped = heads.unflatten(1, (key_value_heads, -1)).transpose(2, 3)
    return nn.functional.pad(grouped, (0, 0, 0, 0, 0, blocks.STEP))


def _by_token(grouped: torch.Tensor, time: int) -> torch.Tensor:
    """Back to `(batch, heads, time, head_dim)`, over memory where a token's heads lie together."""
    return grouped[:, :, :time].transpose(1, 2).flatten(2, 3).transpose(1, 2)


def _rows(grouped: torch.Tensor, block: Block, tokens: slice) -> torch.Tensor:
    """A view of some tokens' queries, keys or values: `(rows · key_value_heads, tokens · groups, head_dim)`."""
    return grouped[block.rows].flatten(0, 1)[:, tokens].flatten(1, 2)


def _weights(query: torch.Tensor, key: torch.Tensor, block: Block, scale: float) -> torch.Tensor:
    """`(rows · key_value_heads, queries · groups, keys)`: rows sum to 1, and those that are not the block's to 0."""
    queries, keys = _rows(query, block, block.queries), _rows(key, block, block.keys)
    scores = torch.baddbmm(queries.new_empty(1, 1, 1), queries, keys.transpose(1, 2), beta=0, alpha=scale)
    scores.unflatten(1, (len(block.bias), -1))[..., block.edge :].add_(block.bias.to(scores.dtype))
    weights = torch.softmax(scores, dim=-1)
    weights[:, block.count * query.shape[3] :] = 0
    return weights


def block_mask(q_length: int, kv_length: int, **kwargs: Any) -> BlockPlan | torch.Tensor | None:
    """transformers' mask interface: a plan where queries and keys are the same tokens, else SDPA's mask."""
    mask = sdpa_mask(q_length=q_length, kv_length=kv_length, **kwargs)
    if q_length != kv_length or q_length == 1 or torch.compiler.is_compiling():
        return mask
    if mask is not None:
        return plan_blocks(mask)
    return plan_time(q_length, not kwargs.get("allow_is_bidirectional_skip", False), kwargs.get("device", "cpu"))


def block_attention_forward(
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
    mask = attention_mask if plan is None else plan.mask
    seen = not isinstance(mask, torch.Tensor) or mask.dtype == torch.bool
    compiled = torch.compiler.is_compiling() and query.shape[2] == key.shape[2] > 1 and seen
    extras = dropout or any(kwargs.get(name) is not None for name in ("softcap", "position_bias"))
    if extras or (plan is None and not compiled):
        return sdpa_attention_forward(module, query, key, value, mask, dropout, scaling, **kwargs)
    device = query.device.type
    if torch.is_autocast_enabled(device):
        query, key, value = (t.to(torch.get_autocast_dtype(device)) for t in (query, key, value))
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    with torch.autocast(device, enabled=False):
        if plan is not None:
            return _BlockAttention.apply(query, key, value, plan, scale).transpose(1, 2), None
        # What a missing mask means; SDPA's interface asks the same.
        causal = kwargs.get("is_causal")
        causal = mask is None and bool(getattr(module, "is_causal", True) if causal is None else causal)
        return _operation(query, key, value, mask, causal, scale).transpose(1, 2), None


def can_use_block_attention(model: PreTrainedModel) -> bool:
    """Whether a model hands its masks and attention to transformers' interfaces, and would otherwise use SDPA."""
    softmax = getattr(model.config, "attention_type", "softmax") == "softmax"  # a field of ours
    return bool(model._supports_attention_backend) and softmax and model.config._attn_implementation == "sdpa"


AttentionInterface.register(BLOCK_ATTENTION, block_attention_forward)
AttentionMaskInterface.register(BLOCK_ATTENTION, block_mask)
