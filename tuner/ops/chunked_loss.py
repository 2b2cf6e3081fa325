"""Losses that never hold a (tokens x vocabulary) matrix.

Cross-entropy needs two numbers of a token's logits: the target's, and the log of the sum of exponentials. Here the head
runs over a slice of the vocabulary at a time: the forward pass keeps that sum, the backward pass makes the slice's
logits again and from them its gradient (Wijmans et al. 2024, https://arxiv.org/abs/2411.09009). Slices of tokens would
add to all of the head's gradient every time; here each of its rows is written once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch.nn import functional as F


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        z_loss: float,
        smoothing: float,
    ) -> torch.Tensor:
        log_sum = torch.full(targets.shape, -torch.inf, device=hidden.device)
        wanted, everything = torch.zeros_like(log_sum), torch.zeros_like(log_sum)
        for _, logits, inside, column in _slices(hidden, weight, bias, targets):
            wanted = torch.where(inside, logits.gather(1, column).squeeze(1), wanted)
            if smoothing:
                everything += logits.sum(dim=-1)
            log_sum = torch.logaddexp(log_sum, logits.logsumexp(dim=-1))
        ctx.save_for_backward(hidden, weight, bias, targets, log_sum)
        ctx.z_loss, ctx.smoothing = z_loss, smoothing
        if smoothing:
            wanted = torch.lerp(wanted, everything / len(weight), smoothing)
        losses = log_sum - wanted
        return losses + z_loss * log_sum.square() if z_loss else losses

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("The chunked loss has no second derivative; --fast_ops false takes the plain one.")
        hidden, weight, bias, targets, log_sum = ctx.saved_tensors
        need_hidden, need_weight, need_bias, *_ = ctx.needs_input_grad
        hidden_grad = torch.zeros_like(hidden, dtype=torch.float32) if need_hidden else None
        weight_grad = torch.empty_like(weight) if need_weight else None
        bias_grad = torch.empty_like(bias) if need_bias else None
        scale = scale[:, None]
        scaled = hidden * scale.to(hidden.dtype)
        for rows, logits, inside, column in _slices(hidden, weight, bias, targets):
            # d loss / d logits = softmax - onehot, in place of the logits; d log_sum² / d logits = 2 log_sum softmax.
            grad = logits.sub_(log_sum[:, None]).exp_()
            if ctx.z_loss:
                grad *= 1 + 2 * ctx.z_loss * log_sum[:, None]
            if ctx.smoothing:
                grad -= ctx.smoothing / len(weight)
            grad.scatter_add_(1, column, inside[:, None] * -(1.0 - ctx.smoothing))
            if bias_grad is not None:
                bias_grad[rows] = (grad * scale).sum(dim=0)
            grad = grad.to(hidden.dtype)
            if hidden_grad is not None:
                hidden_grad += grad @ weight[rows]
            if weight_grad is not None:
                torch.mm(grad.T, scaled, out=weight_grad[rows])
        if hidden_grad is not None:
            hidden_grad = hidden_grad.mul_(scale).to(hidden.dtype)
        return hidden_grad, weight_grad, bias_grad, None, None, None


def slice_rows(tokens: int, device: str) -> int:
    """Tokens of the vocabulary in one slice: 4 MB of float32 logits on a CPU, which stay in its cache, and 256 MB on an
    accelerator, where every operation costs a launch."""
    return max((2**20 if device == "cpu" else 2**26) // max(tokens, 1), 256)


def _slices(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Slices of the vocabulary: which, the float32 logits `(tokens, slice)`, whether a token's target is within
    `(tokens,)`, and where in the slice it is, or any place where it is not, `(tokens, 1)`.

    A mask and not the tokens within: to know how many those are, an accelerator would have to be waited for.
    """
    size = slice_rows(len(targets), hidden.device.type)
    for start in range(0, len(weight), size):
        rows = slice(start, min(start + size, len(weight)))
        logits = F.linear(hidden, weight[rows], None if bias is None else bias[rows]).float()
        place = targets - start
        column = place.clamp(0, rows.stop - start - 1)
        yield rows, logits, place == column, column.unsqueeze(1)


def chunked_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    reduction: Literal["sum", "none"] = "sum",
) -> torch.Tensor:
    """`logsumexp(W h) - (W h)[target]` in nats, the sum over tokens or each token's.

    Args:
        hidden: `(tokens, hidden_size)`.
        weight: the head, `(vocab_size, hidden_size)`.
        targets: `(tokens,)`, every one a token id.
        bias: `(vocab_size,)` or none.
        z_loss: weight of `logsumexp(W h)²`, which keeps the logits near a sum of one (Chowdhery et al. 2022, section 5,
            https://arxiv.org/abs/2204.02311).
        label_smoothing: share `e` of the target's probability that is spread evenly over the vocabulary (Szegedy et al.
            2015, section 7, https://arxiv.org/abs/1512.00567): `(1 - e) (W h)[target] + e mean(W h)` is subtracted.

    Returns:
        A float32 scalar, or `(tokens,)`. Products run in the autocast dtype where autocast is on; the softmax is always
        float32.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    cast = None if bias is None else bias.to(dtype)
    with torch.autocast(device, enabled=False):
        losses = _ChunkedCrossEntropy.apply(hidden.to(dtype), weight.to(dtype), cast, targets, z_loss, label_smoothing)
    return losses.sum() if reduction == "sum" else losses


def supervised_positions(hidden_states: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The hidden states that predict a label, and those labels.

    Args:
        hidden_states: `(batch, time, hidden_size)`.
        labels: `(batch, time)`; the label at `t` is predicted from `t - 1`, -100 is none.

    Returns:
        `(tokens, hidden_size)` and `(tokens,)`.
    """
    shifted = F.pad(labels, (0, 1), value=-100)[:, 1:].reshape(-1)
    where = (shifted != -100).nonzero().squeeze(1)
    return hidden_states.reshape(-1, hidden_states.shape[-1]).index_select(0, where), shifted.index_select(0, where)
