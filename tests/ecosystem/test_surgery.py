"""What tools do to a model's modules and gradients: quantise, prune, replace, differentiate twice."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jvp, vmap

from tests.ecosystem.families import DECODERS, ENCODERS, MIXTURES, PAIRS, model, token_ids

EVERY = [
    *((family, "AutoModelForCausalLM") for family in (*DECODERS, *MIXTURES)),
    *((family, "AutoModelForMaskedLM") for family in ENCODERS),
    *((family, "AutoModelForSeq2SeqLM") for family in PAIRS),
]


def inputs(made: Any) -> dict[str, torch.Tensor]:
    ids = token_ids(3, 6)
    given = {"input_ids": ids, "labels": ids.clone()}
    if made.config.is_encoder_decoder:
        given["decoder_input_ids"] = token_ids(3, 6, seed=1)
    return given


@pytest.mark.tool("torch 2.13", "linear layers are exactly nn.Linear, as bitsandbytes asks")
@pytest.mark.parametrize(("family", "auto"), EVERY)
def test_linear_layers_are_torchs(family, auto):
    """bitsandbytes, and so `load_in_4bit`, replaces what is exactly `nn.Linear`."""
    linear = [module for module in model(family, auto).modules() if isinstance(module, nn.Linear)]
    assert len(linear) >= 8 and all(type(module) is nn.Linear for module in linear)


@pytest.mark.parametrize(("family", "auto"), EVERY)
def test_logits_are_changed_in_place(family, auto):
    """TRL's PPO divides them by the temperature."""
    made = model(family, auto).train()
    logits = made(**inputs(made)).logits
    logits.div_(2.0).logsumexp(-1).sum().backward()
    assert all(p.grad is not None for name, p in made.named_parameters() if "seq_relationship" not in name)


@pytest.mark.tool("transformers 5.23", "layers removed")
@pytest.mark.parametrize("family", DECODERS)
def test_layers_are_removed(family, tmp_path):
    made, ids = model(family, "AutoModelForCausalLM"), token_ids(2, 6)
    shallow = model(family, "AutoModelForCausalLM", num_hidden_layers=1)
    shallow.load_state_dict({name: t for name, t in made.state_dict().items() if ".layers.1." not in name})
    made.config.num_hidden_layers = 1  # as assisted generation leaves a model early
    torch.testing.assert_close(made(ids).logits, shallow(ids).logits)
    made.config.num_hidden_layers = 2
    made.model.layers = made.model.layers[:1]
    torch.testing.assert_close(made(ids).logits, shallow(ids).logits)
    made.config.num_hidden_layers = 1
    made.save_pretrained(tmp_path)
    torch.testing.assert_close(type(made).from_pretrained(tmp_path)(ids).logits, shallow(ids).logits)


@pytest.mark.tool("transformers 5.23", "layers repeated")
@pytest.mark.parametrize("family", DECODERS)
def test_layers_are_repeated(family):
    made, ids = model(family, "AutoModelForCausalLM"), token_ids(2, 6)
    layers = [*made.model.layers, *copy.deepcopy(made.model.layers)]
    for place, layer in enumerate(layers):
        layer.self_attn.layer_idx = place
    made.model.layers = nn.ModuleList(layers)
    made.config.num_hidden_layers = 4
    found = made(ids, output_hidden_states=True)
    assert len(found.past_key_values.layers) == 4 and len(found.hidden_states) == 5
    plain = made.generate(ids, max_new_tokens=4, do_sample=False, use_cache=False)
    assert torch.equal(made.generate(ids, max_new_tokens=4, do_sample=False), plain)


@pytest.mark.parametrize("family", DECODERS)
def test_the_first_layer_guesses_for_all(family):
    made, ids = model(family, "AutoModelForCausalLM"), token_ids(1, 6)
    options = {"max_new_tokens": 6, "do_sample": False}
    early = made.generate(ids, assistant_model=made, assistant_early_exit=1, **options)
    assert torch.equal(early, made.generate(ids, **options)) and made.config.num_hidden_layers == 2


@pytest.mark.tool("torch 2.13", "second derivatives")
@pytest.mark.parametrize(("family", "auto"), EVERY)
def test_gradients_have_gradients(family, auto):
    """A Hessian-vector product by reverse mode twice is what forward over reverse mode gives."""
    made = model(family, auto)
    made.set_attn_implementation("eager")
    made.set_experts_implementation("eager") if family in MIXTURES else None
    given = {**inputs(made), "use_cache": False}
    parameters = dict(made.named_parameters())
    generator = torch.Generator().manual_seed(0)
    direction = {name: torch.randn(p.shape, generator=generator) * 0.1 for name, p in parameters.items()}
    first = torch.autograd.grad(made(**given).loss, list(parameters.values()), create_graph=True)
    along = sum((g * d).sum() for g, d in zip(first, direction.values(), strict=True))
    twice = torch.autograd.grad(along, list(parameters.values()), allow_unused=True)
    fixed = {name: p.detach() for name, p in parameters.items()}

    def loss(of: dict[str, torch.Tensor]) -> torch.Tensor:
        return functional_call(made, of, (), given).loss

    found = jvp(grad(loss), (fixed,), (direction,))[1]
    for name, second in zip(parameters, twice, strict=True):
        expected = torch.zeros_like(fixed[name]) if second is None else second
        torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.tool("torch 2.13", "torch.func")
@pytest.mark.parametrize("family", DECODERS)
def test_gradients_of_each_row(family):
    made, ids = model(family, "AutoModelForCausalLM"), token_ids(3, 6)
    made.set_attn_implementation("eager")
    fixed = {name: p.detach() for name, p in made.named_parameters()}

    def loss(of: dict[str, torch.Tensor], row: torch.Tensor) -> torch.Tensor:
        given = {"input_ids": row[None], "labels": row[None], "use_cache": False}
        return functional_call(made, of, (), given).loss

    found = vmap(grad(loss), in_dims=(None, 0))(fixed, ids)
    for place, row in enumerate(ids):
        for name, expected in grad(loss)(fixed, row).items():
            torch.testing.assert_close(found[name][place], expected, rtol=1e-4, atol=1e-6)
