"""A mixture of experts: every way to compute it is the same, and uneven routing costs."""

from __future__ import annotations

import pytest
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from tests.engine import use_chunked_loss
from tests.model.helpers import tiny_decoder, token_ids
from tests.model.test_shapes import decoder, encoder, pair
from tuner.model.experts import TunerExperts, load_balancing_loss

MOE = {"num_local_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.5}


@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm"])
def test_grouped_is_one_after_the_other(implementation):
    model, ids = tiny_decoder(**MOE), token_ids(2, 9)
    model.set_experts_implementation("eager")
    wanted = model(ids)
    model.set_experts_implementation(implementation)
    torch.testing.assert_close(model(ids).logits, wanted.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [decoder, encoder, pair])
def test_only_a_model_with_experts_takes_a_way_to_compute_them(shape):
    dense, sparse = shape(), shape(num_local_experts=2)
    assert not dense._can_set_experts_implementation() and sparse._can_set_experts_implementation()
    assert not type(sparse)._can_set_experts_implementation()
    with pytest.raises(ValueError, match="does not support setting experts implementation"):
        dense.set_experts_implementation("grouped_mm")
    sparse.set_experts_implementation("batched_mm")
    experts = [module for module in sparse.modules() if isinstance(module, TunerExperts)]
    assert experts and all(module.config._experts_implementation == "batched_mm" for module in experts)


@pytest.mark.parametrize("padded", [False, True])
def test_the_balancing_loss_is_mixtrals(padded):
    generator = torch.Generator().manual_seed(0)
    logits = tuple(torch.randn(12, 5, generator=generator) for _ in range(3))
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2]) if padded else None
    wanted = load_balancing_loss_func(logits, num_experts=5, top_k=2, attention_mask=mask)
    torch.testing.assert_close(load_balancing_loss(logits, 2, mask), wanted)


def test_even_routing_costs_least():
    even = torch.eye(4).repeat(3, 1) * 9
    uneven = torch.tensor([[9.0, 0, 0, 0]]).repeat(12, 1)
    assert float(load_balancing_loss((even,), 1)) == pytest.approx(1.0, abs=1e-3)
    assert float(load_balancing_loss((uneven,), 1)) > 3.9


def test_router_logits_on_request():
    model, ids = tiny_decoder(**MOE), token_ids(2, 9)
    assert model(ids).router_logits is None and model(ids).aux_loss is None
    output = model(ids, output_router_logits=True)
    assert [t.shape for t in output.router_logits] == [(18, 4)] * 2
    assert output.aux_loss.item() >= 2 * 0.99, "as in Mixtral before it is weighted: TRL's trainers weight it"
    assert len(tiny_decoder(**MOE, output_router_logits=True)(ids).router_logits) == 2


def test_the_loss_has_the_balance_in_it_chunked_or_not():
    model, ids = tiny_decoder(**MOE), token_ids(2, 9)
    labels = ids.masked_fill(torch.arange(9) < 3, -100)
    plain = model(ids, labels=labels)
    without = torch.nn.functional.cross_entropy(plain.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(plain.loss, without + 0.5 * plain.aux_loss)
    use_chunked_loss(model)
    torch.testing.assert_close(model(input_ids=ids, labels=labels).loss, plain.loss)


def test_a_share_of_a_larger_batch_has_its_share_of_the_balance():
    model, ids = tiny_decoder(**MOE), token_ids(2, 9)
    whole = model(ids, labels=ids)
    half = model(ids, labels=ids, num_items_in_batch=2 * ids.numel())
    balance = 0.5 * whole.aux_loss
    tokens = (whole.loss - balance) * 16 / 36  # 16 of the 18 labels have a token before them
    torch.testing.assert_close(half.loss, tokens + balance / 2)


def test_one_expert_is_a_gated_feed_forward():
    """With a single expert the router has no say."""
    from tuner.model.experts import TunerMixtureOfExperts
    from tuner.model.feedforward import TunerGatedMLP

    config = tiny_decoder(num_local_experts=1, num_experts_per_tok=1).config
    mixture, plain = TunerMixtureOfExperts(config), TunerGatedMLP(config)
    config._experts_implementation = "eager"
    with torch.no_grad():
        mixture.router.weight.normal_()
        mixture.experts.gate_up_proj[0] = torch.cat([plain.gate_proj.weight, plain.up_proj.weight])
        mixture.experts.down_proj[0] = plain.down_proj.weight
    hidden = torch.randn(2, 5, config.hidden_size)
    torch.testing.assert_close(mixture(hidden), plain(hidden))
