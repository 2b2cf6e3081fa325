"""Operations, parameters and bytes: the counts are those of the model itself, and of torch's own counter."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from tests.model.test_shapes import decoder, encoder, pair
from tuner.estimate.model import (
    Operations,
    cache_bytes,
    parameters_by_component,
    state_bytes,
    training_bytes,
)
from tuner.model import TunerEncoderConfig, TunerEncoderForMaskedLM
from tuner.objectives.electra import GeneratorAndDiscriminator

SHAPES = [
    (decoder, {}),
    (decoder, {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False, "lm_head_bias": True}),
    (decoder, {"num_local_experts": 4}),
    (encoder, {"position_embedding_type": "relative", "type_vocab_size": 2, "embedding_size": 16}),
    (encoder, {"attention_type": "linformer", "norm_position": "both"}),
    (pair, {"position_embedding_type": "learned", "embedding_norm": True}),
]
SMALL = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
THEIRS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, num_key_value_heads=2)),
    "bert": lambda: BertForMaskedLM(BertConfig(**SMALL)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=4)),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=4, num_key_value_heads=2)),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=61, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=3, num_heads=4)
    ),
    "bart": lambda: BartForConditionalGeneration(
        BartConfig(
            vocab_size=61, d_model=32, encoder_layers=2, decoder_layers=3, encoder_ffn_dim=48, decoder_ffn_dim=48,
            encoder_attention_heads=4, decoder_attention_heads=4,
        )
    ),
}  # fmt: skip


def counted_by_torch(model, tokens, labels):
    """Of a forward pass, with every pair of tokens computed, seen or not."""
    model.eval()
    model.set_attn_implementation("eager")
    inputs = {"input_ids": torch.ones(1, tokens, dtype=torch.long)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.ones(1, labels, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs, use_cache=False)
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "build",
    [
        *(pytest.param(build, id=name) for name, build in THEIRS.items() if name != "mixtral"),
        pytest.param(encoder, id="ours"),
        pytest.param(lambda: encoder(mlp_type="plain", num_key_value_heads=2), id="ours, grouped"),
        pytest.param(lambda: encoder(attention_type="linformer", linformer_k=8), id="ours, linformer"),
        pytest.param(lambda: decoder(sliding_window=None, use_qk_norm=False), id="ours, causal"),
        pytest.param(pair, id="ours, pair"),
    ],
)
def test_operations_are_those_that_torch_counts(build):
    model = build()
    tokens = 24
    labels = 16 if model.config.is_encoder_decoder else tokens
    found = Operations.of(model)
    causal = sum(layer.operations(tokens, labels, tokens**2) for layer in found.layers if layer.causal)
    # torch counts the half of a causal layer's pairs that nobody sees, too
    assert found.forward(tokens, labels, tokens**2) + causal == counted_by_torch(model, tokens, labels)
    assert bool(causal) == (not isinstance(model, BertForMaskedLM | TunerEncoderForMaskedLM))
    assert found.training(tokens, labels, 1) == 3 * found.forward(tokens, labels, 1)


def test_the_head_is_counted_where_there_is_a_label():
    found = Operations.of(decoder(tie_word_embeddings=True))
    assert found.head == 61 * 32
    assert found.products(10, 10) - found.products(10, 3) == 2 * 7 * found.head


def test_a_causal_token_sees_half_and_a_sliding_one_its_window():
    width = 32
    assert Operations.of(decoder()).attention(1, 1, 40) == 2 * 4 * 20 * width
    assert Operations.of(decoder(sliding_window=5)).attention(1, 1, 40) == 2 * 4 * 5 * width
    assert Operations.of(encoder()).attention(1, 1, 40) == 2 * 4 * 40 * width
    mixed = decoder(sliding_window=5, layer_types=["sliding_attention", "full_attention"])
    assert Operations.of(mixed).attention(1, 1, 40) == 4 * 25 * width
    # as a sum over sequences: two of 3 and one of 4 tokens
    assert Operations.of(encoder()).attention(10, 10, 9 + 9 + 16) == 2 * 4 * 34 * width


def test_linear_attention_costs_the_same_a_token_however_long():
    found = Operations.of(decoder(attention_type="performer", performer_features=16))
    assert found.attention(1, 1, 10) == found.attention(1, 1, 1000) == 2 * 8 * 16 * 32


def test_of_a_pair_the_decoder_reads_the_labels():
    found = Operations.of(pair())
    assert found.attention(20, 5, 400) == 2 * 4 * 32 * (400 + 25 / 2 + 100)
    assert found.products(20, 0) == 2 * 20 * found.weights and found.decoder > found.weights / 2


@pytest.mark.parametrize("build", [lambda n, k: decoder(num_local_experts=n, num_experts_per_tok=k),
                                   lambda n, k: MixtralForCausalLM(MixtralConfig(
                                       **SMALL, num_local_experts=n, num_experts_per_tok=k, num_key_value_heads=2))],
                         ids=["ours", "mixtral"])  # fmt: skip
def test_only_active_experts_cost(build):
    few, many, more = (Operations.of(build(n, k)).weights for n, k in ((2, 2), (8, 2), (8, 4)))
    router = 2 * 32  # layers, and a row of each expert
    assert many - few == 6 * router
    assert more - many == 2 * 2 * 3 * 32 * 48


def test_both_models_of_replaced_token_detection_count():
    config = TunerEncoderConfig(**{**SMALL, "num_attention_heads": 4})
    found = Operations.of(GeneratorAndDiscriminator(config))
    assert sorted({layer.width for layer in found.layers}) == [8, 32] and len(found.layers) == 4
    assert found.head == 61 * 32


@pytest.mark.parametrize(("shape", "fields"), SHAPES)
def test_every_parameter_is_counted_once_and_has_a_component(shape, fields):
    model = shape(**fields)
    sizes = parameters_by_component(model)
    assert sum(sizes.values()) == sum(p.numel() for p in model.parameters())
    assert "other" not in sizes
    layers = 2 if shape is not pair else 6  # of a pair: encoder, decoder, and its cross-attention
    assert sizes["attention q"] == layers * (32 * 32 + (32 if fields.get("attention_bias") else 0))
    assert ("head" in sizes) == (shape is encoder or not fields.get("tie_word_embeddings", True))
    assert ("router" in sizes) == ("num_local_experts" in fields)
    assert ("attention, other" in sizes) == ("attention_type" in fields)


@pytest.mark.parametrize("name", THEIRS)
def test_components_of_transformers_models(name):
    model = THEIRS[name]()
    sizes = parameters_by_component(model)
    assert sum(sizes.values()) == sum(p.numel() for p in model.parameters())
    assert "other" not in sizes and {"embedding", "attention o", "feed-forward", "norm"} <= sizes.keys()
    if name != "gpt2":  # its queries, keys and values are one matrix
        layers = {"t5": 8, "bart": 8}.get(name, 2)
        bias = 32 if name in ("bert", "bart") else 0
        assert sizes["attention q"] == sizes["attention o"] == layers * (32 * 32 + bias)


def test_memory_and_cache():
    model = decoder(num_key_value_heads=2)
    count = sum(p.numel() for p in model.parameters())
    assert sum(state_bytes(model, 4, mixed=False).values()) == 16 * count
    assert sum(state_bytes(model, 4, mixed=True).values()) == 18 * count
    assert sum(state_bytes(model, 2, mixed=False).values()) == 8 * count
    a_token = cache_bytes(Operations.of(model), 1)
    assert a_token == 2 * 2 * 2 * 8 * 2
    assert cache_bytes(Operations.of(decoder(num_key_value_heads=2, sliding_window=5)), 9) == 5 * a_token
    assert cache_bytes(Operations.of(encoder()), 9) == 0
    model.model.layers[0].requires_grad_(False)
    frozen = sum(p.numel() for p in model.model.layers[0].parameters())
    assert sum(state_bytes(model, 4, mixed=False).values()) == 16 * count - 12 * frozen


def test_memory_of_a_step_grows_with_what_it_holds():
    model = decoder()
    few, many = (training_bytes(model, tokens, 50, False, False) for tokens in (100, 200))
    assert many["activations"] == 2 * few["activations"] and many["optimizer"] == few["optimizer"]
    assert training_bytes(model, 200, 50, False, True)["activations"] < many["activations"]
    assert training_bytes(model, 200, 100, False, False)["logits (a slice)"] == 2 * many["logits (a slice)"]
