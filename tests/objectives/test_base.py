"""A model with an objective in its class: copies and replicas have losses of their own."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.engine import use_chunked_loss
from tests.model.helpers import token_ids
from tuner.config.arguments import RecipeArguments
from tuner.data.draws import FILLER
from tuner.errors import ModelError
from tuner.model import TunerDecoderConfig, TunerDecoderForCausalLM
from tuner.objectives.base import use_objective
from tuner.objectives.causal_lm import SFT
from tuner.objectives.records import Layout


def decoder():
    torch.manual_seed(0)
    fields = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    return TunerDecoderForCausalLM(TunerDecoderConfig(vocab_size=50, num_key_value_heads=1, **fields))


def sft(chunked, **extra):
    args = RecipeArguments()
    args.extra = extra
    return SFT(args, SimpleNamespace(pad_token_id=0), Layout(chunked_loss=chunked))


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
    before, logits = model(input_ids=ids, labels=ids).loss, model(input_ids=ids).logits
    other = make(model)
    if make is copy.deepcopy:
        with torch.no_grad():
            for parameter in other.parameters():
                parameter *= 2
    assert type(other) is type(model) and not torch.allclose(other(input_ids=ids, labels=ids).loss, before)
    assert not torch.allclose(other(input_ids=ids).logits, logits), "without labels too"
    assert torch.equal(model(input_ids=ids, labels=ids).loss, before)


@pytest.mark.parametrize("chunked", [True, False])
def test_a_batch_that_only_fills_has_no_loss(chunked):
    """Nor has a model that keeps its own loss, a mean over none: with several processes a batch may be all fillers."""
    model, objective = decoder(), sft(chunked)
    use_objective(model, objective)
    row = {"input_ids": np.arange(1, 6), "labels": np.arange(1, 6), "rows": [0], "draw": FILLER}
    batch = objective([row, row])
    inputs = {name: batch[name] for name in ("input_ids", "labels")}
    assert model.train()(**inputs).loss.item() == 0
    sums = model.eval()(**inputs)
    assert sums["loss"].item() == sums["count"].item() == 0
    assert objective.metrics({name: value.detach().numpy() for name, value in sums.items()}) == {}


def test_a_model_that_keeps_its_own_loss_smooths_no_labels():
    sft(True, label_smoothing_factor=0.1).check_model(decoder())
    with pytest.raises(ModelError, match="--label_smoothing_factor is not for TunerDecoderForCausalLM, which keeps"):
        sft(False, label_smoothing_factor=0.1).check_model(decoder())
