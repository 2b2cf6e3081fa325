"""The encoder's stack: every token sees every other. Its classes with names of their own are in `encoder.py`, all in
one file, because the folder of a saved model gets the code of the file that its class is in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration import TunerEncoderConfig
from .norm import build_norm
from .stack import TunerStack


@dataclass
class TunerPreTrainingOutput(ModelOutput):
    """Logits of tokens `(batch, time, vocab_size)` and of the order of segments `(batch, 2)`, and the sum of losses."""

    loss: torch.Tensor | None = None
    prediction_logits: torch.Tensor | None = None
    seq_relationship_logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class TunerHead(nn.Module):
    """A hidden layer before a prediction: `act(dense(x))`, and a norm where asked for."""

    def __init__(self, config: TunerEncoderConfig, size: int, activation: str, has_norm: bool = False):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, size)
        self.act_fn = ACT2FN[activation]
        self.norm = build_norm(config, size) if has_norm else None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.act_fn(self.dense(hidden_states))
        return hidden_states if self.norm is None else self.norm(hidden_states)


def masked_mean(hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """The mean of a sequence's tokens `(batch, hidden_size)`; a mask `(batch, time)` may begin with a learnt prefix."""
    if attention_mask is None or attention_mask.dim() != 2:
        return hidden_states.mean(dim=1)
    real = attention_mask[:, -hidden_states.shape[1] :, None].to(hidden_states.dtype)
    return (hidden_states * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)


class TunerEncoderStack(TunerStack):
    """Token ids to hidden states, and with `add_pooling_layer` one vector for the sequence, of its first token or as
    `classifier_pooling` says."""

    config: TunerEncoderConfig
    config_class = TunerEncoderConfig

    def __init__(self, config: TunerEncoderConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.averages = add_pooling_layer and config.classifier_pooling == "mean"
        dense = add_pooling_layer and not self.averages
        self.pooler = TunerHead(config, config.hidden_size, config.pooler_act) if dense else None
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            input_ids: `(batch, time)`; exactly one of it and `inputs_embeds` `(batch, time, embedding_size)`.
            attention_mask: `(batch, time)`, 1 for a token and 0 for padding.
            token_type_ids: `(batch, time)`, the segment of each token, 0 by default.
            past_key_values: keys and values that every token sees before its own sequence's, as prefix tuning learns
                them (Li & Liang 2021, https://arxiv.org/abs/2101.00190); `attention_mask` is longer by their number.

        Raises:
            ValueError: neither or both of `input_ids` and `inputs_embeds`.
        """
        hidden_states, positions = self.embed(
            input_ids, inputs_embeds, attention_mask, position_ids, past_key_values, token_type_ids
        )
        masks = self.masks(hidden_states, attention_mask, position_ids, past_key_values)
        hidden_states = self.run(hidden_states, positions, masks, past_key_values, **kwargs)
        pooled = self.pooler(hidden_states[:, 0]) if self.pooler is not None else None
        if self.averages:
            pooled = masked_mean(hidden_states, attention_mask)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=pooled)
