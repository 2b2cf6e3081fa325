"""Encoder and decoder in one model (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationMixin
from transformers.cache_utils import Cache, EncoderDecoderCache, StaticCache
from transformers.modeling_outputs import (
    BaseModelOutput,
    ModelOutput,
    Seq2SeqMoEModelOutput,
    Seq2SeqMoEOutput,
    Seq2SeqSequenceClassifierOutput,
)
from transformers.modeling_utils import slice_logits_to_keep
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .configuration import TunerSeq2SeqConfig
from .decoder import TunerDecoderModel
from .encoder import TunerEncoderModel
from .registration import register
from .stack import TunerPreTrainedModel


class TunerSeq2SeqPreTrainedModel(TunerPreTrainedModel):
    """Every class over a `TunerSeq2SeqConfig`."""

    config: TunerSeq2SeqConfig
    config_class = TunerSeq2SeqConfig
    _skip_keys_device_placement = ["past_key_values", "encoder_outputs"]

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As inherited, in both parts' configurations."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        self.config.vocab_size = self.config.decoder.vocab_size
        return embeddings


class TunerSeq2SeqModel(TunerSeq2SeqPreTrainedModel):
    """Two sequences of token ids to the hidden states of the second. The encoder's embeddings serve both."""

    def __init__(self, config: TunerSeq2SeqConfig):
        super().__init__(config)
        config.vocab_size = config.decoder.vocab_size  # the one that other libraries set
        self.encoder = TunerEncoderModel(config.encoder, add_pooling_layer=False)
        self.decoder = TunerDecoderModel(config.decoder, owns_tokens=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.encoder.embed_tokens = value

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        decoder_inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqMoEModelOutput:
        """
        Args:
            input_ids: `(batch, source time)`; or `inputs_embeds`, or `encoder_outputs` of an earlier call.
            attention_mask: `(batch, source time)`, 1 for a token and 0 for padding.
            decoder_input_ids: `(batch, time)`; or `decoder_inputs_embeds`.
            decoder_attention_mask: `(batch, key_time)`.

        Raises:
            ValueError: neither or both of ids and embeddings, on either side.
        """
        for name in ("output_attentions", "output_hidden_states"):
            if getattr(self.config, name):
                kwargs.setdefault(name, True)
        if use_cache is None and not self.config.use_cache:
            use_cache = False
        if encoder_outputs is None:
            encoder_outputs = self.encoder(input_ids, attention_mask, inputs_embeds=inputs_embeds, **kwargs)
        elif not isinstance(encoder_outputs, ModelOutput):
            encoder_outputs = BaseModelOutput(*encoder_outputs)
        if (decoder_input_ids is None) == (decoder_inputs_embeds is None):
            raise ValueError("Pass exactly one of decoder_input_ids and decoder_inputs_embeds.")
        if decoder_inputs_embeds is None:
            decoder_inputs_embeds = self.encoder.embed_tokens(decoder_input_ids)
        outputs = self.decoder(
            inputs_embeds=decoder_inputs_embeds,
            attention_mask=decoder_attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            encoder_hidden_states=encoder_outputs[0],
            encoder_attention_mask=attention_mask,
            **kwargs,
        )
        return Seq2SeqMoEModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            decoder_hidden_states=outputs.hidden_states,
            decoder_attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=encoder_outputs[0],
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
            encoder_router_logits=encoder_outputs.get("router_logits"),
            decoder_router_logits=outputs.get("router_logits"),
        )


class TunerSeq2SeqForConditionalGeneration(TunerSeq2SeqPreTrainedModel, GenerationMixin):
    """Encoder and decoder with a next-token head, tied to the embeddings or not."""

    _tied_weights_keys = {"lm_head.weight": "model.encoder.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: TunerSeq2SeqConfig):
        super().__init__(config)
        self.model = TunerSeq2SeqModel(config)
        part = config.decoder
        self.lm_head = nn.Linear(part.hidden_size, part.vocab_size, bias=part.lm_head_bias)
        self.loss_type = "ForMaskedLM"  # labels stand where they are predicted: the decoder's input is shifted
        self.post_init()

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """The labels, one later, after the start token.

        Raises:
            ValueError: the configuration has no start token, or no padding token to put where a label is -100.
        """
        start, pad = self.config.decoder_start_token_id, self.config.pad_token_id
        if start is None or pad is None:
            raise ValueError("labels need decoder_start_token_id and pad_token_id in the configuration.")
        shifted = torch.full_like(labels, start)
        shifted[:, 1:] = labels[:, :-1]
        return shifted.masked_fill(shifted == -100, pad)

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """As inherited, but what a sliding layer keeps of the encoder's output is all of it."""
        given = model_kwargs.get("past_key_values") is not None
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        if given:  # it holds the encoder's keys and values already
            return
        cache, part = model_kwargs.get("past_key_values"), self.config.decoder
        if isinstance(cache, EncoderDecoderCache) and "sliding_attention" in part.layer_types:
            options = {}
            if isinstance(cache.cross_attention_cache, StaticCache):
                options["max_cache_len"] = model_kwargs["encoder_outputs"][0].shape[1]
            whole = type(part)(**{**part.to_dict(), "layer_types": None, "sliding_window": None})
            cache.cross_attention_cache = type(cache.cross_attention_cache)(config=whole, **options)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: Any = None,
        decoder_inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> Seq2SeqMoEOutput:
        """
        Args:
            labels: `(batch, time)`, -100 is ignored; the decoder's input is made of them when it is not given.
            logits_to_keep: compute only the last so many positions, or those indexed; 0 for all.
            kwargs: as `TunerSeq2SeqModel` takes them.

        Returns:
            `logits` `(batch, kept time, vocab_size)`, and `loss` in nats a token when labels are given.
        """
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        parts = (self.model.encoder, self.model.decoder)
        options = kwargs
        for part in parts:
            options = part.with_router(labels, options)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            decoder_inputs_embeds=decoder_inputs_embeds,
            **options,
        )
        hidden_states = slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep)
        logits = self.lm_head(hidden_states * self.config.decoder.logit_scale)
        routed = (
            (outputs.encoder_router_logits, attention_mask),
            (outputs.decoder_router_logits, decoder_attention_mask),
        )
        balances = [part.balance(*of) for part, of in zip(parts, routed, strict=True)]
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.decoder.vocab_size, **kwargs)
            for part, balance in zip(parts, balances, strict=True):
                loss = part.add_balance(loss, balance, labels, kwargs.get("num_items_in_batch"))
        found = {name: value for name, value in outputs.items() if name != "last_hidden_state"}
        return Seq2SeqMoEOutput(
            loss=loss, logits=logits, encoder_aux_loss=balances[0], decoder_aux_loss=balances[1], **found
        )


class TunerSeq2SeqForSequenceClassification(TunerSeq2SeqPreTrainedModel):
    """A class for every sequence. Both parts read it; the decoder's state at its last token says which (Lewis et al.
    2019, https://arxiv.org/abs/1910.13461, section 3.1)."""

    def __init__(self, config: TunerSeq2SeqConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = TunerSeq2SeqModel(config)
        self.dropout = nn.Dropout(config.decoder.hidden_dropout)
        self.score = nn.Linear(config.decoder.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        decoder_inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Seq2SeqSequenceClassifierOutput:
        """The decoder reads the same tokens, one later, unless it is given its own.

        The last token is that of the attention mask `(batch, time)`, or without one the last that is not padding.
        `labels` `(batch,)`, or `(batch, num_labels)` where several hold; `logits` `(batch, num_labels)`.
        """
        if attention_mask is None and input_ids is not None and self.config.pad_token_id is not None:
            attention_mask = (input_ids != self.config.pad_token_id).long()
        mask = decoder_attention_mask
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            embed, start, mask = self.get_input_embeddings(), self.config.decoder_start_token_id, attention_mask
            embeds = embed(input_ids) if inputs_embeds is None else inputs_embeds
            begin = embed(torch.full_like(embeds[:, :1, 0], start, dtype=torch.long))
            decoder_inputs_embeds = torch.cat([begin, embeds[:, :-1]], dim=1)
            decoder_attention_mask = None if mask is None else F.pad(mask[:, :-1], (1, 0), value=1)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            inputs_embeds=inputs_embeds,
            decoder_inputs_embeds=decoder_inputs_embeds,
            **{**kwargs, "use_cache": False},
        )
        states = outputs.last_hidden_state
        places = torch.arange(states.shape[1], device=states.device)
        last = (places if mask is None else places * mask).argmax(dim=-1)
        logits = self.score(self.dropout(states[torch.arange(len(states), device=states.device), last]))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config, **kwargs)
        found = {name: value for name, value in outputs.items() if "router" not in name and name != "last_hidden_state"}
        return Seq2SeqSequenceClassifierOutput(loss=loss, logits=logits, **found)


register(
    TunerSeq2SeqConfig,
    AutoModel=TunerSeq2SeqModel,
    AutoModelForPreTraining=TunerSeq2SeqForConditionalGeneration,
    AutoModelForSeq2SeqLM=TunerSeq2SeqForConditionalGeneration,
    AutoModelForSequenceClassification=TunerSeq2SeqForSequenceClassification,
)
