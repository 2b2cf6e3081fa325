"""Losses that never hold a (tokens x vocabulary) matrix.

The cross-entropy of a language model needs, of its logits, two numbers a token: the target's, and the log of the sum of
exponentials. Here the head runs only where there is a label, and over a slice of the vocabulary at a time: the forward
pass keeps that sum, the backward pass makes the slice's logits again and from them its gradient (Wijmans et al. 2024,
https://arxiv.org/abs/2411.09009). What is kept is one number a token, and each row of the head's gradient is written
once, where going by slices of tokens would add to all of it every time.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from tuner.model import TunerPreTrainedModel

# Fields of other families' configurations that change the logits after the head.
LOGIT_TRANSFORMS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "output_multiplier_scale")


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        z_loss: float,
        smoothing: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        log_sum = torch.full(targets.shape, -torch.inf, device=hidden.device)
        wanted, everything = torch.zeros_like(log_sum), torch.zeros_like(log_sum)
        for _, logits, inside, column in _slices(hidden, weight, bias, targets):
            wanted = torch.where(inside, logits.gather(1, column).squeeze(1), wanted)
            if smoothing:
                everything += logits.sum(dim=-1)
            log_sum = torch.logaddexp(log_sum, logits.logsumexp(dim=-1))
        if smoothing:
            wanted = torch.lerp(wanted, everything / len(weight), smoothing)
        return (log_sum - wanted).sum() + z_loss * log_sum.square().sum(), log_sum

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
        *tensors, ctx.z_loss, ctx.smoothing = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*tensors, output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, targets, log_sum = ctx.saved_tensors
        need_hidden, need_weight, need_bias, *_ = ctx.needs_input_grad
        hidden_grad = torch.zeros_like(hidden, dtype=torch.float32) if need_hidden else None
        weight_grad = torch.empty_like(weight) if need_weight else None
        bias_grad = torch.empty_like(bias) if need_bias and bias is not None else None
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
                bias_grad[rows] = grad.sum(dim=0) * scale
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
) -> torch.Tensor:
    """Sum over tokens of `logsumexp(W h) - (W h)[target]`, in nats.

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
        A float32 scalar. Products run in the autocast dtype where autocast is on; the softmax is always float32.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    cast = None if bias is None else bias.to(dtype)
    with torch.autocast(device, enabled=False):
        loss, _ = _ChunkedCrossEntropy.apply(hidden.to(dtype), weight.to(dtype), cast, targets, z_loss, label_smoothing)
    return loss


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


def can_be_chunked(model: PreTrainedModel) -> bool:
    """Whether a causal model's logits are its head's, and its loss their cross-entropy."""
    config = model.config.get_text_config()
    transformed = any(getattr(config, name, None) not in (None, 1, 1.0) for name in LOGIT_TRANSFORMS)
    if not isinstance(model, TunerPreTrainedModel):
        transformed |= bool(getattr(config, "output_router_logits", False))  # its loss has a second term
    return not transformed and isinstance(model.get_output_embeddings(), nn.Linear) and model.base_model is not model


def use_chunked_loss(model: PreTrainedModel) -> bool:
    """Give a causal language model a `forward` that, called with labels, returns the loss and no logits.

    Works on any transformers causal model that is a backbone and a linear head, ours or another's, bare or in a PEFT
    wrapper; without labels its own `forward` runs. A model that transforms its logits after the head keeps its loss.

    Returns:
        Whether the loss is now chunked.
    """
    causal_lm = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not can_be_chunked(causal_lm):
        return False
    balances = isinstance(causal_lm, TunerPreTrainedModel)
    own_forward = causal_lm.forward

    def forward(
        self: PreTrainedModel,
        *args: Any,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> Any:
        if labels is None:
            return own_forward(*args, **kwargs)
        if balances:
            kwargs = self.with_router(labels, kwargs)
        outputs = self.base_model(*args, use_cache=False, **kwargs)
        hidden, targets = supervised_positions(outputs.last_hidden_state, labels)
        head = self.get_output_embeddings()
        total = chunked_cross_entropy(hidden, head.weight, targets, head.bias)
        count = num_items_in_batch if num_items_in_batch is not None else max(len(targets), 1)
        loss = total / count
        if balances:
            balance = self.balance(outputs.get("router_logits"), kwargs.get("attention_mask"), labels, count)
            loss = loss if balance is None else loss + balance
        return CausalLMOutputWithPast(loss=loss)

    causal_lm.forward = types.MethodType(forward, causal_lm)
    return True
