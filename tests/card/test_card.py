"""The imitated card refuses what a card refuses, computes what the CPU computes, and counts who waits for it."""

from __future__ import annotations

import json

import pytest

from tests.processes import run_python

BEGIN = """
import torch
from torch.nn import functional as F
from tests.card.install import install
from tests.card.tensor import card
install()
torch.manual_seed(0)
here = torch.randn(4, 4)
there = here.cuda()
"""


def on_card(code: str) -> str:
    """The standard output of Python code that has `here` on the CPU and `there`, its copy, on the card."""
    done = run_python("-c", BEGIN + code)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize(
    "mixed",
    [
        "there + here",
        "there @ here",
        "torch.cat([there, here])",
        "torch.stack([there.sum(), torch.tensor(1.0)])",
        "F.embedding(torch.tensor([1]), there)",
        "torch.where(there > 0, there, here)",
        "here[there.long().clamp(0, 3)] = there",
        "there.numpy()",
        "torch.rand(2, device='cuda', generator=torch.Generator())",
        "here.exponential_(generator=torch.Generator('cuda'))",
    ],
)
def test_it_refuses_what_a_card_refuses(mixed):
    code = f"try:\n    {mixed}\nexcept (RuntimeError, TypeError) as error:\n    print('refused', error)"
    assert on_card(code).startswith("refused"), mixed


def test_it_takes_what_a_card_takes():
    code = """
there + torch.tensor(2.0); there[torch.tensor([0, 1])]; there.to("cpu") + here; torch.tensor([1], device="cuda")
assert there.device == torch.device("cuda", 0) and there.to("cuda") is there and not there.is_meta
assert torch.rand(2, device="cuda", generator=torch.Generator("cuda").manual_seed(1)).is_cuda
assert torch.empty(2, device="meta").is_meta
print(there.tolist() == here.tolist())
"""
    assert on_card(code) == "True\n"


def test_it_computes_gradients_steps_and_lower_precision():
    code = """
def weights(device, precise):
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 3)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(3):
        with torch.autocast(device, torch.bfloat16, enabled=not precise):
            hidden = model[0](here.to(device))
            loss = F.cross_entropy(model[2](model[1](hidden)), torch.tensor([0, 1, 2, 0], device=device))
        assert hidden.dtype == (torch.float32 if precise else torch.bfloat16) and loss.dtype == torch.float32
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach().cpu() for p in model.parameters()]
for precise in (True, False):
    print(all(map(torch.equal, weights("cpu", precise), weights("cuda", precise))))
"""
    assert on_card(code) == "True\nTrue\n"


def test_its_random_numbers_are_its_own():
    code = """
torch.manual_seed(3)
one = torch.rand(3)
torch.manual_seed(3)
torch.rand(3, device="cuda")
print(torch.equal(one, torch.rand(3)))
state = torch.cuda.get_rng_state()
first = F.dropout(torch.ones(64, device="cuda"), 0.5)
second = F.dropout(torch.ones(64, device="cuda"), 0.5)
torch.cuda.set_rng_state(state)
print(torch.equal(first, second), torch.equal(first, F.dropout(torch.ones(64, device="cuda"), 0.5)))
"""
    assert on_card(code) == "True\nFalse True\n"


def test_a_token_of_a_rollout_waits_twice():
    """Whether anything is padded, asked by transformers, and how many go on."""
    code = """
from transformers import LlamaConfig, LlamaForCausalLM
from tuner.rl.rollout import sample
shape = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=32)
model = LlamaForCausalLM(LlamaConfig(**shape)).cuda()
def waits(most):
    numbers = torch.rand(3, most, dtype=torch.float64)
    card.waits.clear()
    sample(model, [[1, 2], [3], [4, 5, 6]], numbers, ends=[99], temperature=1.0, batch_size=3)
    return sum(card.waits.values())
print((waits(12) - waits(4)) / 8)
"""
    assert on_card(code) == "2.0\n"


def test_it_counts_waits():
    code = """
import json
def waits(ask):
    card.waits.clear()
    ask()
    return sum(card.waits.values())
questions = [
    lambda: there.long().flatten().clamp(0).bincount(), lambda: here.to("cuda", non_blocking=True),
    lambda: there.sum().item(), lambda: there.cpu(), lambda: there[there > 0], lambda: there.new_tensor(2.0),
    lambda: here.cuda(), lambda: bool((there > 0).all()), lambda: here.pin_memory().to("cuda", non_blocking=True),
    lambda: there.new_full((), 2.0), lambda: there.index_select(0, torch.arange(2, device="cuda")),
]
print(json.dumps([waits(ask) for ask in questions]))
"""
    assert json.loads(on_card(code)) == [1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0]
