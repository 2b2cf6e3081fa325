"""A model without what is only there for speed computes the same."""

from __future__ import annotations

import pytest
import torch

from tests.model.helpers import scramble, tiny_decoder, token_ids
from tests.model.test_shapes import encoder
from tuner.loading.models import use_plain_ops


def operations_of(output: torch.Tensor) -> set[str]:
    """Names of the steps of the backward pass."""
    found, left = set(), [output.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in found:
            found.add(node)
            left += [inner for inner, _ in node.next_functions]
    return {node.name() for node in found}


@pytest.mark.parametrize("make", [lambda: tiny_decoder("block_attention"), lambda: scramble(encoder())])
def test_logits_and_gradients_are_the_same(make):
    torch.manual_seed(0)
    model, ids = make(), token_ids(2, 9, vocab_size=61)
    results = []
    for plain in (False, True):
        if plain:
            use_plain_ops(model)
        logits = model(ids).logits
        gradients = torch.autograd.grad(logits.square().mean(), list(model.parameters()), retain_graph=True)
        results.append((logits, gradients))
        own = {name for name in operations_of(logits) if "Norm" in name or "SiluProduct" in name or "Rotation" in name}
        assert plain != {"_RMSNormBackward", "_SiluProductBackward", "_RotationBackward"}.issubset(own), own
        assert any("Attention" in name for name in operations_of(logits))
    (logits, gradients), (plain_logits, plain_gradients) = results
    torch.testing.assert_close(logits, plain_logits, rtol=1e-4, atol=1e-5)
    for one, other in zip(gradients, plain_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
    assert model.config._attn_implementation == "sdpa"
