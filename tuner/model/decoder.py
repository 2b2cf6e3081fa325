"""The decoder: embeddings, a stack of blocks, a norm, and the language-model head over it.

Everything a user of the ecosystem expects is inherited: generation, caches, loading and saving, sharding plans. What is
ours is the stack itself. Deliberately absent: a `return_dict`, `output_attentions` or `output_hidden_states` argument;
transformers 5 records those outside the forward pass.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention import TunerAttention
from .block import TunerDecoderLayer
from .configuration import TunerDecoderConfig
from .norm import TunerRMSNorm
from .positions import TunerRotaryEmbedding


class TunerDecoderPreTrainedModel(PreTrainedModel):
    """What transformers must know of the family. Weights are initialised by its own rules: every parameter here sits in
    a Linear, an Embedding, an RMSNorm or the rotary table, which those rules cover."""

    config: TunerDecoderConfig
    config_class = TunerDecoderConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["TunerDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": TunerDecoderLayer, "attentions": TunerAttention}


class TunerDecoderModel(TunerDecoderPreTrainedModel):
    """Token ids to hidden states."""

    def __init__(self, config: TunerDecoderConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList([TunerDecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = TunerRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = TunerRotaryEmbedding(config)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.gradient_checkpointing = False  # set by `gradient_checkpointing_enable`; no cache is made then
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
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """
        Args:
            input_ids: `(batch, time)`; exactly one of it and `inputs_embeds` `(batch, time, hidden_size)`.
            attention_mask: `(batch, key_time)`, 1 for a token and 0 for padding.
            position_ids: `(batch, time)`. Several sequences packed into one row are told apart by positions that start
                again at 0; pass no attention mask then.
            past_key_values: keys and values of earlier tokens.

        Raises:
            ValueError: neither or both of `input_ids` and `inputs_embeds`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = (torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + seen).unsqueeze(0)

        causal_mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        if use_cache and past_key_values is None:
            # After the mask: packed rows are recognised only where no cache is given, and an empty one masks nothing.
            past_key_values = DynamicCache(config=self.config)
        position_embeddings = self.rotary_emb(inputs_embeds, position_ids=position_ids)
        hidden_states = self.dropout(inputs_embeds)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                attention_mask=causal_mask,
                position_embeddings=position_embeddings,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values)


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
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
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
    ) -> CausalLMOutputWithPast:
        """
        Args:
            labels: `(batch, time)`; position `t` is predicted from `t - 1`, -100 is ignored.
            logits_to_keep: compute only the last so many positions, or those indexed; 0 for all.

        Returns:
            `logits` `(batch, kept time, vocab_size)`, and `loss` in nats a token when labels are given.
        """
        outputs: BaseModelOutputWithPast = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
