"""Advantages, worked out by hand or by a formula of another form."""

import numpy as np
import pytest
import torch

from tests.rl.models import CLOSE
from tuner.rl.advantages import gae, group_normalised, leave_one_out, length_adaptive, overlong, token_rewards, whiten

LENGTHS = [4, 1, 3]
MASK = torch.arange(4) < torch.tensor(LENGTHS)[:, None]


def masked(seed: int) -> torch.Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)) * MASK


def test_the_score_is_the_last_token_s():
    kl, scores = masked(0), torch.tensor([1.0, 2.0, 3.0])
    found = token_rewards(scores, kl, MASK, 0.1)
    wanted = -0.1 * kl
    for row, length in enumerate(LENGTHS):
        wanted[row, length - 1] += scores[row]
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (1.0, 0.95), (0.9, 0.5), (0.9, 0.0)])
def test_gae_is_the_weighted_sum_of_errors(gamma, lam):
    rewards, values = masked(1), masked(2)
    advantages, returns = gae(rewards, values, MASK, gamma, lam)
    for row, length in enumerate(LENGTHS):
        r, v = rewards[row, :length].tolist(), [*values[row, :length].tolist(), 0.0]
        errors = [r[t] + gamma * v[t + 1] - v[t] for t in range(length)]
        for t in range(length):
            wanted = sum((gamma * lam) ** (s - t) * errors[s] for s in range(t, length))
            assert advantages[row, t].item() == pytest.approx(wanted, abs=1e-5)
            assert returns[row, t].item() == pytest.approx(wanted + v[t], abs=1e-5)
    assert not advantages[~MASK].any() and not returns[~MASK].any()


def test_what_lies_behind_a_completion_is_not_seen():
    rewards, values = masked(1), masked(2)
    clean = gae(rewards, values, MASK, 0.9, 0.9)
    dirty = gae(rewards + 5 * ~MASK, values - 7 * ~MASK, MASK, 0.9, 0.9)
    torch.testing.assert_close(clean[0], dirty[0])
    torch.testing.assert_close(clean[1], dirty[1])


def test_each_completion_may_have_its_own_lambda():
    rewards, values, lams = masked(1), masked(2), torch.tensor([0.9, 0.0, 0.5])
    found = gae(rewards, values, MASK, 0.9, lams)
    for row, lam in enumerate(lams.tolist()):
        alone = gae(rewards, values, MASK, 0.9, lam)
        torch.testing.assert_close([each[row] for each in found], [each[row] for each in alone])


def test_the_longer_the_further_back_a_score_is_felt():
    found = length_adaptive(torch.tensor([10, 20, 40, 1000]), 0.05)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.0, 0.5, 0.98]))


def test_what_comes_near_to_the_end_costs():
    found = overlong(torch.tensor([1, 6, 7, 8, 10]), 10, 4)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.0, 0.25, 0.5, 1.0]))


def test_leave_one_out():
    scores = torch.tensor([1.0, 2.0, 6.0, 0.0, 0.0, 3.0])
    wanted = [1 - 4, 2 - 3.5, 6 - 1.5, -1.5, -1.5, 3.0]
    torch.testing.assert_close(leave_one_out(scores, 3), torch.tensor(wanted))


def test_group_normalised():
    scores = torch.tensor([1.0, 2.0, 6.0, 4.0, 4.0, 4.0])
    deviation = np.std([1, 2, 6], ddof=1)
    wanted = [-2 / (deviation + 1e-4), -1 / (deviation + 1e-4), 3 / (deviation + 1e-4), 0, 0, 0]
    torch.testing.assert_close(group_normalised(scores, 3), torch.tensor(wanted, dtype=torch.float32))
    torch.testing.assert_close(group_normalised(scores, 3, scale=False), torch.tensor([-2.0, -1, 3, 0, 0, 0]))


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitened_over_two_processes_is_whitened_over_one(shift_mean):
    values = masked(3)
    whole = whiten(values, MASK, shift_mean)
    real = whole[MASK].double()
    assert real.var().item() == pytest.approx(1, abs=1e-5)
    assert real.mean().item() == pytest.approx(0 if shift_mean else values[MASK].mean().item(), abs=1e-6)
    # The other process's share of each sum, as its own turn computes it.
    halves = [(values[:1], MASK[:1]), (values[1:], MASK[1:])]
    first = [torch.stack([torch.tensor(float(m.sum())).double(), v[m].double().sum()]) for v, m in halves]
    mean = (first[0] + first[1])[1] / (first[0] + first[1])[0]
    second = [((v[m].double() - mean) ** 2).sum() for v, m in halves]
    for mine, (part, mask) in enumerate(halves):
        others = iter([first[1 - mine], second[1 - mine]])
        found = whiten(part, mask, shift_mean, add_up=lambda sums, others=others: sums + next(others))
        torch.testing.assert_close(found, whole[:1] if mine == 0 else whole[1:], **CLOSE)
