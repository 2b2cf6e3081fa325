"""Adapters and quantisation, of each of the three shapes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from tests.model.helpers import greatest_difference
from tests.model.test_scale import EVERY_SHAPE, Shape, built, logits, variants
from tests.model.test_shapes import batch, decoder, encoder, pair


def with_adapters(model: PreTrainedModel, shape: Shape) -> nn.Module:
    peft = pytest.importorskip("peft")
    task = {decoder: "CAUSAL_LM", encoder: None, pair: "SEQ_2_SEQ_LM"}[shape]
    return peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", r=4, task_type=task))


@EVERY_SHAPE
@variants("defaults", "experts", "biases", "relative positions", "untied")
def test_adapters_learn_alone(shape: Shape, fields: dict[str, Any], tmp_path: Path) -> None:
    from peft import PeftModel

    whole = built(shape, **fields)
    expected, rows = logits(whole, shape), batch(whole)
    linear = {name for name, module in whole.named_modules() if isinstance(module, nn.Linear)}
    model = with_adapters(copy.deepcopy(whole), shape).eval()
    adapted = {name.removeprefix("base_model.model.").partition(".lora_A")[0] for name in model.state_dict()}
    assert linear - adapted == {"lm_head"}
    assert torch.equal(logits(model, shape), expected)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2, weight_decay=0)
    model.train()
    loss = model(**rows).loss
    loss.backward()
    optimizer.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if "lora_B" in name}  # A learns from the second step on: B began at 0
    model.eval()
    trained = logits(model, shape)
    assert greatest_difference(trained, expected) > 1e-2
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(copy.deepcopy(whole), tmp_path).eval()
    assert torch.equal(logits(again, shape), trained)
    torch.testing.assert_close(logits(again.merge_and_unload(), shape), trained, rtol=1e-4, atol=1e-4)


@EVERY_SHAPE
def test_adapters_learn_over_checkpointed_layers(shape: Shape) -> None:
    """No weight below an adapter needs a gradient: the embeddings' output must be made to."""
    gradients = []
    for checkpointed in (False, True):
        model = with_adapters(built(shape), shape).train()
        if checkpointed:
            model.enable_input_require_grads()
            model.base_model.model.activation_checkpointing_enable()
        torch.manual_seed(0)
        model(**batch(model)).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if "lora_B" in name})
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0, name
        assert torch.equal(gradient, gradients[1][name]), name


@EVERY_SHAPE
@variants("defaults", "biases", "untied", "relu")
def test_quantised_to_eight_bits(shape: Shape, fields: dict[str, Any]) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model = built(shape, **fields, hidden_size=64, intermediate_size=96)
    expected = logits(model, shape)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert linear and not any(type(module.weight) is nn.Parameter for module in linear)
    actual = logits(model, shape)
    error = (actual - expected).norm() / expected.norm()
    assert 0 < error < 0.05
