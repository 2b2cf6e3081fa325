"""Losses that never hold a (tokens x vocabulary) matrix.

The cross-entropy of a language model needs, of its logits, two numbers a token: the target's, and the log of the sum of
exponentials. Here the head runs only where there is a label, a chunk of tokens at a time, and each chunk's gradient is
taken while its logits are still there (as Liger's fused loss does: Hsu et al. 2024, https://arxiv.org/abs/2410.10989).
The backward pass then multiplies by one scalar: no logits are kept and none are computed twice.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

# Elements of one chunk of logits: 32 MB in float32.
CHUNK_ELEMENTS = 2**23
# Fields of other families' configurations that change the logits after the head.
LOGIT_TRANSFORMS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "output_multiplier_scale")


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
    ) -> torch.Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        chunk = max(CHUNK_ELEMENTS // weight.shape[0], 64)
        cast_weight = weight.to(dtype)
        need_hidden, need_weight, need_bias, _ = ctx.needs_input_grad
        hidden_grad = torch.empty_like(hidden) if need_hidden else None
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if need_weight else None
        bias_grad = torch.zeros_like(bias, dtype=torch.float32) if need_bias and bias is not None else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        with torch.autocast(device, enabled=False):
            for start in range(0, len(targets), chunk):
                part, wanted = hidden[start : start + chunk].to(dtype), targets[start : start + chunk, None]
                logits = F.linear(part, cast_weight, None if bias is None else bias.to(dtype)).float()
                log_sum = logits.logsumexp(dim=-1, keepdim=True)
                total += (log_sum - logits.gather(1, wanted)).sum()
                if not (need_hidden or need_weight):
                    continue
                # d loss / d logits = softmax - onehot, in place of the logits.
                grad = logits.sub_(log_sum).exp_()
                grad.scatter_add_(1, wanted, torch.full_like(wanted, -1, dtype=grad.dtype))
                if bias_grad is not None:
                    bias_grad += grad.sum(dim=0)
                grad = grad.to(dtype)
                if hidden_grad is not None:
                    hidden_grad[start : start + chunk] = grad @ cast_weight
                if weight_grad is not None:
                    weight_grad += grad.T @ part
        # Summed in float32, kept in the weight's dtype: they wait here for the whole backward pass of the blocks.
        ctx.save_for_backward(
            hidden_grad, *(None if g is None else g.to(weight.dtype) for g in (weight_grad, bias_grad))
        )
        return total

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return *(None if gradient is None else gradient.mul_(scale) for gradient in ctx.saved_tensors), None


def chunked_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Sum over tokens of `logsumexp(W h) - (W h)[target]`, in nats.

    Args:
        hidden: `(tokens, hidden_size)`.
        weight: the head, `(vocab_size, hidden_size)`.
        targets: `(tokens,)`, every one a token id.
        bias: `(vocab_size,)` or none.

    Returns:
        A float32 scalar. Products run in the autocast dtype where autocast is on; the softmax is always float32.
        Backward may be called once.
    """
    return _ChunkedCrossEntropy.apply(hidden, weight, bias, targets)


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


def use_chunked_loss(model: PreTrainedModel) -> bool:
    """Give a causal language model a `forward` that, called with labels, returns the loss and no logits.

    Works on any transformers causal model that is a backbone and a linear head, ours or another's, bare or in a PEFT
    wrapper; without labels its own `forward` runs. A model that transforms its logits after the head keeps its loss.

    Returns:
        Whether the loss is now chunked.
    """
    causal_lm = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = causal_lm.config.get_text_config()
    head = causal_lm.get_output_embeddings()
    backbone = causal_lm.base_model
    transformed = any(getattr(config, name, None) not in (None, 1, 1.0) for name in LOGIT_TRANSFORMS)
    if transformed or not isinstance(head, nn.Linear) or backbone is causal_lm:
        return False
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
        hidden_states = self.base_model(*args, use_cache=False, **kwargs).last_hidden_state
        hidden, targets = supervised_positions(hidden_states, labels)
        total = chunked_cross_entropy(hidden, self.get_output_embeddings().weight, targets, head.bias)
        count = num_items_in_batch if num_items_in_batch is not None else max(len(targets), 1)
        return CausalLMOutputWithPast(loss=total / count)

    causal_lm.forward = types.MethodType(forward, causal_lm)
    return True
