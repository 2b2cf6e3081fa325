"""The probe's answers: known ones on a handful of families, and on all of them against a comparison at length."""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tests.model.helpers import SHAPE, tiny_decoder
from tests.train.zoo import FAMILIES, build, compared, probed
from tuner.model import TunerEncoderConfig, TunerEncoderForMaskedLM
from tuner.train.probe import probe

PRECISIONS = [None, torch.bfloat16]
# What each change is tried on: what people train, and what was once hard to tell. `make test-long` tries all.
SOME = {
    *("llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2", "gpt2", "gpt_neox"),
    *("opt", "bloom", "mamba", "falcon_h1", "biogpt", "phimoe", "prophetnet", "reformer", "seed_oss", "xlnet"),
}
EVERYTHING, NO_PACKING, OWN_LOSS = (True, True, True), (False, True, True), (True, True, False)


@pytest.mark.parametrize("autocast", PRECISIONS)
@pytest.mark.parametrize("attention", ["sdpa", "eager", "block_attention"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_local_experts": 4, "router_aux_loss_coef": 0.5},
        {"layer_types": ["sliding_attention"] * 2, "sliding_window": 3},
        {"lm_head_bias": True, "tie_word_embeddings": False},
        {"position_embedding_type": "learned", "max_position_embeddings": 9},
    ],
    ids=["plain", "experts", "window", "bias", "few positions"],
)
def test_our_decoder_can_all(fields, attention, autocast):
    assert probed(tiny_decoder(attention, **fields), autocast) == EVERYTHING


def test_our_decoder_with_a_scaled_head_keeps_its_loss():
    assert probed(tiny_decoder(logit_scale=0.5)) == OWN_LOSS


@pytest.mark.parametrize("autocast", PRECISIONS)
@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", EVERYTHING),
        ("gpt2", EVERYTHING),
        ("mixtral", EVERYTHING),
        ("gemma2", OWN_LOSS),
        ("opt", NO_PACKING),
        ("bloom", NO_PACKING),
        ("mamba", NO_PACKING),
        ("falcon_h1", (False, True, False)),
        ("prophetnet", (False, False, False)),
        ("xlnet", (False, False, False)),
    ],
)
def test_families(family, expected, autocast):
    """With weights as initialised, where a leak and a soft cap change next to nothing."""
    assert probed(build(family), autocast) == expected


def test_weights_in_bfloat16():
    assert probed(build("llama").bfloat16()) == EVERYTHING
    assert probed(build("bloom").bfloat16()) == NO_PACKING


def test_a_second_term_of_the_loss_is_not_lost():
    model = build("mixtral")
    model.config.output_router_logits = True
    assert probed(model) == OWN_LOSS


@pytest.mark.parametrize("build_model", [lambda: build("llama"), tiny_decoder], ids=["llama", "ours"])
def test_adapters(build_model):
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    assert probed(get_peft_model(build_model(), lora)) == EVERYTHING
    on_head = LoraConfig(r=2, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    assert probed(get_peft_model(build_model(), on_head)) == OWN_LOSS, "an adapter of the head starts as none"


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig])
def test_learned_prompts_pack_nothing(kind):
    model = get_peft_model(build("llama"), kind(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    found = probe(model)
    assert not found.packing and found.padding and found.chunked_loss, found


def test_tokens_that_see_later_ones_need_a_mask():
    config = TunerEncoderConfig(**SHAPE)
    found = probe(TunerEncoderForMaskedLM._from_config(config, attn_implementation="sdpa"))
    assert not found.padding and not found.packing and not found.chunked_loss


def one_row_only(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any
) -> Any:
    """Forgets the mask where there are two rows."""
    return sdpa_attention_forward(module, query, key, value, mask if len(query) == 1 else None, **kwargs)


@pytest.mark.parametrize("autocast", PRECISIONS)
def test_an_attention_that_fails_for_two_rows(autocast, monkeypatch):
    monkeypatch.setitem(AttentionInterface._global_mapping, "one_row_only", one_row_only)
    monkeypatch.setitem(AttentionMaskInterface._global_mapping, "one_row_only", sdpa_mask)
    found = probe(tiny_decoder("one_row_only"), autocast=autocast)
    assert not found.packing and found.padding and found.chunked_loss
    assert found.why["packing"].startswith("relative difference ")
    assert found.say() == [
        "TunerDecoderForCausalLM with one_row_only attention does not keep the sequences of one row apart "
        f"({found.why['packing']}): each sequence has a row of its own."
    ]


class Strange(PreTrainedModel):
    """Has next to nothing of what a model of transformers has."""

    config_class = PreTrainedConfig

    def __init__(self):
        super().__init__(PreTrainedConfig())
        self.only = nn.Linear(1, 1)

    def forward(self, **inputs: Any) -> Any:
        raise ValueError("Bad day.\nTrace follows.")


def test_a_strange_model_fails_and_raises_nothing():
    found = probe(Strange())
    assert not found.packing and not found.padding and not found.chunked_loss
    assert len(found.say()) == 3 and all("\n" not in line for line in found.say())


def test_a_model_without_position_ids():
    model = tiny_decoder()
    forward = model.forward
    model.forward = lambda input_ids, labels=None, **_: forward(input_ids=input_ids, labels=labels)
    assert not probe(model).packing
    model.forward = lambda input_ids, labels=None: forward(input_ids=input_ids, labels=labels)
    found = probe(model)
    assert not found.packing and found.padding and "position_ids" in found.say()[0]


def test_everything_is_as_before():
    model = tiny_decoder(tie_word_embeddings=False).train()
    model.model.layers[0].eval()
    model.model.register_buffer("calls", torch.zeros(1))
    model.model.register_forward_pre_hook(lambda module, _: module.calls.add_(torch.rand(1)) and None)
    buffers = {name: (b, b.clone()) for name, b in model.named_buffers()}
    modes = [module.training for module in model.modules()]
    torch.manual_seed(7), random.seed(7), np.random.seed(7)
    expected = torch.rand(1), random.random(), np.random.rand()
    torch.manual_seed(7), random.seed(7), np.random.seed(7)
    model.config.use_cache = True
    first = probe(model, autocast=torch.bfloat16)
    assert (torch.rand(1), random.random(), np.random.rand()) == expected
    assert [module.training for module in model.modules()] == modes and model.config.use_cache is True
    assert all(b is buffers[name][0] and torch.equal(b, buffers[name][1]) for name, b in model.named_buffers())
    assert "forward" not in model.__dict__ and not model.lm_head._forward_hooks
    assert all(p.grad is None for p in model.parameters())
    torch.manual_seed(8)
    assert probe(model, autocast=torch.bfloat16) == first, "the same in every process, whatever its random state"


def test_a_small_model_takes_less_than_a_second():
    model = tiny_decoder("block_attention")
    probe(model)
    start = time.process_time()
    probe(model)
    assert time.process_time() - start < 1


@pytest.mark.parametrize("vocab_size", [3, 4, 5])
def test_a_vocabulary_of_next_to_nothing(vocab_size):
    model = tiny_decoder(vocab_size=vocab_size, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    assert probed(model) == EVERYTHING


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=pytest.mark.slow if name in SOME else pytest.mark.long) for name in FAMILIES]
)
def test_every_causal_family_of_transformers(family):
    """The probe, with weights as initialised, in both precisions, against longer sequences through wide weights."""
    try:
        model = build(family)
    except Exception as error:
        pytest.skip(f"not built small: {type(error).__name__}: {' '.join(str(error).split())[:150]}")
    found = [probed(model, autocast) for autocast in PRECISIONS]
    assert found == [compared(model)] * 2
