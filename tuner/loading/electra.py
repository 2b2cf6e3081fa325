"""The two models of replaced-token detection over one matrix of embeddings (Clark et al. 2020,
https://arxiv.org/abs/2003.10555)."""

from __future__ import annotations

from typing import Any

import torch

from tuner.model import (
    TunerEncoderConfig,
    TunerEncoderForMaskedLM,
    TunerEncoderForReplacedTokenDetection,
    TunerPreTrainedModel,
)

# The generator is smaller by this: a quarter to a half of the discriminator was best there (section 3.2).
SHARE = 4


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
        self.discriminator = TunerEncoderForReplacedTokenDetection(config)
        whole = {**config.to_dict(), **_smaller(config, shallow), "tie_word_embeddings": True}
        self.generator = TunerEncoderForMaskedLM(type(config)(**whole))
        self.post_init()

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.discriminator.get_input_embeddings()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The discriminator's."""
        return self.discriminator(*args, **kwargs)


def _smaller(config: TunerEncoderConfig, shallow: bool) -> dict[str, Any]:
    if shallow:
        count = max(config.num_hidden_layers // SHARE, 1)
        return {"num_hidden_layers": count, "layer_types": config.layer_types and config.layer_types[:count]}
    heads = max(config.num_attention_heads // SHARE, 1)
    return {
        "hidden_size": config.hidden_size // config.num_attention_heads * heads,
        "head_dim": config.head_dim,
        "embedding_size": config.embedding_size,
        "intermediate_size": config.intermediate_size // SHARE,
        "num_attention_heads": heads,
        "num_key_value_heads": 1,
    }
