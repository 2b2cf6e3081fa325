"""Every component, in every shape that takes it, learns, is saved, and comes back as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import AutoModel, PreTrainedModel

from tuner.model import (
    TunerDecoderConfig,
    TunerDecoderForCausalLM,
    TunerEncoderConfig,
    TunerEncoderForMaskedLM,
    TunerSeq2SeqConfig,
    TunerSeq2SeqForConditionalGeneration,
)

SIZE: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 48, "initializer_range": 0.1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
ANY_SHAPE: dict[str, dict[str, Any]] = {
    "defaults": {},
    "linear rotary": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
    "dynamic rotary": {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}},
    "yarn": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4,
                                 "original_max_position_embeddings": 12}},
    "llama3": {"rope_parameters": {"rope_type": "llama3", "factor": 4.0, "rope_theta": 1e4, "low_freq_factor": 1.0,
                                   "high_freq_factor": 4.0, "original_max_position_embeddings": 12}},
    "learned positions": {"position_embedding_type": "learned", "position_offset": 2},
    "sinusoidal positions": {"position_embedding_type": "sinusoidal"},
    "alibi": {"position_embedding_type": "alibi"},
    "relative positions": {"position_embedding_type": "relative"},
    "no positions": {"position_embedding_type": "none"},
    "layer norm": {"norm_type": "layernorm"},
    "post norm": {"norm_position": "post"},
    "post layer norm": {"norm_position": "post", "norm_type": "layernorm", "embedding_norm": True},
    "norm on both sides": {"norm_position": "both"},
    "grouped query": {"num_key_value_heads": 2},
    "multi query": {"num_key_value_heads": 1},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "biases of queries, keys, values": {"attention_bias": True, "attention_out_bias": False},
    "no qk norm": {"use_qk_norm": False},
    "sliding window": {"sliding_window": 5},
    "one sliding layer": {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    "sliding alibi": {"sliding_window": 5, "position_embedding_type": "alibi",
                      "layer_types": ["full_attention", "sliding_attention"]},
    "performer": {"attention_type": "performer", "performer_features": 32},
    "performer, grouped": {"attention_type": "performer", "num_key_value_heads": 2},
    "relu": {"mlp_type": "plain", "hidden_act": "relu"},
    "gelu": {"mlp_type": "plain", "hidden_act": "gelu", "mlp_bias": True},
    "gelu_new": {"mlp_type": "plain", "hidden_act": "gelu_new"},
    "geglu": {"hidden_act": "gelu"},
    "experts": {"num_local_experts": 4},
    "one expert a token": {"num_local_experts": 3, "num_experts_per_tok": 1},
    "scaled embeddings": {"embedding_scale": 4.0, "logit_scale": 0.5},
    "untied": {"tie_word_embeddings": False, "lm_head_bias": True},
    "tied with bias": {"lm_head_bias": True},
    "wide heads": {"head_dim": 12},
}  # fmt: skip
ENCODERS_ONLY: dict[str, dict[str, Any]] = {
    "linformer": {"attention_type": "linformer", "linformer_k": 8},
    "linformer, grouped": {"attention_type": "linformer", "linformer_k": 8, "num_key_value_heads": 1},
    "token types": {"type_vocab_size": 2},
    "narrow embeddings": {"embedding_size": 16},
    "positions without padding": {
        "skip_padding_positions": True,
        "position_embedding_type": "learned",
        "position_offset": 1,
    },
}
# Frequencies and activations, which know nothing of the shape around them: in the decoder alone.
ANYWHERE_THE_SAME = {"linear rotary", "llama3", "relu", "gelu_new", "geglu"}
OTHER_SHAPES = {name: fields for name, fields in ANY_SHAPE.items() if name not in ANYWHERE_THE_SAME}


def decoder(**fields: Any) -> PreTrainedModel:
    return TunerDecoderForCausalLM(TunerDecoderConfig(**{**SIZE, **fields}))


def encoder(**fields: Any) -> PreTrainedModel:
    return TunerEncoderForMaskedLM(TunerEncoderConfig(**{**SIZE, **fields}))


def pair(**fields: Any) -> PreTrainedModel:
    ids = {name: SIZE[name] for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    tied = fields.get("tie_word_embeddings", True)
    config = TunerSeq2SeqConfig(
        encoder={**SIZE, **fields}, decoder={**SIZE, **fields}, tie_word_embeddings=tied, initializer_range=0.1, **ids
    )
    return TunerSeq2SeqForConditionalGeneration(config)


CASES = [
    *((f"decoder: {name}", decoder, fields) for name, fields in ANY_SHAPE.items()),
    *((f"encoder: {name}", encoder, fields) for name, fields in OTHER_SHAPES.items()),
    *((f"encoder: {name}", encoder, fields) for name, fields in ENCODERS_ONLY.items()),
    *((f"pair: {name}", pair, fields) for name, fields in OTHER_SHAPES.items()),
]  # fmt: skip


def batch(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Four rows, one padded on the right; what is to be predicted follows from what is seen."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 20, (4, 18), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    ids = ids.masked_fill(mask == 0, 0)
    rows = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    if getattr(model.config, "type_vocab_size", 0):
        rows["token_type_ids"] = (torch.arange(18) > 8).long().expand(4, -1)
    return rows


def said(config: dict[str, Any]) -> dict[str, Any]:
    """What a configuration says of the shape."""
    own = {name: value for name, value in config.items() if name not in ("_name_or_path", "architectures", "dtype")}
    return {name: said(value) if isinstance(value, dict) else value for name, value in own.items()}


@pytest.mark.parametrize(("shape", "fields"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_it_learns_and_comes_back(shape, fields, tmp_path):
    torch.manual_seed(0)
    model = shape(**fields).train()
    before = copy.deepcopy(dict(model.named_parameters()))
    rows = batch(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    losses = []
    for _ in range(6):
        loss = model(**rows).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    still = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert not still, "every parameter takes part"
    model.eval()
    model.save_pretrained(tmp_path)
    again, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert said(again.config.to_dict()) == said(model.config.to_dict())
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))
    with torch.no_grad():
        assert torch.equal(again(**rows).logits, model(**rows).logits)
    assert fields or type(AutoModel.from_pretrained(tmp_path)).__name__ == type(model.model).__name__


@pytest.mark.parametrize(
    ("shape", "fields"),
    [(shape, fields) for _, shape, fields in CASES if shape is not encoder],
    ids=[name for name, shape, _ in CASES if shape is not encoder],
)
def test_a_cache_changes_no_token(shape, fields):
    torch.manual_seed(0)
    model = shape(**fields).eval()
    rows = {name: t[:2] for name, t in batch(model).items() if name != "labels"}
    if shape is decoder:
        rows = {name: t.flip(1) for name, t in rows.items()}  # prompts are padded on the left
    found = []
    for use_cache in (False, True):
        torch.manual_seed(1)  # sampled, so that not one token follows itself for ever
        options = {"max_new_tokens": 14, "min_new_tokens": 14, "do_sample": True, "top_k": 0, "use_cache": use_cache}
        found.append(model.generate(**rows, **options))
    assert torch.equal(*found)
    assert len(found[0][:, -14:].unique()) > 5


@pytest.mark.parametrize(("shape", "fields"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_padding_says_nothing(shape, fields):
    """What stands where the mask is 0 changes no prediction elsewhere; what stands where it is 1 does."""
    torch.manual_seed(0)
    model = shape(**fields).eval()
    rows = {name: t for name, t in batch(model).items() if name != "labels"}
    if shape is pair:
        rows["decoder_input_ids"] = rows["input_ids"].flip(1)
    other = {**rows, "input_ids": rows["input_ids"].clone()}
    other["input_ids"][1, 12:] = 7 if not fields.get("skip_padding_positions") else 0
    real = slice(0, 12) if shape is not pair else slice(0, 18)
    with torch.no_grad():
        one, two = model(**rows).logits[1, real], model(**other).logits[1, real]
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
        other["input_ids"][1, 3] += 1
        assert (model(**other).logits[1, real] - one).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("shape", "fields", "message"),
    [
        (decoder, {"attention_type": "linformer"}, "for encoders, not for a causal decoder"),
        (encoder, {"attention_type": "linformer", "position_embedding_type": "alibi"}, "never has a matrix of scores"),
        (decoder, {"attention_type": "performer", "position_embedding_type": "relative"}, "is added to one"),
        (decoder, {"attention_type": "performer", "sliding_window": 4}, "that a sliding window could cut"),
        (decoder, {"position_embedding_type": "absolute"}, "'absolute' is none of rotary, learned"),
        (decoder, {"norm_type": "batchnorm"}, "'batchnorm' is none of rmsnorm, layernorm"),
        (decoder, {"norm_position": "middle"}, "'middle' is none of pre, post, both"),
        (decoder, {"mlp_type": "sparse"}, "'sparse' is none of gated, plain"),
        (decoder, {"num_local_experts": 2, "num_experts_per_tok": 3}, r"\(3\) cannot exceed num_local_experts \(2\)"),
        (decoder, {"num_local_experts": 2, "mlp_bias": True}, "experts have no biases"),
        (decoder, {"num_local_experts": 2, "mlp_type": "plain"}, "needs mlp_type gated"),
        (decoder, {"layer_types": ["sliding_attention"] * 2}, "needs a sliding_window of at least 1, not None"),
        (decoder, {"layer_types": ["full_attention"]}, "for each of the 2 layers"),
        (decoder, {"position_offset": 2}, r"position_offset \(2\) shifts a learned table; positions are rotary"),
        (decoder, {"position_embedding_type": "relative", "relative_attention_num_buckets": 2}, "must be at least 4"),
        (decoder, {"position_embedding_type": "sinusoidal", "hidden_size": 33, "head_dim": 8}, "must be even"),
        (encoder, {"position_embedding_type": "learned", "skip_padding_positions": True}, "a position_offset of 1"),
        (pair, {"embedding_size": 16}, "embedding_size"),
    ],
)
def test_an_impossible_combination_is_refused_with_the_reason(shape, fields, message):
    with pytest.raises(ValueError, match=message):
        shape(**fields)


def test_a_pair_shares_its_embeddings():
    with pytest.raises(ValueError, match="vocab_size cannot be 61 and 62"):
        TunerSeq2SeqConfig(encoder=SIZE, decoder={**SIZE, "vocab_size": 62})


@pytest.mark.parametrize("build", [decoder, encoder, pair])
def test_linear_layers_are_torchs_own(build):
    """Libraries that quantise or adapt a model ask for this very type, and pass over a subclass without a word."""
    fields = {"type_vocab_size": 2, "embedding_size": 16} if build is encoder else {}
    model = build(**fields)
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if type(module) is torch.nn.Linear}
    assert {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"} <= names
    assert all(type(module) is torch.nn.Linear for module in model.modules() if isinstance(module, torch.nn.Linear))


@pytest.mark.parametrize("build", [decoder, encoder, pair])
def test_outputs_may_be_changed_in_place(build):
    torch.manual_seed(0)
    model = build()
    inputs = {name: value for name, value in batch(model).items() if name != "labels"}
    if build is pair:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    plain, changed = ((model(**inputs).logits / 2).square().mean(), model(**inputs).logits.div_(2.0).square().mean())
    wanted, found = (torch.autograd.grad(loss, list(model.parameters())) for loss in (plain, changed))
    assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("build", [decoder, encoder])
def test_fewer_layers_may_be_assigned(build):
    torch.manual_seed(0)
    model, one = build(), build(num_hidden_layers=1)
    one.load_state_dict(model.state_dict(), strict=False)
    model.model.layers = model.model.layers[:1]
    ids = torch.randint(3, 61, (1, 7))
    torch.testing.assert_close(model(ids).logits, one(ids).logits)
