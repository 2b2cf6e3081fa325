"""What training asks of the model: gradients for all, the loss it names, and the same of both however it is run."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.model.helpers import VOCAB_SIZE, greatest_difference, tiny_decoder, token_ids
from tuner.model import TunerDecoderForCausalLM

EVERYTHING = {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}


def batch(time: int = 12) -> dict[str, torch.Tensor]:
    """Two rows, the second padded on the right; a prompt of four tokens is not supervised."""
    ids, mask = token_ids(2, time), torch.ones(2, time, dtype=torch.long)
    mask[1, -3:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :4] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def loss_and_gradients(
    model: TunerDecoderForCausalLM, inputs: dict[str, torch.Tensor], seed: int = 0
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    torch.manual_seed(seed)
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("hidden_dropout", [0.0, 0.3])
def test_gradient_checkpointing_changes_nothing(hidden_dropout: float, use_reentrant: bool) -> None:
    """Dropout too: the recomputed layer must draw the same mask."""
    model = tiny_decoder(hidden_dropout=hidden_dropout, **EVERYTHING).train()
    loss, gradients = loss_and_gradients(model, batch())
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    assert model.is_gradient_checkpointing
    calls = []
    handle = model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    loss_again, gradients_again = loss_and_gradients(model, batch())
    handle.remove()
    assert len(calls) == 2, "the layer was not recomputed"
    assert torch.equal(loss, loss_again)
    for name, gradient in gradients.items():
        assert torch.equal(gradient, gradients_again[name]), name
    assert model(**batch()).past_key_values is None
    model.gradient_checkpointing_disable()
    assert torch.equal(loss_and_gradients(model, batch())[0], loss)


@pytest.mark.long
@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa", "block_attention"])
def test_compiled_is_eager(attn_implementation: str) -> None:
    """One graph without a break, for full and for padded rows, forward and backward."""
    model, inputs = tiny_decoder(attn_implementation), batch()
    compiled = torch.compile(model, fullgraph=True)
    expected = model(**inputs)
    actual = compiled(**inputs)
    assert greatest_difference(actual.logits, expected.logits) <= 1e-5
    torch.testing.assert_close(actual.loss, expected.loss, rtol=0, atol=1e-5)
    _, gradients = loss_and_gradients(model, inputs)
    model.zero_grad()
    actual.loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-5, msg=name)
    ids = inputs["input_ids"]
    assert greatest_difference(compiled(ids, use_cache=False).logits, model(ids).logits) <= 1e-5


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa", "block_attention"])
@pytest.mark.parametrize("overrides", [{}, EVERYTHING], ids=["plain", "everything"])
def test_every_parameter_learns(overrides: dict[str, Any], attn_implementation: str) -> None:
    model = tiny_decoder(attn_implementation, **overrides).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    _, gradients = loss_and_gradients(model, batch())
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert gradients[name].isfinite().all(), name
        assert gradients[name].abs().max() > 0, name
        assert not torch.equal(parameter, before[name]), name
    assert model(**batch()).loss < loss_and_gradients(tiny_decoder(attn_implementation, **overrides), batch())[0]


def test_the_untied_padding_row_does_not_learn() -> None:
    """What padding embeds to is nobody's business; tied, the same row is an output and does learn."""
    inputs = batch() | {"input_ids": batch()["input_ids"].masked_fill(batch()["attention_mask"] == 0, 0)}
    for tied in (False, True):
        model = tiny_decoder(pad_token_id=0, tie_word_embeddings=tied).train()
        _, gradients = loss_and_gradients(model, inputs)
        assert (gradients["model.embed_tokens.weight"][0].abs().max() > 0) == tied


@pytest.mark.parametrize("kind", ["hidden_dropout", "attention_dropout"])
@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa", "block_attention"])
def test_dropout_in_training_only(kind: str, attn_implementation: str) -> None:
    ids = token_ids(2, 12)
    model, without = tiny_decoder(attn_implementation, **{kind: 0.5}), tiny_decoder(attn_implementation)
    assert torch.equal(model(ids).logits, without(ids).logits)
    model.train()
    torch.manual_seed(0)
    first, second = model(ids).logits, model(ids).logits
    torch.manual_seed(0)
    again = model(ids).logits
    assert greatest_difference(first, second) > 1e-2
    assert torch.equal(first, again)
    assert torch.equal(model.eval()(ids).logits, without(ids).logits)


def test_hidden_dropout_is_at_three_places() -> None:
    """On the embeddings, and on what each of the two sublayers adds."""
    model = tiny_decoder(hidden_dropout=0.5, num_hidden_layers=1).train()
    zeroed = []
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.register_forward_hook(lambda _, inputs, out: zeroed.append((out == 0).float().mean().item()))
    model(token_ids(4, 32))
    assert len(zeroed) == 3
    assert zeroed == pytest.approx([0.5] * 3, abs=0.05)


@pytest.mark.parametrize("extra", [{}, {"num_items_in_batch": 37}, {"num_items_in_batch": torch.tensor(37)}])
def test_loss_is_shifted_cross_entropy(extra: dict[str, Any]) -> None:
    model, inputs = tiny_decoder(), batch()
    outputs = model(**inputs, **extra)
    predictions, targets = outputs.logits[:, :-1].reshape(-1, VOCAB_SIZE), inputs["labels"][:, 1:].reshape(-1)
    each = -predictions.log_softmax(-1)[torch.arange(len(targets)), targets.clamp(min=0)][targets != -100]
    assert len(each) == 13  # 8 of the first row and 5 of the second
    torch.testing.assert_close(outputs.loss, each.sum() / (37 if extra else 13), rtol=0, atol=1e-5)


def test_one_batch_of_two_rows_is_two_of_one() -> None:
    """With the number of supervised tokens given, gradients of pieces add up to the gradient of the whole."""
    model, whole = tiny_decoder().train(), batch()
    loss, gradients = loss_and_gradients(model, whole)
    model.zero_grad()
    pieces = [model(**{k: v[row : row + 1] for k, v in whole.items()}, num_items_in_batch=13).loss for row in (0, 1)]
    sum(pieces).backward()
    torch.testing.assert_close(sum(pieces), loss, rtol=0, atol=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6, msg=name)


def test_labels_can_be_ignored_altogether_with_a_count() -> None:
    """A row without supervision adds nothing, rather than 0 / 0, once the trainer gives the count."""
    inputs = batch() | {"labels": torch.full((2, 12), -100)}
    assert tiny_decoder()(**inputs, num_items_in_batch=5).loss == 0


def test_packed_loss_is_the_mean_over_its_rows() -> None:
    model, ids = tiny_decoder(), token_ids(1, 12)
    positions = torch.cat((torch.arange(5), torch.arange(7)))[None]
    labels = ids.clone()
    labels[0, 5] = -100  # what the end of one sequence would predict of the next
    alone = [model(part, labels=part, num_items_in_batch=10).loss for part in ids.split((5, 7), dim=1)]
    torch.testing.assert_close(model(ids, position_ids=positions, labels=labels).loss, sum(alone), rtol=0, atol=1e-5)


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa", "block_attention"])
def test_autocast(attn_implementation: str) -> None:
    """bfloat16 products over float32 weights: near the float32 loss, float32 gradients, and no warning."""
    model, inputs = tiny_decoder(attn_implementation).train(), batch()
    loss, gradients = loss_and_gradients(model, inputs)
    with warnings.catch_warnings(), torch.autocast("cpu", dtype=torch.bfloat16):
        warnings.simplefilter("error")
        rough = model(**inputs)
    rough.loss.backward()
    assert rough.loss.dtype == torch.float32
    torch.testing.assert_close(rough.loss, loss, rtol=0.02, atol=0)
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough_loss = model(**inputs).loss
    rough_loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == torch.float32
        assert F.cosine_similarity(parameter.grad.flatten(), gradients[name].flatten(), dim=0) > 0.98, name


def test_bfloat16_is_near_float32() -> None:
    model, inputs = tiny_decoder(), batch()
    expected = model(**inputs)
    actual = model.to(torch.bfloat16)(**inputs)
    assert actual.logits.dtype == torch.bfloat16
    torch.testing.assert_close(actual.loss, expected.loss, rtol=0.02, atol=0)


def test_input_gradients_for_frozen_models() -> None:
    """What adapters rely on: `enable_input_require_grads` reaches the embeddings."""
    model = tiny_decoder().requires_grad_(False).train()
    model.enable_input_require_grads()
    assert model(token_ids(1, 5)).logits.requires_grad
