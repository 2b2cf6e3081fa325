"""Encoder families: BERT, RoBERTa, ELECTRA."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from .family import Family, Head
from .rules import Rule, table

_FIELDS = {
    **{name: name for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")},
    **{name: name for name in ("intermediate_size", "hidden_act", "type_vocab_size", "initializer_range")},
    **{name: name for name in ("pad_token_id", "bos_token_id", "eos_token_id", "classifier_dropout")},
    **{"tie_word_embeddings": "tie_word_embeddings", "layer_norm_eps": "norm_eps"},
    **{"hidden_dropout_prob": "hidden_dropout", "attention_probs_dropout_prob": "attention_dropout"},
}
_FIXED = {
    **{"position_embedding_type": "learned", "norm_type": "layernorm", "norm_position": "post", "mlp_type": "plain"},
    **{"attention_bias": True, "mlp_bias": True, "use_qk_norm": False, "embedding_norm": True, "lm_head_bias": True},
}
_STACK = table("""
embeddings.word_embeddings = embed_tokens
embeddings.position_embeddings = embed_positions
embeddings.token_type_embeddings = embed_types
embeddings.LayerNorm = embed_norm
embeddings_project = embed_proj
encoder.layer.{i}.attention.self.query = layers.{i}.self_attn.q_proj
encoder.layer.{i}.attention.self.key = layers.{i}.self_attn.k_proj
encoder.layer.{i}.attention.self.value = layers.{i}.self_attn.v_proj
encoder.layer.{i}.attention.output.dense = layers.{i}.self_attn.o_proj
encoder.layer.{i}.attention.output.LayerNorm = layers.{i}.self_attn_residual.norm
encoder.layer.{i}.intermediate.dense = layers.{i}.mlp.up_proj
encoder.layer.{i}.output.dense = layers.{i}.mlp.down_proj
encoder.layer.{i}.output.LayerNorm = layers.{i}.mlp_residual.norm
pooler.dense = pooler.dense
""")
_BERT_LM = table("""
cls.predictions.transform.dense = prediction.dense
cls.predictions.transform.LayerNorm = prediction.norm
cls.predictions.decoder.weight = lm_head.weight
cls.predictions.bias = lm_head.bias
""")
_BERT_NSP = table("cls.seq_relationship = seq_relationship")
_ROBERTA_LM = table("""
lm_head.dense = prediction.dense
lm_head.layer_norm = prediction.norm
lm_head.decoder.weight = lm_head.weight
lm_head.bias = lm_head.bias
""")
_ELECTRA_LM = table("""
generator_predictions.dense = prediction.dense
generator_predictions.LayerNorm = prediction.norm
generator_lm_head = lm_head
""")
_ELECTRA_RTD = table("""
discriminator_predictions.dense = prediction.dense
discriminator_predictions.dense_prediction = score
""")
_POOLING_HEAD = table("""
classifier.dense = model.pooler.dense
classifier.out_proj = score
""")


def _tasks(name: str, sequence: tuple[Rule, ...]) -> tuple[Head, ...]:
    return (
        Head(f"{name}ForSequenceClassification", "TunerEncoderForSequenceClassification", sequence),
        Head(f"{name}ForTokenClassification", "TunerEncoderForTokenClassification", table("classifier = score")),
        Head(f"{name}ForQuestionAnswering", "TunerEncoderForQuestionAnswering", table("qa_outputs = qa_outputs")),
        Head(f"{name}Model", "TunerEncoderModel"),
    )


def _read_electra(config: PreTrainedConfig) -> dict[str, Any]:
    if config.hidden_act != "gelu":  # their discriminator's head takes it, their generator's does not
        raise ValueError(f"hidden_act {config.hidden_act!r} of an electra model has no counterpart: gelu has.")
    return {}


_IGNORED = ("summary_type", "summary_use_proj", "summary_activation", "summary_last_dropout")
ENCODERS = (
    Family(
        "bert",
        (
            Head("BertForPreTraining", "TunerEncoderForPreTraining", _BERT_LM + _BERT_NSP),
            Head("BertForMaskedLM", "TunerEncoderForMaskedLM", _BERT_LM),
            Head("BertForNextSentencePrediction", "TunerEncoderForNextSentencePrediction", _BERT_NSP),
            Head("BertForMultipleChoice", "TunerEncoderForMultipleChoice", table("classifier = score")),
            *_tasks("Bert", table("classifier = score")),
        ),
        lambda _: _STACK,
        {**_FIELDS, "max_position_embeddings": "max_position_embeddings"},
        _FIXED,
        read=lambda config: {"head_act": config.hidden_act},
        dropped=("cls.predictions.decoder.bias",),
        kind="tuner_encoder",
    ),
    Family(
        "roberta",
        (Head("RobertaForMaskedLM", "TunerEncoderForMaskedLM", _ROBERTA_LM), *_tasks("Roberta", _POOLING_HEAD)),
        lambda _: _STACK,
        _FIELDS,
        {**_FIXED, "skip_padding_positions": True},
        # Their table begins with the rows of the padding token's position and those before it.
        read=lambda config: {
            "position_offset": config.pad_token_id + 1,
            "max_position_embeddings": config.max_position_embeddings - config.pad_token_id - 1,
        },
        write=lambda config: {"max_position_embeddings": config.max_position_embeddings + config.position_offset},
        dropped=("lm_head.decoder.bias",),
        kind="tuner_encoder",
    ),
    Family(
        "electra",
        (
            Head("ElectraForPreTraining", "TunerEncoderForReplacedTokenDetection", _ELECTRA_RTD),
            Head("ElectraForMaskedLM", "TunerEncoderForMaskedLM", _ELECTRA_LM),
            *_tasks("Electra", _POOLING_HEAD),
        ),
        lambda _: _STACK,
        {**_FIELDS, "max_position_embeddings": "max_position_embeddings", "embedding_size": "embedding_size"},
        {**_FIXED, "pooler_act": "gelu"},
        read=_read_electra,
        ignored=_IGNORED,
        kind="tuner_encoder",
    ),
)  # fmt: skip
