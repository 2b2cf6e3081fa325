"""The chunked loss is the plain one: value, gradients, and what it refuses to hold."""

import pytest
import torch
from torch.nn import functional as F
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

from tuner.model import TunerDecoderConfig, TunerDecoderForCausalLM
from tuner.ops import chunked_loss as losses
from tuner.ops.chunked_loss import chunked_cross_entropy, use_chunked_loss


def tiny(**changes):
    torch.manual_seed(0)
    config = TunerDecoderConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, **changes
    )
    return TunerDecoderForCausalLM(config)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("tokens", [1, 64, 200])
def test_value_and_gradients_equal_the_plain_loss(monkeypatch, tokens, with_bias):
    monkeypatch.setattr(losses, "SLICE_ELEMENTS", 1)  # several slices
    torch.manual_seed(1)
    hidden, weight = torch.randn(tokens, 32, requires_grad=True), torch.randn(700, 32, requires_grad=True)
    bias = torch.randn(700, requires_grad=True) if with_bias else None
    targets = torch.randint(700, (tokens,))
    inputs = [t for t in (hidden, weight, bias) if t is not None]
    plain = F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="sum") / 7
    expected = torch.autograd.grad(plain, inputs)
    chunked = chunked_cross_entropy(hidden, weight, targets, bias) / 7
    torch.testing.assert_close(chunked, plain, rtol=1e-6, atol=1e-5)
    for found, wanted in zip(torch.autograd.grad(chunked, inputs), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_frozen_head_gets_no_gradient():
    hidden, weight = torch.randn(5, 8, requires_grad=True), torch.randn(11, 8)
    chunked_cross_entropy(hidden, weight, torch.arange(5)).backward()
    assert hidden.grad is not None and weight.grad is None


def test_no_label_is_a_loss_of_zero_that_still_has_gradients():
    model = tiny()
    use_chunked_loss(model)
    ids = torch.randint(97, (1, 6))
    loss = model(input_ids=ids, labels=torch.full_like(ids, -100)).loss
    loss.backward()
    assert float(loss) == 0 and all(p.grad is not None and not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_gives_the_same_loss_and_gradients(tied):
    model = tiny(tie_word_embeddings=tied)
    ids = torch.randint(97, (3, 20))
    labels = ids.masked_fill(torch.rand(3, 20) < 0.5, -100)
    plain = model(input_ids=ids, labels=labels, num_items_in_batch=13).loss
    plain.backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    assert use_chunked_loss(model)
    output = model(input_ids=ids, labels=labels, num_items_in_batch=13)
    output.loss.backward()
    assert output.logits is None
    torch.testing.assert_close(output.loss, plain, rtol=1e-6, atol=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-6, msg=name)
    assert model(input_ids=ids).logits.shape == (3, 20, 97), "without labels it is the model's own forward"


def test_another_familys_model_and_a_transformed_head():
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=61, n_embd=16, n_layer=1, n_head=2, n_positions=32)).eval()
    ids = torch.randint(61, (2, 9))
    plain = gpt2(input_ids=ids, labels=ids).loss
    assert use_chunked_loss(gpt2)
    torch.testing.assert_close(gpt2(input_ids=ids, labels=ids).loss, plain, rtol=1e-5, atol=1e-5)
    capped = Gemma2ForCausalLM(
        Gemma2Config(vocab_size=61, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                     num_key_value_heads=1, head_dim=8)
    )  # fmt: skip
    assert not use_chunked_loss(capped), "soft-capped logits keep their own loss"


def test_a_token_by_vocabulary_matrix_never_exists(monkeypatch):
    """The largest tensor made on the way is a slice of logits, not all of them."""
    monkeypatch.setattr(losses, "SLICE_ELEMENTS", 1000 * 320)
    seen = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal seen
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, torch.Tensor):
                    seen = max(seen, tensor.numel())
            return out

    hidden, weight = torch.randn(1000, 16, requires_grad=True), torch.randn(5000, 16, requires_grad=True)
    with Watch():
        chunked_cross_entropy(hidden, weight, torch.randint(5000, (1000,))).backward()
    assert 0 < seen <= 1000 * 320
