"""A stack of blocks over embeddings: what encoder and decoder share, and what transformers must know of the family."""

from __future__ import annotations

import os
from itertools import chain
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.distributed.parallel_utils import replace_layer_number_by_wildcard
from transformers.masking_utils import (
    create_bidirectional_mask,
    create_bidirectional_sliding_window_mask,
    create_causal_mask,
    create_sliding_window_causal_mask,
)
from transformers.utils.output_capturing import OutputRecorder

from .attention import TunerAttention, own_cache
from .block import TunerLayer
from .components import TunerConfig
from .experts import TunerExperts, TunerRouter, load_balancing_loss
from .linear import TunerLinformer, TunerPerformer
from .norm import build_norm
from .positions import BIAS_CLASSES, TunerRotaryEmbedding, TunerSinusoidalEmbedding

MASKS = {
    True: {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask},
    False: {"full_attention": create_bidirectional_mask, "sliding_attention": create_bidirectional_sliding_window_mask},
}


class TunerPreTrainedModel(PreTrainedModel):
    """Loading, saving, sharding and recording for every class of the family."""

    config: TunerConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["TunerLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": TunerLayer,
        "attentions": OutputRecorder(TunerAttention, index=1, layer_name="self_attn"),
        "cross_attentions": OutputRecorder(TunerAttention, index=1, layer_name="cross_attn"),
        "router_logits": OutputRecorder(TunerRouter, index=0),
    }

    def init_parallel_plans(self) -> None:
        """As inherited, without rules for parts that this configuration does not have."""
        super().init_parallel_plans()
        found = chain(self.named_modules(), self.named_parameters())
        names = {replace_layer_number_by_wildcard(name) for name, _ in found}
        for plan in (self._tp_plan, self._pp_plan, self._fsdp_plan):
            for name in plan.keys() - names:
                del plan[name]

    # A class method there, which looks for a decorator in the file of the class. Of ours the configuration says whether
    # there are experts, so that a model knows and the class does not.
    def _can_set_experts_implementation(self: Any = None) -> bool:
        if self is None:
            return False
        parts = [self.config, *(getattr(self.config, name) for name in self.config.sub_configs)]
        return any(getattr(part, "num_local_experts", 0) for part in parts)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, TunerRouter):
            init.normal_(module.weight, std=std)
        elif isinstance(module, TunerExperts):
            init.normal_(module.gate_up_proj, std=std)
            init.normal_(module.down_proj, std=std)
        elif isinstance(module, TunerLinformer):
            for mixture in (module.key_mixture, module.value_mixture):
                init.normal_(mixture, std=mixture.shape[1] ** -0.5)
        elif isinstance(module, TunerPerformer):
            init.copy_(module.features, module.draw_features())

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As inherited, and `config.json` names every class of the shape, so that a folder with this code loads as any.

        The folder of an adapter gets no code: that belongs to the model which it is for.
        """
        if getattr(self, "_hf_peft_config_loaded", False):
            self.is_remote_code = lambda: False
            try:
                super().save_pretrained(save_directory, *args, **kwargs)
            finally:
                del self.is_remote_code
            return
        if type(self).__module__.startswith(f"{__package__}."):
            self.config.auto_map = {**getattr(self.config, "auto_map", {}), **self.config.auto_classes}
        super().save_pretrained(save_directory, *args, **kwargs)

    def with_router(self, labels: torch.Tensor | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The stack's arguments, with the router's logits asked for where a loss needs them."""
        config = self.config
        needed = bool(config.num_local_experts and config.router_aux_loss_coef and labels is not None)
        return {**kwargs, "output_router_logits": True} if needed else kwargs

    def balance(self, logits: tuple[torch.Tensor, ...] | None, attention_mask: Any = None) -> torch.Tensor | None:
        """The load-balancing loss of the router's logits, where there are any, before it is weighted."""
        if not logits:
            return None
        mask = attention_mask if isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 2 else None
        if mask is not None:
            mask = mask[:, -(len(logits[0]) // len(mask)) :]  # of what came before, in a cache, there are no logits
        return load_balancing_loss(logits, self.config.num_experts_per_tok, mask)

    def add_balance(
        self,
        loss: torch.Tensor,
        balance: torch.Tensor | None,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """The loss with the weighted `balance`. Where it is a share of a larger batch's, `labels` of
        `num_items_in_batch`, the balance is too."""
        if balance is None:
            return loss
        share = 1 if num_items_in_batch is None else (labels != -100).sum() / num_items_in_batch
        return loss + balance * self.config.router_aux_loss_coef * share


class TunerStack(TunerPreTrainedModel):
    """Embeddings, blocks, and a last norm unless the blocks end with one.

    Args:
        owns_tokens: whether it embeds tokens itself; the decoder of a pair is given them embedded.
    """

    is_causal = False

    def __init__(self, config: TunerConfig, owns_tokens: bool = True):
        super().__init__(config)
        width = getattr(config, "embedding_size", config.hidden_size)
        types = getattr(config, "type_vocab_size", 0)
        crosses = getattr(config, "add_cross_attention", False)
        kind = config.position_embedding_type
        if owns_tokens:
            self.embed_tokens = nn.Embedding(config.vocab_size, width, config.pad_token_id)
        self.embed_types = nn.Embedding(types, width) if types else None
        self.embed_positions: nn.Module | None = None
        if kind == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings + config.position_offset, width)
        elif kind == "sinusoidal":
            self.embed_positions = TunerSinusoidalEmbedding(width)
        self.embed_norm = build_norm(config, width) if config.embedding_norm else None
        self.embed_proj = nn.Linear(width, config.hidden_size) if width != config.hidden_size else None
        self.rotary_emb = TunerRotaryEmbedding(config) if kind == "rotary" else None
        self.position_bias = BIAS_CLASSES[kind](config, not self.is_causal) if kind in BIAS_CLASSES else None
        self.layers = nn.ModuleList(
            [TunerLayer(config, i, self.is_causal, crosses) for i in range(config.num_hidden_layers)]
        )
        self.norm = build_norm(config) if config.norm_position != "post" else None
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.gradient_checkpointing = False  # set by `activation_checkpointing_enable`; no cache is made then
        if config.attention_type != "softmax":
            self._can_compile_fullgraph = False  # generation would give it a cache of fixed length

    def embed(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        attention_mask: Any,
        position_ids: torch.Tensor | None,
        past_key_values: Cache | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The first block's input `(batch, time, hidden_size)`, and the position of every token.

        Raises:
            ValueError: neither or both of `input_ids` and `inputs_embeds`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of input_ids and inputs_embeds.")
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if position_ids is None:
            position_ids = self._positions(hidden_states, input_ids, attention_mask, past_key_values)
        if self.config.embedding_scale != 1:
            hidden_states = hidden_states * self.config.embedding_scale
        if self.embed_types is not None:
            types = torch.zeros_like(position_ids) if token_type_ids is None else token_type_ids
            hidden_states = hidden_states + self.embed_types(types)
        if self.embed_positions is not None:
            places = self.embed_positions(position_ids + self.config.position_offset)
            hidden_states = hidden_states + places.to(hidden_states.dtype)
        if self.embed_norm is not None:
            hidden_states = self.embed_norm(hidden_states)
        hidden_states = self.dropout(hidden_states)
        return (hidden_states if self.embed_proj is None else self.embed_proj(hidden_states)), position_ids

    def _positions(
        self, embeds: torch.Tensor, input_ids: torch.Tensor | None, attention_mask: Any, cache: Cache | None
    ) -> torch.Tensor:
        seen = cache.get_seq_length() if cache is not None else 0
        if self.config.skip_padding_positions:
            pad, real = self.config.pad_token_id, attention_mask
            if input_ids is not None and pad is not None:
                real = input_ids != pad
            if real is not None and real.dim() == 2:
                real = real[:, -embeds.shape[1] :]
                return (real.long().cumsum(dim=1) + seen) * real - 1
        return (torch.arange(embeds.shape[1], device=embeds.device) + seen).unsqueeze(0)

    def masks(
        self, embeds: torch.Tensor, attention_mask: Any, position_ids: torch.Tensor | None, cache: Cache | None = None
    ) -> dict[str, Any]:
        """A mask for each kind of layer there is. Attention that is linear in time takes the plain one, or none.

        `position_ids` are the caller's: only those can start again within a row, and a compiler, which cannot look,
        writes out a whole mask for them.
        """
        kinds = set(self.config.layer_types)
        if isinstance(attention_mask, dict):  # made by `generate`
            return attention_mask
        if self.config.attention_type != "softmax":
            if (
                position_ids is not None
                and attention_mask is None
                and not torch.compiler.is_compiling()
                and bool((position_ids.diff() < 0).any())
            ):
                raise ValueError(f"{self.config.attention_type} attention cannot tell sequences in one row apart.")
            if attention_mask is not None and attention_mask.dim() != 2:
                raise ValueError(
                    f"{self.config.attention_type} attention takes a mask (batch, time) of real tokens only."
                )
            return dict.fromkeys(kinds, attention_mask)
        options: dict[str, Any] = {"config": self.config, "inputs_embeds": embeds, "attention_mask": attention_mask}
        options["past_key_values"] = cache
        if self.is_causal:
            options["position_ids"] = position_ids
        return {kind: MASKS[self.is_causal][kind](**options) for kind in kinds}

    def run(
        self,
        hidden_states: torch.Tensor,
        position_ids: torch.Tensor,
        masks: dict[str, Any],
        past_key_values: Cache | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Through all blocks; `(batch, time, hidden_size)` in and out."""
        tables = self.rotary_emb(hidden_states, position_ids=position_ids) if self.rotary_emb is not None else None
        biases = self._biases(hidden_states, own_cache(past_key_values))
        # Other libraries prune and repeat layers, and leave early by lowering the number.
        for layer in self.layers[: self.config.num_hidden_layers]:
            hidden_states = layer(
                hidden_states,
                biases.get(layer.attention_type),  # what has a gradient goes by position: reentrant checkpointing asks
                encoder_hidden_states,
                attention_mask=masks[layer.attention_type],
                position_embeddings=tables,
                position_ids=position_ids,
                past_key_values=past_key_values,
                **kwargs,
            )
        return hidden_states if self.norm is None else self.norm(hidden_states)

    def _biases(self, hidden_states: torch.Tensor, cache: Cache | None) -> dict[str, torch.Tensor]:
        """What the distance between query and key adds to a score, for each kind of layer."""
        if self.position_bias is None:
            return {}
        if "flash" in self.config._attn_implementation:
            kind = self.config.position_embedding_type
            raise ValueError(f"flash attention cannot add position_embedding_type {kind}; use sdpa, flex or eager.")
        biases, time, types = {}, hidden_states.shape[1], list(self.config.layer_types or [])
        for kind in set(types):
            seen, length, first = 0, time, 0
            if cache is not None:
                layer = types.index(kind)
                seen = cache.get_seq_length(layer)
                length, first = cache.get_mask_sizes(time, layer)
            keys = torch.arange(length, device=hidden_states.device) + first
            queries = torch.arange(time, device=hidden_states.device) + seen
            biases[kind] = self.position_bias(keys - queries[:, None]).unsqueeze(0).to(hidden_states.dtype)
        return biases
