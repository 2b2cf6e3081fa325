"""Decoder families: GPT-2, Llama, Mistral, Mixtral, Qwen2, Qwen3."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from .family import Family, Head
from .rules import table

_SHARED = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range", "rope_parameters"),
    *("attention_dropout", "tie_word_embeddings", "use_cache", "pad_token_id", "bos_token_id", "eos_token_id"),
)
_LIKE_LLAMA = {**{name: name for name in _SHARED}, "rms_norm_eps": "norm_eps"}

_LLAMA_ATTENTION = """
embed_tokens = embed_tokens
layers.{i}.self_attn.q_proj = layers.{i}.self_attn.q_proj
layers.{i}.self_attn.k_proj = layers.{i}.self_attn.k_proj
layers.{i}.self_attn.v_proj = layers.{i}.self_attn.v_proj
layers.{i}.self_attn.o_proj = layers.{i}.self_attn.o_proj
layers.{i}.input_layernorm = layers.{i}.self_attn_residual.norm
layers.{i}.post_attention_layernorm = layers.{i}.mlp_residual.norm
norm = norm
"""
_LLAMA = table(
    _LLAMA_ATTENTION
    + """
layers.{i}.mlp.gate_proj = layers.{i}.mlp.gate_proj
layers.{i}.mlp.up_proj = layers.{i}.mlp.up_proj
layers.{i}.mlp.down_proj = layers.{i}.mlp.down_proj
""".lstrip()
)
_QK_NORM = table("""
layers.{i}.self_attn.q_norm = layers.{i}.self_attn.q_norm
layers.{i}.self_attn.k_norm = layers.{i}.self_attn.k_norm
""")
_EXPERTS = table(
    _LLAMA_ATTENTION
    + """
layers.{i}.mlp.gate = layers.{i}.mlp.router
layers.{i}.mlp.experts.gate_up_proj = layers.{i}.mlp.experts.gate_up_proj
layers.{i}.mlp.experts.down_proj = layers.{i}.mlp.experts.down_proj
""".lstrip()
)
_GPT2 = table("""
wte = embed_tokens
wpe = embed_positions
h.{i}.ln_1 = layers.{i}.self_attn_residual.norm
h.{i}.ln_2 = layers.{i}.mlp_residual.norm
ln_f = norm
""") + table(
    """
h.{i}.attn.c_attn = layers.{i}.self_attn.q_proj, layers.{i}.self_attn.k_proj, layers.{i}.self_attn.v_proj
h.{i}.attn.c_proj = layers.{i}.self_attn.o_proj
h.{i}.mlp.c_fc = layers.{i}.mlp.up_proj
h.{i}.mlp.c_proj = layers.{i}.mlp.down_proj
""",
    transposed=True,
)


def _heads(name: str, language_model: str = "ForCausalLM", tokens: str = "score") -> tuple[Head, ...]:
    return (
        Head(f"{name}{language_model}", "TunerDecoderForCausalLM", table("lm_head = lm_head")),
        Head(f"{name}ForSequenceClassification", "TunerDecoderForSequenceClassification", table("score = score")),
        Head(f"{name}ForTokenClassification", "TunerDecoderForTokenClassification", table(f"{tokens} = score")),
        Head(f"{name}ForQuestionAnswering", "TunerDecoderForQuestionAnswering", table("qa_outputs = qa_outputs")),
        Head(f"{name}Model", "TunerDecoderModel"),
    )


def _read_window(config: PreTrainedConfig) -> dict[str, Any]:
    slides = "sliding_attention" in config.layer_types
    return {"layer_types": list(config.layer_types), "sliding_window": config.sliding_window if slides else None}


def _write_window(config: PreTrainedConfig) -> dict[str, Any]:
    return {
        "layer_types": list(config.layer_types),
        "sliding_window": config.sliding_window,
        "use_sliding_window": "sliding_attention" in config.layer_types,
    }


_NO_QK = {"use_qk_norm": False}
DECODERS = (
    Family(
        "llama",
        _heads("Llama"),
        lambda _: _LLAMA,
        {**_LIKE_LLAMA, "head_dim": "head_dim", "attention_bias": "attention_bias", "mlp_bias": "mlp_bias"},
        _NO_QK,
    ),
    Family(
        "mistral",
        _heads("Mistral"),
        lambda _: _LLAMA,
        {**_LIKE_LLAMA, "head_dim": "head_dim", "sliding_window": "sliding_window"},
        _NO_QK,
    ),
    Family(
        "mixtral",
        _heads("Mixtral"),
        lambda _: _EXPERTS,
        {
            **_LIKE_LLAMA,
            **{name: name for name in ("head_dim", "sliding_window", "num_local_experts", "num_experts_per_tok")},
            **{name: name for name in ("router_aux_loss_coef", "output_router_logits")},
        },
        _NO_QK,
    ),
    Family(
        "qwen2",
        _heads("Qwen2"),
        lambda _: _LLAMA,
        _LIKE_LLAMA,
        {**_NO_QK, "attention_bias": True, "attention_out_bias": False},
        read=_read_window,
        write=_write_window,
        ignored=("max_window_layers",),
    ),
    Family(
        "qwen3",
        _heads("Qwen3"),
        lambda _: _LLAMA + _QK_NORM,
        {**_LIKE_LLAMA, "head_dim": "head_dim", "attention_bias": "attention_bias"},
        {"use_qk_norm": True},
        read=_read_window,
        write=_write_window,
        ignored=("max_window_layers",),
    ),
    Family(
        "gpt2",
        _heads("GPT2", "LMHeadModel", "classifier"),
        lambda _: _GPT2,
        {
            "vocab_size": "vocab_size",
            "n_positions": "max_position_embeddings",
            "n_embd": "hidden_size",
            "n_layer": "num_hidden_layers",
            "n_head": "num_attention_heads",
            "n_inner": "intermediate_size",
            "activation_function": "hidden_act",
            "resid_pdrop": "hidden_dropout",
            "embd_pdrop": "hidden_dropout",
            "attn_pdrop": "attention_dropout",
            "layer_norm_epsilon": "norm_eps",
            **{name: name for name in ("initializer_range", "use_cache", "tie_word_embeddings")},
            **{name: name for name in ("pad_token_id", "bos_token_id", "eos_token_id")},
        },
        {
            **{"position_embedding_type": "learned", "norm_type": "layernorm", "mlp_type": "plain", "mlp_bias": True},
            **{"attention_bias": True, "use_qk_norm": False},
        },
        read=lambda config: {"intermediate_size": config.n_inner or 4 * config.n_embd},
        ignored=("reorder_and_upcast_attn", "summary_type", "summary_use_proj", "summary_activation",
                 "summary_proj_to_labels", "summary_first_dropout"),
    ),
)  # fmt: skip
