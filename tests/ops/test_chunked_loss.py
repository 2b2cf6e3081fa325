"""The chunked loss is the plain one: value, gradients, and what it refuses to hold."""

import copy

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.modeling_outputs import CausalLMOutput
from transformers.trainer_pt_utils import LabelSmoother

from tests.engine import use_chunked_loss
from tuner.model import TunerDecoderConfig, TunerDecoderForCausalLM
from tuner.ops import chunked_loss as losses
from tuner.ops.chunked_loss import chunked_cross_entropy


def tiny(**changes):
    torch.manual_seed(0)
    config = TunerDecoderConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, **changes
    )
    return TunerDecoderForCausalLM(config)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("tokens", [1, 64, 200])
def test_value_and_gradients_equal_the_plain_loss(monkeypatch, tokens, with_bias):
    monkeypatch.setattr(losses, "slice_rows", lambda *_: 256)  # several slices
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


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])
def test_smoothed_labels_and_z_loss_are_their_formulas(monkeypatch, smoothing, z_loss):
    monkeypatch.setattr(losses, "slice_rows", lambda *_: 256)
    torch.manual_seed(1)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((50, 8), (700, 8), (700,))]
    targets = torch.randint(700, (50,))
    logits = F.linear(*inputs)
    log_sum = logits.logsumexp(dim=-1)
    plain = (log_sum - (1 - smoothing) * logits[range(50), targets] - smoothing * logits.mean(dim=-1)).sum()
    plain = (plain + z_loss * log_sum.square().sum()) / 7
    hidden, weight, bias = (tensor.detach().float().requires_grad_() for tensor in inputs)
    chunked = chunked_cross_entropy(hidden, weight, targets, bias, z_loss, smoothing) / 7
    torch.testing.assert_close(chunked.double(), plain, rtol=1e-6, atol=1e-5)
    wanted, found = torch.autograd.grad(plain, inputs), torch.autograd.grad(chunked, (hidden, weight, bias))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


def test_smoothed_labels_are_those_of_transformers():
    torch.manual_seed(2)
    hidden, weight = torch.randn(2, 9, 8), torch.randn(600, 8, requires_grad=True)
    labels = torch.randint(600, (2, 9)).masked_fill(torch.rand(2, 9) < 0.4, -100)
    theirs = LabelSmoother(0.1)(CausalLMOutput(logits=hidden @ weight.T), labels, shift_labels=True)
    states, targets = losses.supervised_positions(hidden, labels)
    ours = chunked_cross_entropy(states, weight, targets, label_smoothing=0.1) / len(targets)
    torch.testing.assert_close(ours, theirs)
    wanted, found = (torch.autograd.grad(loss, weight)[0] for loss in (theirs, ours))
    torch.testing.assert_close(found, wanted)


def test_an_accelerator_gets_few_operations_and_is_never_waited_for(monkeypatch):
    """At 4,096 tokens and a vocabulary of 49,152, forwards and backwards, in the slices of an accelerator."""
    of_device = losses.slice_rows
    monkeypatch.setattr(losses, "slice_rows", lambda tokens, device: of_device(tokens, "cuda"))
    names = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.extend([function.name()] * (function.namespace == "aten"))
            return function(*args, **(kwargs or {}))

    # Tensors without values refuse what would wait for one: `nonzero`, `item`, a mask as an index.
    with FakeTensorMode(), Watch():
        shapes = ((4096, 16), (49_152, 16), (49_152,))
        hidden, weight, bias = (torch.empty(shape, requires_grad=True) for shape in shapes)
        chunked_cross_entropy(hidden, weight, torch.randint(49_152, (4096,)), bias, 1e-4, 0.1).backward()
    assert 60 < len(names) <= 200, len(names)


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
    use_chunked_loss(model)
    output = model(input_ids=ids, labels=labels, num_items_in_batch=13)
    output.loss.backward()
    assert "logits" not in output
    torch.testing.assert_close(output.loss, plain, rtol=1e-6, atol=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-6, msg=name)
    assert model(input_ids=ids).logits.shape == (3, 20, 97), "without labels it is the model's own forward"


def test_another_familys_model_and_its_copy():
    none = {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=61, n_embd=16, n_layer=1, n_head=2, n_positions=32, **none))
    ids = torch.randint(61, (2, 9))
    plain = gpt2(input_ids=ids, labels=ids).loss
    use_chunked_loss(gpt2)
    torch.testing.assert_close(gpt2(input_ids=ids, labels=ids).loss, plain, rtol=1e-5, atol=1e-5)
    copied = copy.deepcopy(gpt2)
    copied.transformer.wte.weight.data.mul_(3)
    assert float(copied(input_ids=ids, labels=ids).loss) != float(plain), "a copy computes its own loss"
    torch.testing.assert_close(gpt2(input_ids=ids, labels=ids).loss, plain, rtol=1e-5, atol=1e-5)


def test_a_token_by_vocabulary_matrix_never_exists(monkeypatch):
    """The largest tensor made on the way is a slice of logits, not all of them."""
    monkeypatch.setattr(losses, "slice_rows", lambda *_: 320)
    seen = 0

    class Watch(TorchDispatchMode):
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


def test_each_tokens_loss_and_its_gradients():
    torch.manual_seed(4)
    hidden, weight = torch.randn(6, 8, requires_grad=True), torch.randn(300, 8, requires_grad=True)
    targets, by = torch.randint(300, (6,)), torch.randn(6)
    found = chunked_cross_entropy(hidden, weight, targets, reduction="none")
    wanted = F.cross_entropy(hidden @ weight.T, targets, reduction="none")
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    for one, other in zip(
        *(torch.autograd.grad((x * by).sum(), (hidden, weight)) for x in (found, wanted)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_second_derivative_is_refused():
    hidden, weight = torch.randn(4, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
    loss = chunked_cross_entropy(hidden, weight, torch.arange(4))
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, hidden, create_graph=True)
