"""A model with an objective in its class: copies and replicas have losses of their own."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.engine import use_chunked_loss
from tests.model.helpers import token_ids
from tuner.model import TunerDecoderConfig, TunerDecoderForCausalLM


def decoder():
    torch.manual_seed(0)
    fields = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    return TunerDecoderForCausalLM(TunerDecoderConfig(vocab_size=50, num_key_value_heads=1, **fields))


def replica(model):
    """What `torch.nn.parallel.replicate` makes on another GPU, on this device: modules without parameters of their own,
    whose tensors are attributes."""
    modules = list(model.modules())
    copies = {module: module._replicate_for_data_parallel() for module in modules}
    for module, twin in copies.items():
        for name, child in module._modules.items():
            twin._modules[name] = None if child is None else copies[child]
            if child is not None:
                setattr(twin, name, copies[child])
        for name, parameter in module._parameters.items():
            if parameter is None:
                twin._parameters[name] = None
            else:
                setattr(twin, name, (parameter.detach() * 2).requires_grad_())
    return copies[model]


@pytest.mark.parametrize("make", [copy.deepcopy, replica])
def test_another_models_loss_is_of_its_own_weights(make):
    model = decoder()
    use_chunked_loss(model)
    ids = token_ids(2, 9, vocab_size=50)
    before = model(input_ids=ids, labels=ids).loss
    other = make(model)
    if make is copy.deepcopy:
        with torch.no_grad():
            for parameter in other.parameters():
                parameter *= 2
    assert type(other) is type(model) and not torch.allclose(other(input_ids=ids, labels=ids).loss, before)
    assert torch.equal(model(input_ids=ids, labels=ids).loss, before)
