"""Embeddings that are tied to the head, with one gradient for both.

Autograd makes a whole gradient of the embeddings, mostly zeros, and adds it to the head's at the very end of the
backward pass, when every other gradient exists already: the peak of memory. Here the head takes its weight from the
function that embeds, so that this function meets the head's gradient and adds to the rows of the tokens that occurred.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel


class _EmbedWithHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input_ids: torch.Tensor, weight: torch.Tensor, padding_idx: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(input_ids)
        ctx.padding_idx = padding_idx
        return F.embedding(input_ids, weight), weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, head_grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (input_ids,) = ctx.saved_tensors
        ids, grad = input_ids.reshape(-1), grad.reshape(-1, grad.shape[-1])
        if ctx.padding_idx is not None:  # nn.Embedding learns nothing from padding
            real = ids != ctx.padding_idx
            ids, grad = ids[real], grad[real]
        return None, head_grad.index_add_(0, ids, grad.to(head_grad.dtype)), None


def share_gradient(model: PreTrainedModel) -> None:
    """Have a model's embeddings hand out the head's weight, for `head_weight`, where that can be.

    That is where they are plain ones, tied to the head, trained, and on a CPU: accelerators would add the rows up in an
    order that changes, and a resumed run would not be exact.
    """
    embeddings: Any = model.get_input_embeddings()
    if (
        type(embeddings) is nn.Embedding
        and embeddings.weight is model.get_output_embeddings().weight
        and embeddings.max_norm is None
        and not embeddings.scale_grad_by_freq
    ):
        embeddings.__dict__["forward"] = types.MethodType(_embed, embeddings)


def _embed(self: nn.Embedding, input_ids: torch.Tensor) -> torch.Tensor:
    if not (torch.is_grad_enabled() and self.weight.requires_grad and self.weight.device.type == "cpu"):
        return nn.Embedding.forward(self, input_ids)
    embedded, weight = _EmbedWithHead.apply(input_ids, self.weight, self.padding_idx)
    self.__dict__["head_weight"] = weight
    return embedded


def head_weight(model: PreTrainedModel) -> torch.Tensor:
    """The weight for the one product that follows the embeddings' last call; its gradient is added to in place.

    Returns:
        `(vocab_size, hidden_size)`.
    """
    return model.get_input_embeddings().__dict__.pop("head_weight", model.get_output_embeddings().weight)
