"""Eleven families: their weights in ours give their logits and their tokens; out again they are the same bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from tests.model.helpers import scramble
from tuner.families import FAMILIES
from tuner.model.convert import from_transformers, to_transformers

TOLERANCE = 1e-5
SIZE = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
IDS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
GROUPED = {**SIZE, **IDS, "num_key_value_heads": 2}
ENCODER = {**SIZE, **IDS, "max_position_embeddings": 40}
T5 = {"vocab_size": 99, "d_model": 32, "d_kv": 6, "d_ff": 48, "num_layers": 2, "num_heads": 4, "pad_token_id": 0}
BART = {
    **{"vocab_size": 99, "d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 48},
    **{"decoder_ffn_dim": 40, "encoder_attention_heads": 4, "decoder_attention_heads": 2},
    **{"max_position_embeddings": 40, "scale_embedding": True, "decoder_start_token_id": 2},
}
GPT2 = {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40}
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("llama", "LlamaForCausalLM", {**GROUPED, "attention_bias": True, "mlp_bias": True, "head_dim": 6}),
    ("llama", "LlamaForSequenceClassification", GROUPED),
    ("llama", "LlamaForTokenClassification", {**GROUPED, "num_labels": 5}),
    ("llama", "LlamaForQuestionAnswering", GROUPED),
    ("llama", "LlamaModel", GROUPED),
    ("mistral", "MistralForCausalLM", {**GROUPED, "sliding_window": 5}),
    ("mistral", "MistralForCausalLM", {**GROUPED, "sliding_window": None}),
    ("mixtral", "MixtralForCausalLM", {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    ("mixtral", "MixtralForCausalLM", {**GROUPED, "num_local_experts": 3, "num_experts_per_tok": 1}),
    ("qwen2", "Qwen2ForCausalLM", GROUPED),
    ("qwen2", "Qwen2ForCausalLM",
     {**GROUPED, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1, "tie_word_embeddings": True}),
    ("qwen3", "Qwen3ForCausalLM", {**GROUPED, "head_dim": 16, "attention_bias": True}),
    ("gpt2", "GPT2LMHeadModel", {**GPT2, **IDS}),
    ("gpt2", "GPT2LMHeadModel", {**GPT2, **IDS, "n_inner": 20, "activation_function": "relu"}),
    ("gpt2", "GPT2ForTokenClassification", {**GPT2, **IDS, "num_labels": 5}),
    ("gpt2", "GPT2Model", {**GPT2, **IDS}),
    ("bert", "BertModel", ENCODER),
    ("bert", "BertForMaskedLM", ENCODER),
    ("bert", "BertForMaskedLM", {**ENCODER, "hidden_act": "relu"}),
    ("bert", "BertForPreTraining", ENCODER),
    ("bert", "BertForSequenceClassification", {**ENCODER, "num_labels": 3}),
    ("bert", "BertForTokenClassification", {**ENCODER, "num_labels": 5}),
    ("bert", "BertForQuestionAnswering", ENCODER),
    ("bert", "BertForNextSentencePrediction", ENCODER),
    ("bert", "BertForMultipleChoice", ENCODER),
    ("roberta", "RobertaForMaskedLM", ENCODER),
    ("roberta", "RobertaForSequenceClassification", {**ENCODER, "num_labels": 3}),
    ("electra", "ElectraForPreTraining", {**ENCODER, "embedding_size": 16}),
    ("electra", "ElectraForMaskedLM", {**ENCODER, "embedding_size": 16}),
    ("electra", "ElectraForSequenceClassification", {**ENCODER, "embedding_size": 32}),
    ("t5", "T5ForConditionalGeneration", {**T5, "decoder_start_token_id": 0}),
    ("t5", "T5ForConditionalGeneration",
     {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0}),
    ("t5", "T5Model", {**T5, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20}),
    ("bart", "BartForConditionalGeneration", {**BART, **IDS}),
    ("bart", "BartForConditionalGeneration", {**BART, **IDS, "scale_embedding": False, "activation_function": "relu"}),
    ("bart", "BartModel", {**BART, **IDS}),
]  # fmt: skip
NAMES = [f"{kind}-{index}" for index, (_, kind, _) in enumerate(CASES)]


def build(name: str, kind: str, fields: dict[str, Any]) -> PreTrainedModel:
    torch.manual_seed(0)
    config = transformers.CONFIG_MAPPING[name](**fields)
    model = getattr(transformers, kind)._from_config(config, attn_implementation="sdpa")
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias.normal_()
    model = scramble(model)
    model.tie_weights()
    return model


def batch(model: PreTrainedModel, time: int = 14) -> dict[str, torch.Tensor]:
    """Three rows, two of them padded on the right."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(4, 99, (3, time), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, 9:] = mask[2, 5:] = 0
    rows = {"input_ids": ids.masked_fill(mask == 0, model.config.pad_token_id), "attention_mask": mask}
    if model.config.is_encoder_decoder:
        rows["decoder_input_ids"] = torch.randint(4, 99, (3, 7), generator=generator)
    elif getattr(model.config, "type_vocab_size", 0):
        rows["token_type_ids"] = torch.randint(0, 2, ids.shape, generator=generator)
    if "MultipleChoice" in type(model).__name__:
        rows = {name: torch.stack([t, t.roll(1, 0)], dim=1) for name, t in rows.items()}
    return rows


def outputs(model: PreTrainedModel, rows: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Everything predicted, where there is a token."""
    with torch.no_grad():
        found = model(**rows)
    real = rows["attention_mask"].bool()
    names = ("logits", "prediction_logits", "seq_relationship_logits", "start_logits", "end_logits", "pooler_output",
             "last_hidden_state")  # fmt: skip
    kept = {name: found[name] for name in names if found.get(name) is not None}
    return {name: t[real] if t.shape[:2] == real.shape else t for name, t in kept.items()}


@pytest.mark.parametrize(("name", "kind", "fields"), CASES, ids=NAMES)
def test_in_and_out(name, kind, fields):
    theirs = build(name, kind, fields)
    rows, before = batch(theirs), {key: value.clone() for key, value in theirs.state_dict().items()}
    wanted = outputs(theirs, rows)
    ours = from_transformers(theirs)
    found = outputs(ours, rows)
    assert found.keys() == wanted.keys() and wanted
    for key, tensor in wanted.items():
        assert float(tensor.abs().max()) > 0.1, "an output that says something"
        torch.testing.assert_close(found[key], tensor, rtol=0, atol=TOLERANCE)
    back = to_transformers(ours, name)
    assert type(back).__name__ == kind
    after = back.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    said = theirs.config.to_dict()
    for key, value in back.config.to_dict().items():
        if said.get(key) is not None and key not in ("architectures", "dtype", "max_window_layers"):
            assert value == said[key], key


@pytest.mark.parametrize(
    ("name", "kind", "fields"),
    [case for case in CASES if "CausalLM" in case[1] or "LMHead" in case[1] or "Generation" in case[1]],
)
def test_the_same_tokens_are_generated(name, kind, fields):
    theirs = build(name, kind, fields)
    rows = {key: rows for key, rows in batch(theirs).items() if key in ("input_ids", "attention_mask")}
    if not theirs.config.is_encoder_decoder:  # prompts are padded on the left
        rows = {key: tensor.flip(1) for key, tensor in rows.items()}
    ours = from_transformers(theirs)
    for options in ({}, {"num_beams": 3}):
        options = {"max_new_tokens": 10, "min_new_tokens": 10, "do_sample": False, **options}
        assert torch.equal(theirs.generate(**rows, **options), ours.generate(**rows, **options))


@pytest.mark.parametrize(
    ("name", "kind", "fields", "message"),
    [
        ("gpt2", "GPT2LMHeadModel", {**GPT2, "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse"),
        ("gpt2", "GPT2LMHeadModel", {**GPT2, "add_cross_attention": True}, "add_cross_attention True of a gpt2"),
        ("gpt2", "GPT2DoubleHeadsModel", GPT2, "Double.* has no counterpart here; there are GPT2LMHeadModel"),
        ("bert", "BertForMaskedLM", {**ENCODER, "is_decoder": True}, "is_decoder True of a bert model"),
        ("mixtral", "MixtralForCausalLM", {**GROUPED, "router_jitter_noise": 0.1}, "router_jitter_noise 0.1"),
        ("electra", "ElectraForMaskedLM", {**ENCODER, "hidden_act": "relu"}, "hidden_act 'relu' of an electra"),
        ("gptj", "GPTJForCausalLM", {"vocab_size": 9, "n_embd": 8, "n_layer": 1, "n_head": 1, "rotary_dim": 4}, "gptj"),
    ],
)  # fmt: skip
def test_what_has_no_counterpart_here_is_refused_by_name(name, kind, fields, message):
    theirs = getattr(transformers, kind)(transformers.CONFIG_MAPPING[name](**fields))
    with pytest.raises(ValueError, match=message):
        from_transformers(theirs)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("llama", {"use_qk_norm": True}, "use_qk_norm True of a tuner_decoder model has no counterpart in a llama"),
        ("llama", {"use_qk_norm": False, "norm_type": "layernorm"}, "norm_type 'layernorm'"),
        ("llama", {"use_qk_norm": False, "position_embedding_type": "alibi"}, "position_embedding_type 'alibi'"),
        ("qwen3", {"num_local_experts": 4}, "num_local_experts 4"),
        ("mistral", {"use_qk_norm": False, "logit_scale": 0.5}, "logit_scale 0.5"),
        ("bert", {}, "TunerDecoderForCausalLM has no counterpart in a bert model"),
        ("opt", {}, "opt model has no counterpart"),
    ],
)
def test_what_has_no_counterpart_there_is_refused_by_name(name, fields, message):
    from tests.model.helpers import tiny_decoder

    with pytest.raises(ValueError, match=message):
        to_transformers(tiny_decoder(**fields), name)


def test_all_eleven_are_there():
    assert set(FAMILIES) == {name for name, _, _ in CASES}
    assert len(FAMILIES) == 11
