"""One gradient for tied embeddings and head is the sum of the two."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tests.engine import use_chunked_loss
from tuner.ops.tied_embeddings import head_weight

NONE = {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}


def llama(**changes):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        **{"vocab_size": 83, "tie_word_embeddings": True, "pad_token_id": 3, **changes},
    )  # fmt: skip
    return LlamaForCausalLM(config)


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=83, n_embd=16, n_layer=1, n_head=2, n_positions=32, **NONE)).eval()


def batches(count):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(83, (2, 9), generator=generator) for _ in range(count)]


def gradients(model, count):
    for ids in batches(count):
        model(input_ids=ids, labels=ids.masked_fill(ids % 2 == 0, -100)).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("make", [llama, gpt2], ids=["with padding", "another family"])
def test_it_is_what_autograd_makes(make, count):
    plain, shared = make(), make()
    use_chunked_loss(shared)
    assert "forward" in shared.get_input_embeddings().__dict__
    wanted, found = gradients(plain, count), gradients(shared, count)
    assert wanted.keys() == found.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_the_gradient_of_the_embeddings_is_made_once():
    model = llama(vocab_size=5000)
    use_chunked_loss(model)
    made = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal made
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.untyped_storage().nbytes() >= 5000 * 16 * 4:
                made += "empty" in function.name() or "zeros" in function.name() or "dense_backward" in function.name()
            return out

    with Watch():
        model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    assert made == 1


def test_it_is_left_alone_where_it_does_not_fit():
    untied = llama(tie_word_embeddings=False)
    use_chunked_loss(untied)
    assert "forward" not in untied.get_input_embeddings().__dict__
    frozen = llama()
    use_chunked_loss(frozen)
    frozen.get_input_embeddings().weight.requires_grad_(False)
    (ids,) = batches(1)
    frozen(input_ids=ids, labels=ids).loss.backward()
    assert frozen.lm_head.weight.grad is None and frozen.model.norm.weight.grad is not None


def test_a_call_without_labels_learns_as_ever():
    plain, shared = llama(), llama()
    use_chunked_loss(shared)
    (ids,) = batches(1)
    for model in (plain, shared):
        model(input_ids=ids).logits.square().sum().backward()
    torch.testing.assert_close(shared.lm_head.weight.grad, plain.lm_head.weight.grad, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        shared(input_ids=ids)
    assert head_weight(shared) is not None
