"""Float32 products by oneDNN: the numbers of `F.linear`, its gradients, and out of the way of everyone else."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from tuner.model import products
from tuner.model.products import TunerLinear, linear


@pytest.fixture(params=[True, False], ids=["onednn", "plain"])
def library(request, monkeypatch):
    """Both libraries, whatever the CPU; and a count of what went to oneDNN."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN")
    torch.manual_seed(0)
    calls = []
    onednn = products._onednn
    monkeypatch.setattr(products, "_is_faster", lambda: request.param)
    monkeypatch.setattr(products, "_onednn", lambda *tensors: calls.append(1) or onednn(*tensors))
    return request.param, calls


@pytest.mark.parametrize("shape", [(7, 24), (2, 5, 24), (1, 24), (0, 24), (2, 3, 4, 24), (24,)], ids=str)
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no bias"])
def test_numbers_and_gradients_are_those_of_torch(library, shape, has_bias):
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(size, generator=generator) for size in (shape, (16, 24), (16,))]
    weights = torch.randn((*shape[:-1], 16), generator=generator)
    results = []
    for function in (linear, F.linear):
        x, weight, bias = (t.double() if function is F.linear else t.clone() for t in tensors)
        leaves = [t.requires_grad_() for t in ((x, weight, bias) if has_bias else (x, weight))]
        out = function(*leaves)
        (out * weights.to(out.dtype)).sum().backward()
        results.append([out, *(t.grad for t in leaves)])
    for ours, exact in zip(*results, strict=True):
        assert ours.shape == exact.shape
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5)


def test_inputs_that_are_views_and_gradients_that_are_expanded(library):
    x = torch.randn(3, 10, 24)[:, ::2].transpose(0, 1).requires_grad_()
    layer = TunerLinear(24, 16)
    layer(x).sum().backward()  # the gradient of a sum is one number, expanded
    ours = layer.weight.grad.clone(), x.grad.clone()
    layer.weight.grad = x.grad = None
    nn.Linear.forward(layer, x).sum().backward()
    torch.testing.assert_close(ours, (layer.weight.grad, x.grad))


def test_a_gradient_can_be_differentiated_again(library):
    """As a penalty on the gradient does."""
    x, weight = torch.randn(5, 8, requires_grad=True), torch.randn(6, 8, requires_grad=True)
    seconds = []
    for function in (linear, F.linear):
        first = torch.autograd.grad(function(x, weight).square().sum(), (x, weight), create_graph=True)
        penalty = sum(grad.square().sum() for grad in first)
        seconds.append(torch.autograd.grad(penalty, (x, weight)))
    torch.testing.assert_close(*seconds, rtol=1e-4, atol=1e-3)


def test_only_what_learns_gets_a_gradient(library):
    x, layer = torch.randn(4, 8), TunerLinear(8, 3)
    layer.weight.requires_grad_(False)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad.tolist() == [4.0] * 3


def test_it_steps_aside(library):
    """For other precisions, autocast, compiled graphs, and whoever counts operations."""
    uses, calls = library
    layer, x = TunerLinear(8, 4), torch.randn(3, 8)
    layer(x)
    assert len(calls) == uses
    calls.clear()
    layer.double()(x.double())
    layer.bfloat16()(x.bfloat16())
    layer.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    with FlopCounterMode(display=False) as counter:
        layer(x)
    assert counter.get_total_flops() == 2 * 3 * 8 * 4
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    assert layer.to("meta")(x.to("meta")).is_meta
    assert len(calls) == uses  # the one beside the compiled call
