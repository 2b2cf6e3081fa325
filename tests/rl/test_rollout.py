"""Completions: what is gathered while sampling is what a forward pass says of them, and what ends, ends."""

import copy

import numpy as np
import pytest
import torch

from tests.rl.models import policy
from tuner.rl.rollout import LEAVING, choose, sample, uniforms

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [14], [15, 16]] * 2
ENDS = list(range(40, 55))  # a twentieth of the vocabulary, so that completions end here and there


def completions(model, rows=range(8), **more):
    rows = list(rows)
    options = {"ends": ENDS, "temperature": 0.7, "batch_size": 3, **more}
    return sample(model, [PROMPTS[row] for row in rows], uniforms(0, rows, 20), **options)


def test_log_probabilities_are_those_of_a_forward_pass():
    model = policy(spread=0.1)
    found = completions(model)
    assert 0 < found.ended.sum() < 8 and len(set(found.lengths.tolist())) > 2
    for row, (prompt, said) in enumerate(zip(PROMPTS, found.completions(), strict=True)):
        logits = model(torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1].float() / 0.7
        chances = logits.log_softmax(-1)
        wanted = chances.gather(1, torch.tensor(said)[:, None])[:, 0]
        torch.testing.assert_close(found.logprobs[row, : len(said)], wanted, atol=1e-4, rtol=1e-4)
        entropies = -(chances.exp() * chances).sum(-1)
        torch.testing.assert_close(found.entropies[row, : len(said)], entropies, atol=1e-4, rtol=1e-4)


def test_a_completion_ends_with_its_first_end_token():
    found = completions(policy(spread=0.1))
    for said, ended in zip(found.completions(), found.ended.tolist(), strict=True):
        assert [token in ENDS for token in said[:-1]] == [False] * (len(said) - 1)
        assert (said[-1] in ENDS) == ended
        assert ended or len(said) == 20
    assert not found.tokens[~found.mask].any()


@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_completion_does_not_depend_on_its_batch(batch_size):
    model = policy(spread=0.1)
    whole, other = completions(model), completions(model, batch_size=batch_size)
    assert whole.completions() == other.completions()
    part = completions(model, rows=[6, 2])
    assert part.completions() == [whole.completions()[6], whole.completions()[2]]


def test_one_long_prompt_does_not_pad_the_others(monkeypatch):
    """They have a batch of their own, with the same completions."""
    model, long = policy(spread=0.1), [*range(5, 35)] * 2
    prompts, numbers = [*PROMPTS, long], uniforms(0, range(9), 20)
    options = {"ends": ENDS, "temperature": 0.7, "batch_size": 16}
    shapes = []
    hook = model.register_forward_pre_hook(
        lambda _, __, given: shapes.append(given["input_ids"].shape), with_kwargs=True
    )
    found = sample(model, prompts, numbers, **options)
    hook.remove()
    assert [shape for shape in shapes if shape[1] > 1] == [(1, 60), (8, 6)]
    monkeypatch.setattr("tuner.rl.rollout.PADDED", 100.0)
    assert sample(model, prompts, numbers, **options).completions() == found.completions()


def test_what_has_ended_leaves_the_batch():
    model, rows = policy(spread=0.1), []
    hook = model.register_forward_pre_hook(
        lambda _, __, given: rows.append(given["input_ids"].shape[0]), with_kwargs=True
    )
    found = completions(model, batch_size=8)
    hook.remove()
    lengths = found.lengths.tolist()
    going = [sum(length > step for length in lengths) for step in range(len(rows))]
    assert rows[0] == len(lengths) and rows[-1] < rows[0]
    assert rows == sorted(rows, reverse=True)
    # A quarter of a batch at most is computed on behind its end.
    assert all(there * (1 - LEAVING) <= left <= there for there, left in zip(rows[1:], going[1:], strict=True))


def test_the_model_s_own_settings_are_not_asked():
    model = policy(spread=0.1)
    before = completions(model).completions()
    model.generation_config.update(repetition_penalty=5.0, top_k=1, do_sample=False, max_length=4)
    kept = copy.deepcopy(model.generation_config.to_dict())
    assert completions(model).completions() == before
    assert model.generation_config.to_dict() == kept


def test_values_are_of_the_state_before_each_token():
    model = policy(spread=0.1)
    found = completions(model, value=lambda hidden: hidden[:, 0])
    said = found.completions()[1]
    hidden = model.base_model(torch.tensor([PROMPTS[1] + said]))[0][0, len(PROMPTS[1]) - 1 : -1, 0]
    torch.testing.assert_close(found.values[1, : len(said)], hidden, atol=1e-4, rtol=1e-4)


def test_tokens_are_drawn_from_the_distribution():
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(0))
    drawn, *_ = choose(logits.expand(20_000, -1), torch.from_numpy(np.random.default_rng(0).random(20_000)))
    expected = 20_000 * logits.softmax(-1)[0].double()
    statistic = ((torch.bincount(drawn, minlength=12) - expected) ** 2 / expected).sum()
    assert statistic < 31.3  # chi-squared with 11 degrees of freedom: one in a thousand is above


def test_what_cannot_be_is_never_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(4, -1)
    tokens, chances, entropies = choose(logits, torch.tensor([0.0, 0.4999, 0.5, 1 - 1e-12], dtype=torch.float64))
    assert tokens.tolist() == [1, 1, 3, 3]
    torch.testing.assert_close(chances.exp(), torch.full((4,), 0.5))
    torch.testing.assert_close(entropies, torch.full((4,), 0.6931472))
