"""What other libraries read of a configuration, and write into it."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from tests.ecosystem.families import DECODERS, ENCODERS, MIXTURES, PAIRS, PART, VOCAB_SIZE, config, model, token_ids
from tuner.model import TunerDecoderConfig, TunerSeq2SeqConfig


@pytest.mark.parametrize("family", [*DECODERS, *ENCODERS, *PAIRS])
def test_what_is_dense_does_not_look_like_a_mixture(family):
    """TRL's trainers add a loss of the router's logits where there is an `output_router_logits`, None or not."""
    text = config(family).get_text_config()
    assert not hasattr(text, "output_router_logits") and not hasattr(text, "router_aux_loss_coef")
    assert getattr(text, "num_experts_per_tok", None) is None
    assert not getattr(text, "num_experts", None)


@pytest.mark.parametrize("family", MIXTURES)
def test_a_mixture_says_so(family, tmp_path):
    made = config(family)
    made.save_pretrained(tmp_path)
    for text in (made, AutoConfig.from_pretrained(tmp_path)):
        assert (text.num_experts, text.num_experts_per_tok, text.output_router_logits) == (4, 2, False)
        assert text.router_aux_loss_coef == 0.001


def test_an_older_dense_configuration_becomes_one_that_says_nothing_of_experts():
    old = TunerDecoderConfig(**PART, output_router_logits=False, router_aux_loss_coef=0.001, num_experts_per_tok=2)
    assert old.num_experts_per_tok is None and old == TunerDecoderConfig(**PART)


@pytest.mark.parametrize("family", MIXTURES)
def test_the_balance_comes_before_it_is_weighted(family):
    """Mixtral's convention, by which TRL multiplies `aux_loss` with its own coefficient."""
    made = model(family, "AutoModelForCausalLM", router_aux_loss_coef=0.5)
    ids = token_ids(2, 9)
    with torch.no_grad():
        output = made(input_ids=ids, labels=ids, output_router_logits=True)
        tokens = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(output.loss, tokens + 0.5 * output.aux_loss)


@pytest.mark.tool("transformers 5.23", "resize_token_embeddings")
@pytest.mark.parametrize(
    ("family", "auto"),
    [
        *((family, "AutoModelForCausalLM") for family in DECODERS),
        *((family, "AutoModelForMaskedLM") for family in ENCODERS),
        *((family, "AutoModelForSeq2SeqLM") for family in (*PAIRS, "t5")),
    ],
)
def test_new_tokens_then_a_checkpoint(family, auto, tmp_path):
    made = model(family, auto)
    made.resize_token_embeddings(VOCAB_SIZE + 7, mean_resizing=False)
    assert made.config.get_text_config().vocab_size == made.config.vocab_size == VOCAB_SIZE + 7
    made.save_pretrained(tmp_path)
    again = type(made).from_pretrained(tmp_path)
    inputs = {"input_ids": torch.full((1, 4), VOCAB_SIZE + 6)}
    if made.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with torch.no_grad():
        assert torch.equal(made(**inputs).logits, again(**inputs).logits)
    assert again(**inputs).logits.shape[-1] == VOCAB_SIZE + 7


@pytest.mark.parametrize("family", [*PAIRS, "t5"])
def test_a_pair_has_the_common_fields(family, tmp_path):
    made = config(family)
    made.save_pretrained(tmp_path)
    for each in (made, AutoConfig.from_pretrained(tmp_path)):
        assert (each.vocab_size, each.hidden_size) == (VOCAB_SIZE, 32)
        assert (each.num_hidden_layers, each.num_attention_heads) == (2, 4)


def test_the_common_fields_of_a_pair_are_its_parts():
    parts = {"encoder": {**PART, "num_hidden_layers": 1}, "decoder": {**PART, "num_key_value_heads": 2}}
    made = TunerSeq2SeqConfig(**parts)
    assert (made.num_hidden_layers, made.num_key_value_heads, made.head_dim) == (2, 2, 8)
    again = TunerSeq2SeqConfig.from_dict(made.to_dict())
    assert again.encoder.num_hidden_layers == 1 and again.to_dict() == made.to_dict()
    made.vocab_size = 99
    assert made.encoder.vocab_size == made.decoder.vocab_size == 99
    small = TunerSeq2SeqConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1)
    assert (small.encoder.vocab_size, small.encoder.hidden_size) == (50, 16)
    assert (small.decoder.num_hidden_layers, small.encoder.num_hidden_layers) == (1, 6)
    with pytest.raises(ValueError, match="num_hidden_layers is 5, and that of the decoder is 2"):
        TunerSeq2SeqConfig(**parts, num_hidden_layers=5)


def test_a_vocabulary_that_a_tool_sets_in_the_decoder_is_that_of_the_pair():
    made = config("tuner seq2seq")
    made.get_text_config().vocab_size = 10
    assert AutoModelForSeq2SeqLM.from_config(made).get_input_embeddings().weight.shape == (10, 32)
    assert made.encoder.vocab_size == 10


@pytest.mark.parametrize("family", PAIRS)
def test_the_flags_of_a_pair_have_an_effect(family, tmp_path):
    made = model(family, "AutoModelForSeq2SeqLM")
    made.set_attn_implementation("eager")
    inputs = {"input_ids": token_ids(1, 5), "decoder_input_ids": token_ids(1, 4)}
    plain = made(**inputs)
    assert plain.past_key_values is not None and plain.decoder_attentions is None
    made.config.use_cache, made.config.output_attentions, made.config.output_hidden_states = False, True, True
    made.save_pretrained(tmp_path)
    for each in (made, AutoModelForSeq2SeqLM.from_pretrained(tmp_path, attn_implementation="eager")):
        output = each(**inputs)
        assert output.past_key_values is None
        assert len(output.encoder_attentions) == len(output.decoder_attentions) == len(output.cross_attentions) == 2
        assert len(output.encoder_hidden_states) == len(output.decoder_hidden_states) == 3
    assert made(**inputs, use_cache=True, output_attentions=False).past_key_values is not None
    assert made(**inputs, output_attentions=False).decoder_attentions is None
