"""rtd: replaced-token detection (Clark et al. 2020, https://arxiv.org/abs/2003.10555)."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn import functional as F

from tuner.data.collate import IGNORED
from tuner.loading.electra import GeneratorAndDiscriminator
from tuner.objectives.base import Batch, Row, Sums
from tuner.objectives.masked_lm import MaskedLM
from tuner.objectives.records import Comparison, Outcome

# Scores are counted in so many bins; those beyond the largest as it.
BINS, LARGEST = 4001, 20.0


class ReplacedTokens(MaskedLM):
    """rtd: a small generator learns masked tokens and fills them in; the model says of every token whether it is the
    original: `L = L_mlm + 50 · mean BCE(replaced)`. Only the discriminator outlives the training."""

    name = "rtd"
    model = "electra"
    keep = 0.0  # what is chosen is always hidden, as there
    terms: ClassVar[dict[str, float]] = {"loss": 1.0, "judged_loss": 50.0}
    loss_unit = "nats a hidden token + 50 x nats a judged one"
    refused = ("z_loss",)

    def __call__(self, rows: list[Row]) -> Batch:
        # For the generator's choices, on any device; one a row, for a batch may be shared out among processes.
        seeds = [int(self.draw(row).integers(2**31)) for row in rows]
        return super().__call__(rows) | {"choice_seed": torch.tensor(seeds)}

    def counts(self, batch: Batch) -> torch.Tensor:
        judged = judged_tokens(batch["labels"], batch.get("attention_mask"))
        return torch.stack([(batch["labels"] != IGNORED).sum(), judged.sum()])

    def both(
        self, model: Any, labels: torch.Tensor, label_smoothing: float = 0.0, **inputs: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The generator's loss, a sum; and of `judge` the discriminator's logits and which tokens were replaced."""
        seed = int(inputs.pop("choice_seed")[0])
        hidden, targets, _ = self.hidden(model.generator, labels, **inputs)
        total, drawn = fill_in(hidden, targets, model, seed, label_smoothing)
        return total, *judge(model, labels, drawn, **inputs)

    def sums(self, model: Any, labels: torch.Tensor, *, training: bool = False, **inputs: Any) -> Sums:
        smoothing = self.label_smoothing if training else 0.0
        total, scores, is_replaced = self.both(model, labels, smoothing, **inputs)
        judged = F.binary_cross_entropy_with_logits(scores, is_replaced.float(), reduction="sum")
        found = {"loss": total, "judged_loss": judged, "count": (labels != IGNORED).sum()}
        return found if training else found | count_scores(scores, is_replaced)

    def saved_part(self, model: Any) -> Any:
        return model.discriminator

    def metrics(self, sums: dict[str, np.ndarray]) -> dict[str, float]:
        if not sums["count"]:
            return {}
        positive, negative = sums["positive"], sums["negative"]
        generator_loss = float(sums["loss"] / sums["count"])
        judged = float(sums["judged_loss"] / max((positive + negative).sum(), 1))
        return {
            "loss": generator_loss + self.terms["judged_loss"] * judged,
            "generator_loss": generator_loss,
            "auc": area_under_curve(positive, negative),
            "replaced": float(positive.sum() / sums["count"]),
        }

    def compare(self, outcome: Outcome) -> Comparison:
        """Beside chance. How good the generator is says how hard it was made."""
        return {
            "area under the ROC curve": {"chance": 0.5, **outcome.before_and_after("auc")},
            "generator: nats a hidden token": outcome.before_and_after("generator_loss"),
            "generator: hidden tokens replaced": outcome.before_and_after("replaced"),
        }


def fill_in(
    hidden: torch.Tensor, targets: torch.Tensor, model: GeneratorAndDiscriminator, seed: int, label_smoothing: float = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """The generator's loss, a sum, of what its head sees `(tokens, embedding_size)`, and a token drawn for each masked
    one."""
    logits = model.generator.lm_head(hidden).float()
    generator = torch.Generator(logits.device).manual_seed(seed)
    # The first of exponential clocks with these rates to ring is a draw from the softmax.
    clocks = torch.empty_like(logits).exponential_(generator=generator)
    drawn = (logits.detach().softmax(dim=-1) / clocks).argmax(dim=-1)
    return F.cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing), drawn


def judge(
    model: GeneratorAndDiscriminator, labels: torch.Tensor, drawn: torch.Tensor, input_ids: torch.Tensor, **inputs: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The discriminator's logits of the tokens that count, and which of them were replaced: one that happens to be the
    original was not."""
    hidden = labels != IGNORED
    filled = input_ids.masked_scatter(hidden, drawn)
    is_replaced = hidden & (filled != labels)
    real = judged_tokens(labels, inputs.get("attention_mask"))
    return model.discriminator(input_ids=filled, **inputs).logits[real].float(), is_replaced[real]


def judged_tokens(labels: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """`(batch, time)`, true for the tokens that the discriminator judges: all that are no padding, of rows in which
    something is hidden."""
    judged = (labels != IGNORED).any(dim=1, keepdim=True).expand_as(labels)
    return judged if attention_mask is None else judged & attention_mask.bool()


def count_scores(scores: torch.Tensor, is_replaced: torch.Tensor) -> dict[str, torch.Tensor]:
    """How many logits lie in each bin, `(BINS,)`: `positive` of replaced tokens, `negative` of the others."""
    bins = ((scores / LARGEST).clamp(-1, 1) * (BINS // 2) + BINS // 2).long()
    kinds = {"positive": is_replaced, "negative": ~is_replaced}
    return {name: torch.bincount(bins[where], minlength=BINS) for name, where in kinds.items()}


def area_under_curve(positive: np.ndarray, negative: np.ndarray) -> float:
    """The area under the ROC curve of counted scores: how often a replaced token's is above another's, ties as half."""
    below = np.cumsum(negative) - negative / 2
    return float((positive * below).sum() / max(positive.sum() * negative.sum(), 1))
