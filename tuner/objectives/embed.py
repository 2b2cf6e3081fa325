"""Embeddings of texts, and their likeness across processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F

# Parts of a batch; their lengths are rounded up to a multiple, so that kernels meet few sizes.
PARTS, MULTIPLE = 4, 16


def embed(model: Any, attention_mask: torch.Tensor | None = None, **inputs: Any) -> torch.Tensor:
    """The mean of a text's tokens, of length 1: `(batch, hidden_size)` in float32 (Reimers & Gurevych 2019,
    https://arxiv.org/abs/1908.10084).

    Texts are padded at their end, and computed in `PARTS` parts of like length: short ones do not wait for long ones.
    """
    if attention_mask is None:
        return F.normalize(_states(model, inputs).mean(dim=1), dim=-1)
    lengths = attention_mask.sum(dim=1)
    order = lengths.argsort(stable=True)
    found = []
    for rows in order.chunk(PARTS):
        time = min(-(-int(lengths[rows].max()) // MULTIPLE) * MULTIPLE, attention_mask.shape[1])
        mask = attention_mask[rows, :time]
        part = {name: tensor[rows, :time] for name, tensor in inputs.items()}
        states = _states(model, {**part, "attention_mask": mask})
        found.append((states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1))
    return F.normalize(torch.cat(found)[order.argsort()], dim=-1)


def _states(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    # The encoder's own forward: a model's is the one with the loss in it.
    return type(model).forward(model, **inputs).last_hidden_state.float()


def gathered(
    ones: torch.Tensor, others: torch.Tensor, real: torch.Tensor, temperature: float
) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Cosines over the temperature of this process's texts and all processes': ones against others, others against
    ones, each `(batch, all texts)`, -inf for those that are not `real` `(batch,)`; and the column of each partner."""
    batch, first = len(ones), 0
    all_ones, all_others, counts = ones, others, real
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        first = batch * torch.distributed.get_rank()
        all_ones, all_others = torch.cat(all_gather(ones)), torch.cat(all_gather(others))
        counts = torch.cat(all_gather(real.float())) > 0
    targets = torch.arange(first, first + batch, device=ones.device)
    one, other = (ones @ all_others.T / temperature, others @ all_ones.T / temperature)
    return (one.masked_fill(~counts, -torch.inf), other.masked_fill(~counts, -torch.inf)), targets
