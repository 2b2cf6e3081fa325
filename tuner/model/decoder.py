"""The decoder: a causal stack, and the heads over it.

Everything a user of the ecosystem expects is inherited: generation, caches, loading and saving, sharding plans.
Deliberately absent: a `return_dict`, `output_attentions` or `output_hidden_states` argument; transformers 5 records
those outside the forward pass.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import GenerationMixin
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
)
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions, MoeCausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention import own_cache
from .configuration import TunerDecoderConfig
from .registration import register
from .stack import TunerPreTrainedModel, TunerStack


class TunerDecoderPreTrainedModel(TunerPreTrainedModel):
    """Every class over a `TunerDecoderConfig`."""

    config: TunerDecoderConfig
    config_class = TunerDecoderConfig


class TunerDecoderModel(TunerStack):
    """Token ids to hidden states."""

    config: TunerDecoderConfig
    config_class = TunerDecoderConfig
    is_causal = True

    def __init__(self, config: TunerDecoderConfig, owns_tokens: bool = True):
        super().__init__(config, owns_tokens)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """
        Args:
            input_ids: `(batch, time)`; exactly one of it and `inputs_embeds` `(batch, time, hidden_size)`.
            attention_mask: `(batch, key_time)`, 1 for a token and 0 for padding.
            position_ids: `(batch, time)`. Several sequences packed into one row are told apart by positions that start
                again at 0; pass no attention mask then.
            past_key_values: keys and values of earlier tokens.
            encoder_hidden_states: `(batch, source time, hidden_size)`, what cross-attention looks at.
            encoder_attention_mask: `(batch, source time)`.

        Raises:
            ValueError: neither or both of `input_ids` and `inputs_embeds`.
        """
        hidden_states, positions = self.embed(input_ids, inputs_embeds, attention_mask, position_ids, past_key_values)
        masks = self.masks(hidden_states, attention_mask, position_ids, own_cache(past_key_values))
        if use_cache and past_key_values is None:
            # After the mask: packed rows are recognised only where no cache is given, and an empty one masks nothing.
            past_key_values = DynamicCache(config=self.config)
            if self.config.add_cross_attention:
                past_key_values = EncoderDecoderCache(past_key_values, DynamicCache())
        if encoder_hidden_states is not None:
            kwargs["encoder_hidden_states"] = encoder_hidden_states
            kwargs["encoder_attention_mask"] = create_bidirectional_mask(
                config=self.config,
                inputs_embeds=hidden_states,
                attention_mask=encoder_attention_mask,
                encoder_hidden_states=encoder_hidden_states,
            )
        hidden_states = self.run(hidden_states, positions, masks, past_key_values, use_cache=use_cache, **kwargs)
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=hidden_states, past_key_values=past_key_values
        )


class TunerDecoderForCausalLM(TunerDecoderPreTrainedModel, GenerationMixin):
    """The decoder with a next-token head, tied to the embeddings or not."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: TunerDecoderConfig):
        super().__init__(config)
        self.model = TunerDecoderModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.lm_head_bias)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MoeCausalLMOutputWithPast:
        """
        Args:
            labels: `(batch, time)`; position `t` is predicted from `t - 1`, -100 is ignored.
            logits_to_keep: compute only the last so many positions, or those indexed; 0 for all.

        Returns:
            `logits` `(batch, kept time, vocab_size)`, and `loss` in nats a token when labels are given.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **self.with_router(labels, kwargs),
        )
        hidden_states = slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep)
        if self.config.logit_scale != 1:
            hidden_states = hidden_states * self.config.logit_scale
        logits = self.lm_head(hidden_states)
        loss, balance = None, self.balance(outputs.get("router_logits"), attention_mask)
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
            loss = self.add_balance(loss, balance, labels, kwargs.get("num_items_in_batch"))
        return MoeCausalLMOutputWithPast(
            loss=loss,
            aux_loss=balance,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.get("router_logits"),
        )


class TunerDecoderForSequenceClassification(GenericForSequenceClassification, TunerDecoderPreTrainedModel):
    """A class for every sequence, read from its last real token."""

    accepts_loss_kwargs = False  # the generic head's loss is a mean: the Trainer divides it by the accumulated steps

    def __init__(self, config: TunerDecoderConfig):
        # Not the generic one's: that asks an Auto class, which knows nothing of code that came with a checkpoint.
        super(GenericForSequenceClassification, self).__init__(config)
        self.num_labels = config.num_labels
        self.model = TunerDecoderModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()


class TunerDecoderForTokenClassification(GenericForTokenClassification, TunerDecoderPreTrainedModel):
    """A class for every token, of which it has seen those before."""

    accepts_loss_kwargs = False

    def __init__(self, config: TunerDecoderConfig):
        super(GenericForTokenClassification, self).__init__(config)
        self.num_labels = config.num_labels
        self.model = TunerDecoderModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()


class TunerDecoderForQuestionAnswering(GenericForQuestionAnswering, TunerDecoderPreTrainedModel):
    """Where an answer begins and ends."""

    def __init__(self, config: TunerDecoderConfig):
        super(GenericForQuestionAnswering, self).__init__(config)
        self.model = TunerDecoderModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()


register(
    TunerDecoderConfig,
    AutoModel=TunerDecoderModel,
    AutoModelForPreTraining=TunerDecoderForCausalLM,
    AutoModelForCausalLM=TunerDecoderForCausalLM,
    AutoModelForSequenceClassification=TunerDecoderForSequenceClassification,
    AutoModelForTokenClassification=TunerDecoderForTokenClassification,
    AutoModelForQuestionAnswering=TunerDecoderForQuestionAnswering,
)
