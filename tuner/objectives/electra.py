"""A generator that fills masked tokens in, and the discriminator that learns to tell them (Clark et al. 2020,
https://arxiv.org/abs/2003.10555)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from tuner.corpus.corrupt import IGNORED
from tuner.model import (
    TunerEncoderConfig,
    TunerEncoderForMaskedLM,
    TunerEncoderForReplacedTokenDetection,
    TunerPreTrainedModel,
)

# The generator is smaller by this: a quarter to a half of the discriminator was best there (section 3.2).
SHARE = 4
# Scores are counted in so many bins; those beyond the largest as it.
BINS, LARGEST = 4001, 20.0


class GeneratorAndDiscriminator(TunerPreTrainedModel):
    """Both, over one matrix of embeddings. Only the discriminator outlives the training.

    Args:
        shallow: the generator has a quarter of the blocks, not of the width: it can then begin as a checkpoint's first.
    """

    config_class = TunerEncoderConfig
    _tied_weights_keys = {
        "generator.model.embed_tokens.weight": "discriminator.model.embed_tokens.weight",
        "generator.lm_head.weight": "discriminator.model.embed_tokens.weight",
    }

    def __init__(self, config: TunerEncoderConfig, shallow: bool = False):
        super().__init__(config)
        smaller = _fewer_blocks(config) if shallow else _narrower(config)
        self.discriminator = TunerEncoderForReplacedTokenDetection(config)
        whole = {**config.to_dict(), **smaller, "tie_word_embeddings": True}
        self.generator = TunerEncoderForMaskedLM(type(config)(**whole))
        self.post_init()

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.discriminator.get_input_embeddings()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The discriminator's."""
        return self.discriminator(*args, **kwargs)


def _narrower(config: TunerEncoderConfig) -> dict[str, Any]:
    heads = max(config.num_attention_heads // SHARE, 1)
    return {
        "hidden_size": config.hidden_size // config.num_attention_heads * heads,
        "head_dim": config.head_dim,
        "embedding_size": config.embedding_size,
        "intermediate_size": config.intermediate_size // SHARE,
        "num_attention_heads": heads,
        "num_key_value_heads": 1,
    }


def _fewer_blocks(config: TunerEncoderConfig) -> dict[str, Any]:
    count = max(config.num_hidden_layers // SHARE, 1)
    return {"num_hidden_layers": count, "layer_types": config.layer_types and config.layer_types[:count]}


def fill_in(
    hidden: torch.Tensor, targets: torch.Tensor, model: GeneratorAndDiscriminator, seed: int
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
    return F.cross_entropy(logits, targets, reduction="sum"), drawn


def judge(
    model: GeneratorAndDiscriminator, labels: torch.Tensor, drawn: torch.Tensor, input_ids: torch.Tensor, **inputs: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The discriminator's logits of the tokens that count, and which of them were replaced.

    A token that happens to be the original is no replaced one.
    """
    hidden = labels != IGNORED
    filled = input_ids.masked_scatter(hidden, drawn)
    is_replaced = torch.zeros_like(hidden).masked_scatter(hidden, drawn != labels[hidden])
    real = hidden.any(dim=1, keepdim=True).expand_as(hidden)
    mask = inputs.get("attention_mask")
    real = real if mask is None else real & mask.bool()
    return model.discriminator(input_ids=filled, **inputs).logits[real].float(), is_replaced[real]


def count_scores(scores: torch.Tensor, is_replaced: torch.Tensor) -> dict[str, torch.Tensor]:
    """How many logits lie in each bin, `(BINS,)`: `positive` of replaced tokens, `negative` of the others."""
    bins = ((scores / LARGEST).clamp(-1, 1) * (BINS // 2) + BINS // 2).long()
    kinds = {"positive": is_replaced, "negative": ~is_replaced}
    return {name: torch.bincount(bins[where], minlength=BINS) for name, where in kinds.items()}


def area_under_curve(positive: np.ndarray, negative: np.ndarray) -> float:
    """The area under the ROC curve of counted scores: how often a replaced token's is above another's, ties as half."""
    below = np.cumsum(negative) - negative / 2
    return float((positive * below).sum() / max(positive.sum() * negative.sum(), 1))
