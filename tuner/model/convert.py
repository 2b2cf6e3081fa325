"""Other families' weights in our classes.

Our decoder's parameters carry Llama's names, so what has to be translated is the configuration. Every field of theirs
that changes what is computed is either mapped or checked; one that has no counterpart is refused by name.
"""

from __future__ import annotations

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from .configuration import TunerDecoderConfig
from .decoder import TunerDecoderForCausalLM

# Fields that mean the same here and there.
_SHARED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "rope_parameters",
    "attention_bias", "mlp_bias", "attention_dropout", "tie_word_embeddings", "pad_token_id", "bos_token_id",
    "eos_token_id",
)  # fmt: skip


def decoder_config_from_llama(config: LlamaConfig) -> TunerDecoderConfig:
    """Our configuration of the same shape.

    Raises:
        ValueError: not a Llama configuration.
    """
    if config.model_type != "llama":
        raise ValueError(f"a {config.model_type} model has no counterpart here; Llama models do.")
    return TunerDecoderConfig(**{name: getattr(config, name) for name in _SHARED}, use_qk_norm=False)


def decoder_from_llama(model: PreTrainedModel) -> TunerDecoderForCausalLM:
    """Our decoder with the weights of a `LlamaForCausalLM`; the tensors are shared with it, not copied.

    Raises:
        ValueError: not a Llama model, or one without the language-model head.
    """
    config = decoder_config_from_llama(model.config)
    if not isinstance(model, LlamaForCausalLM):
        raise ValueError(f"a {type(model).__name__} is not the whole model; a LlamaForCausalLM is.")
    config._attn_implementation = model.config._attn_implementation
    with_shape = TunerDecoderForCausalLM._from_config(config, dtype=model.dtype)
    with_shape.load_state_dict(model.state_dict(), strict=True, assign=True)
    with_shape.tie_weights()
    with_shape.train(model.training)
    if model.generation_config is not None:
        with_shape.generation_config = model.generation_config
    return with_shape
