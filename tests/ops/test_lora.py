"""A layer and its adapter as one operation: PEFT's numbers, and PEFT's own code where that is another thing."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from tuner.ops import lora
from tuner.ops.lora import use_fast_lora


def adapted(**options):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, attention_bias=True,
    )  # fmt: skip
    given = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "init_lora_weights": False, **options}
    return get_peft_model(LlamaForCausalLM(config), LoraConfig(task_type="CAUSAL_LM", **given))


def learnt(model, dtype=torch.float32):
    ids = torch.arange(24).view(2, 12)
    model.zero_grad()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def two_adapters(model):
    model.add_adapter("other", model.peft_config["default"])
    model.base_model.set_adapter(["default", "other"])


@pytest.fixture
def calls(monkeypatch):
    """How often the operation was used."""
    seen, apply = [], lora._Adapted.apply
    monkeypatch.setattr(lora._Adapted, "apply", lambda *args: seen.append(0) or apply(*args))
    return seen


@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True}, {"lora_dropout": 0.5}, {"modules_to_save": ["embed_tokens"]}], ids=str
)
def test_loss_and_gradients_are_pefts(options, calls):
    """Also in evaluation mode, where dropout is nothing."""
    model = adapted(**options).eval()
    fast = copy.deepcopy(model)
    use_fast_lora(fast)
    (loss, wanted), (other, found) = learnt(model), learnt(fast)
    torch.testing.assert_close(other, loss)
    assert wanted.keys() == found.keys() and len(wanted) >= 28
    for name, grad in wanted.items():
        torch.testing.assert_close(found[name], grad, msg=name)
    assert len(calls) == 14


def test_a_whole_layer_may_learn_too(calls):
    """Bias and weights that are trained beside the adapter get their gradients."""
    model = adapted(bias="all")
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    fast = copy.deepcopy(model)
    use_fast_lora(fast)
    (_, wanted), (_, found) = learnt(model), learnt(fast)
    for name, grad in wanted.items():
        torch.testing.assert_close(found[name], grad, msg=name)
    assert calls


@pytest.mark.parametrize(
    ("options", "change"),
    [
        ({"use_dora": True}, lambda model: None),
        ({"lora_dropout": 0.5}, lambda model: model.train()),
        ({"lora_bias": True}, lambda model: None),
        ({}, lambda model: model.merge_adapter()),
        ({}, lambda model: model.disable_adapter_layers()),
        ({}, lambda model: two_adapters(model)),
        ({}, lambda model: [layer.to(torch.float64) for name, layer in model.named_modules() if "lora_" in name]),
    ],
    ids=["dora", "dropout", "bias", "merged", "off", "two", "precision"],
)  # fmt: skip
def test_what_is_another_thing_is_left_to_peft(options, change, calls):
    model = adapted(**options).eval()
    use_fast_lora(model)
    plain = adapted(**options).eval()
    ids = torch.arange(12)[None]
    for each in (model, plain):
        change(each)
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.manual_seed(1)
        found = model(input_ids=ids).logits
        assert not calls
        torch.manual_seed(1)
        torch.testing.assert_close(found, plain(input_ids=ids).logits)


def test_a_second_derivative_is_refused():
    """What is kept is taken for constant there: it would be wrong without a word."""
    model = adapted()
    use_fast_lora(model)
    loss = model(input_ids=torch.arange(12)[None], labels=torch.arange(12)[None]).loss
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], create_graph=True)


def test_autocast_is_left_to_peft(calls):
    model = adapted()
    use_fast_lora(model)
    with torch.autocast("cpu", torch.bfloat16):
        model(input_ids=torch.arange(12)[None])
    assert not calls


def test_merged_and_copied(calls):
    """It is no part of what is saved or folded in."""
    model = adapted()
    use_fast_lora(model)
    ids = torch.arange(12)[None]
    wanted = model(input_ids=ids).logits
    assert calls
    torch.testing.assert_close(copy.deepcopy(model)(input_ids=ids).logits, wanted)
    torch.testing.assert_close(
        copy.deepcopy(model).merge_and_unload()(input_ids=ids).logits, wanted, atol=1e-5, rtol=1e-4
    )
