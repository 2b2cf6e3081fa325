"""rtd: replaced-token detection (Clark et al. 2020, https://arxiv.org/abs/2003.10555)."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn import functional as F

from tuner.data.collate import IGNORED
from tuner.data.draws import generator
from tuner.errors import ArgumentError
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
    weight: ClassVar[float] = 50.0
    loss_unit = "nats a hidden token + 50 x nats a judged one"

    @classmethod
    def check(cls, args: Any, processes: int) -> None:
        super().check(args, processes)
        if args.z_loss:
            raise ArgumentError("--z_loss is for losses over the vocabulary: --objective rtd has none.")

    def __call__(self, rows: list[Row]) -> Batch:
        # For the generator's choices, on any device; one a row, for a batch may be shared out among processes.
        seeds = [int(generator(self.args.seed, row["draw"]).integers(2**31)) for row in rows]
        return super().__call__(rows) | {"choice_seed": torch.tensor(seeds)}

    def counts(self, batch: Batch) -> torch.Tensor:
        judged = judged_tokens(batch["labels"], batch.get("attention_mask"))
        return torch.stack([(batch["labels"] != IGNORED).sum(), judged.sum()])

    def both(
        self, model: Any, labels: torch.Tensor, **inputs: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The generator's loss and the discriminator's, sums; its logits, and what it should have seen."""
        seed = int(inputs.pop("choice_seed")[0])
        hidden, targets, _ = self.hidden(model.generator, labels, **inputs)
        smoothing = self.label_smoothing if model.training else 0.0
        total, drawn = fill_in(hidden, targets, model, seed, smoothing)
        scores, is_replaced = judge(model, labels, drawn, **inputs)
        return (
            total,
            F.binary_cross_entropy_with_logits(scores, is_replaced.float(), reduction="sum"),
            scores,
            is_replaced,
        )

    def loss(self, model: Any, labels: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        total, judged, scores, _ = self.both(model, labels, **inputs)
        hidden = (labels != IGNORED).sum()
        return torch.stack([total, self.weight * judged]), torch.stack([hidden, hidden.new_tensor(len(scores))])

    def saved_part(self, model: Any) -> Any:
        return model.discriminator

    def sums(self, model: Any, labels: torch.Tensor, **inputs: Any) -> Sums:
        total, judged, scores, is_replaced = self.both(model, labels, **inputs)
        return {
            "loss": total,
            "count": (labels != IGNORED).sum(),
            "judged_loss": judged,
            **count_scores(scores, is_replaced),
        }

    def metrics(self, sums: dict[str, np.ndarray]) -> dict[str, float]:
        if not sums["count"]:
            return {}
        positive, negative = sums["positive"], sums["negative"]
        generator_loss = float(sums["loss"] / sums["count"])
        judged = float(sums["judged_loss"] / max((positive + negative).sum(), 1))
        return {
            "loss": generator_loss + self.weight * judged,
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
    """The generator's loss, a sum, and a token drawn for each masked one.

    Args:
        hidden: `(tokens, embedding_size)`, what its head sees.
        targets: `(tokens,)`.
        seed: of the draws.
    """
    logits = model.generator.lm_head(hidden).float()
    generator = torch.Generator(logits.device).manual_seed(seed)
    # The first of exponential clocks with these rates to ring is a draw from the softmax.
    clocks = torch.empty_like(logits).exponential_(generator=generator)
    drawn = (logits.detach().softmax(dim=-1) / clocks).argmax(dim=-1)
    return F.cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing), drawn


def judge(
    model: GeneratorAndDiscriminator, labels: torch.Tensor, drawn: torch.Tensor, input_ids: torch.Tensor, **inputs: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The discriminator's logits of the tokens that count, and which of them were replaced.

    A token that happens to be the original is no replaced one.
    """
    hidden = labels != IGNORED
    filled = input_ids.masked_scatter(hidden, drawn)
    is_replaced = torch.zeros_like(hidden).masked_scatter(hidden, drawn != labels[hidden])
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
