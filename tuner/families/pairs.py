"""Encoder-decoder families: T5 and BART."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from .family import SIDES, Family, Head
from .rules import table

_T5_BLOCK = """
{s}.block.{i}.layer.0.SelfAttention.q = {s}.layers.{i}.self_attn.q_proj
{s}.block.{i}.layer.0.SelfAttention.k = {s}.layers.{i}.self_attn.k_proj
{s}.block.{i}.layer.0.SelfAttention.v = {s}.layers.{i}.self_attn.v_proj
{s}.block.{i}.layer.0.SelfAttention.o = {s}.layers.{i}.self_attn.o_proj
{s}.block.{i}.layer.0.layer_norm = {s}.layers.{i}.self_attn_residual.norm
{s}.block.{i}.layer.{last}.DenseReluDense.wi_0 = {s}.layers.{i}.mlp.gate_proj
{s}.block.{i}.layer.{last}.DenseReluDense.{up} = {s}.layers.{i}.mlp.up_proj
{s}.block.{i}.layer.{last}.DenseReluDense.wo = {s}.layers.{i}.mlp.down_proj
{s}.block.{i}.layer.{last}.layer_norm = {s}.layers.{i}.mlp_residual.norm
{s}.block.0.layer.0.SelfAttention.relative_attention_bias = {s}.position_bias.bias
{s}.final_layer_norm = {s}.norm
"""
_T5_CROSS = """
decoder.block.{i}.layer.1.EncDecAttention.q = decoder.layers.{i}.cross_attn.q_proj
decoder.block.{i}.layer.1.EncDecAttention.k = decoder.layers.{i}.cross_attn.k_proj
decoder.block.{i}.layer.1.EncDecAttention.v = decoder.layers.{i}.cross_attn.v_proj
decoder.block.{i}.layer.1.EncDecAttention.o = decoder.layers.{i}.cross_attn.o_proj
decoder.block.{i}.layer.1.layer_norm = decoder.layers.{i}.cross_attn_residual.norm
"""
_BART_BLOCK = """
{s}.embed_positions = {s}.embed_positions
{s}.layernorm_embedding = {s}.embed_norm
{s}.layers.{i}.self_attn.q_proj = {s}.layers.{i}.self_attn.q_proj
{s}.layers.{i}.self_attn.k_proj = {s}.layers.{i}.self_attn.k_proj
{s}.layers.{i}.self_attn.v_proj = {s}.layers.{i}.self_attn.v_proj
{s}.layers.{i}.self_attn.out_proj = {s}.layers.{i}.self_attn.o_proj
{s}.layers.{i}.self_attn_layer_norm = {s}.layers.{i}.self_attn_residual.norm
{s}.layers.{i}.fc1 = {s}.layers.{i}.mlp.up_proj
{s}.layers.{i}.fc2 = {s}.layers.{i}.mlp.down_proj
{s}.layers.{i}.final_layer_norm = {s}.layers.{i}.mlp_residual.norm
"""
_BART_CROSS = """
decoder.layers.{i}.encoder_attn.q_proj = decoder.layers.{i}.cross_attn.q_proj
decoder.layers.{i}.encoder_attn.k_proj = decoder.layers.{i}.cross_attn.k_proj
decoder.layers.{i}.encoder_attn.v_proj = decoder.layers.{i}.cross_attn.v_proj
decoder.layers.{i}.encoder_attn.out_proj = decoder.layers.{i}.cross_attn.o_proj
decoder.layers.{i}.encoder_attn_layer_norm = decoder.layers.{i}.cross_attn_residual.norm
"""


def _both(block: str, cross: str, last: tuple[str, str] = ("", "")) -> str:
    sides = zip(SIDES, last, strict=True)
    blocks = [block.replace("{s}", side).replace("{last}", number).strip() for side, number in sides]
    return "\n".join(["shared = encoder.embed_tokens", *blocks, cross.strip()])


_IDS = {"pad_token_id": "pad_token_id", "bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id"}
_START = {"decoder_start_token_id": "decoder_start_token_id"}
_T5_FIELDS = {
    "vocab_size": "both.vocab_size",
    "d_model": "both.hidden_size",
    "d_kv": "both.head_dim",
    "d_ff": "both.intermediate_size",
    "num_layers": "encoder.num_hidden_layers",
    "num_decoder_layers": "decoder.num_hidden_layers",
    "num_heads": "both.num_attention_heads",
    "relative_attention_num_buckets": "both.relative_attention_num_buckets",
    "relative_attention_max_distance": "both.relative_attention_max_distance",
    "dropout_rate": "both.hidden_dropout",
    "layer_norm_epsilon": "both.norm_eps",
}
_T5_FIXED = {"both.position_embedding_type": "relative", "both.attention_scale": 1.0, "both.use_qk_norm": False}
_BART_FIELDS = {
    "vocab_size": "both.vocab_size",
    "d_model": "both.hidden_size",
    "max_position_embeddings": "both.max_position_embeddings",
    "activation_function": "both.hidden_act",
    "dropout": "both.hidden_dropout",
    "attention_dropout": "both.attention_dropout",
    "tie_word_embeddings": "tie_word_embeddings",
    **{f"{side}_layers": f"{side}.num_hidden_layers" for side in SIDES},
    **{f"{side}_attention_heads": f"{side}.num_attention_heads" for side in SIDES},
    **{f"{side}_ffn_dim": f"{side}.intermediate_size" for side in SIDES},
}
_BART_FIXED = {
    **{"both.position_embedding_type": "learned", "both.position_offset": 2, "both.embedding_norm": True},
    **{"both.norm_type": "layernorm", "both.norm_position": "post", "both.norm_eps": 1e-5, "both.mlp_type": "plain"},
    **{"both.attention_bias": True, "both.mlp_bias": True, "both.use_qk_norm": False, "decoder.lm_head_bias": True},
}


def _read_t5(config: PreTrainedConfig) -> dict[str, Any]:
    return {
        "both.attention_dropout": config.dropout_rate,
        "both.mlp_type": "gated" if config.is_gated_act else "plain",
        "both.hidden_act": config.dense_act_fn,
        "decoder.logit_scale": config.d_model**-0.5 if config.scale_decoder_outputs else 1.0,
        **_read_ids(config),
    }


def _read_ids(config: PreTrainedConfig) -> dict[str, Any]:
    return {f"both.{name}": getattr(config, name, None) for name in _IDS}


def _write_t5(config: PreTrainedConfig) -> dict[str, Any]:
    act, gated = config.encoder.hidden_act, config.encoder.mlp_type == "gated"
    return {
        "feed_forward_proj": f"gated-{'gelu' if act == 'gelu_new' else act}" if gated else act,
        "tie_word_embeddings": config.decoder.logit_scale != 1,  # which is all that it says there
    }


def _read_bart(config: PreTrainedConfig) -> dict[str, Any]:
    return {"both.embedding_scale": config.d_model**0.5 if config.scale_embedding else 1.0, **_read_ids(config)}


def _pair(name: str, rules: str) -> tuple[Head, ...]:
    head = table(rules) if name == "T5" else table(rules) + table("final_logits_bias = lm_head.bias", row=True)
    return (
        Head(f"{name}ForConditionalGeneration", "TunerSeq2SeqForConditionalGeneration", head),
        Head(f"{name}Model", "TunerSeq2SeqModel"),
    )


_T5_RULES = _both(_T5_BLOCK, _T5_CROSS, ("1", "2"))
_COPIES = tuple(f"{model}{side}.embed_tokens.weight" for model in ("", "model.") for side in SIDES)
PAIRS = (
    Family(
        "t5",
        _pair("T5", "lm_head = lm_head"),
        lambda config: table(_T5_RULES.replace("{up}", "wi_1" if config.encoder.mlp_type == "gated" else "wi")),
        {**_T5_FIELDS, **_IDS, **_START},
        _T5_FIXED,
        read=_read_t5,
        write=_write_t5,
        ignored=("initializer_factor", "classifier_dropout", "is_decoder"),
        dropped=_COPIES,
        kind="tuner_seq2seq",
    ),
    Family(
        "bart",
        _pair("Bart", "lm_head.weight = lm_head.weight"),
        lambda _: table(_both(_BART_BLOCK, _BART_CROSS)),
        {**_BART_FIELDS, **_IDS, **_START},
        _BART_FIXED,
        read=_read_bart,
        write=lambda config: {"scale_embedding": config.encoder.embedding_scale != 1},
        # Dropouts that ours has not, and what belongs to generation.
        ignored=("activation_dropout", "encoder_layerdrop", "decoder_layerdrop", "classifier_dropout", "init_std",
                 "forced_eos_token_id"),
        dropped=_COPIES,
        kind="tuner_seq2seq",
    ),
)  # fmt: skip
