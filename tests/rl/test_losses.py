"""Losses, estimates of the divergence, and the two controllers."""

import pytest
import torch

from tuner.rl.losses import KLController, RunningScale, divergence, policy_loss, value_loss


def test_clipping_takes_the_worse_of_two():
    old = torch.zeros(5)
    new = torch.log(torch.tensor([1.0, 1.5, 0.5, 1.5, 0.5]))
    losses, ratio, clipped = policy_loss(new, old, torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0]), 0.2)
    torch.testing.assert_close(ratio, torch.tensor([1.0, 1.5, 0.5, 1.5, 0.5]))
    torch.testing.assert_close(losses, torch.tensor([-1.0, -1.2, -0.5, 1.5, 0.8]))
    assert clipped.tolist() == [False, True, False, False, True]


def test_upwards_it_may_go_further():
    losses, *_ = policy_loss(torch.log(torch.tensor([1.5])), torch.zeros(1), torch.ones(1), 0.2, high=0.28)
    torch.testing.assert_close(losses, torch.tensor([-1.28]))


def test_the_dual_clip_bounds_the_loss_of_a_bad_token():
    new = torch.log(torch.tensor([9.0, 9.0]))
    losses, *_ = policy_loss(new, torch.zeros(2), torch.tensor([-1.0, 1.0]), 0.2, dual=3.0)
    torch.testing.assert_close(losses, torch.tensor([3.0, -1.2]))


def test_a_ratio_stays_a_number():
    new = torch.tensor([500.0], requires_grad=True)
    losses, *_ = policy_loss(new, torch.zeros(1), torch.tensor([-1.0]), 0.2)
    assert losses.isfinite().all()


def test_the_value_may_not_leap():
    losses, clipped = value_loss(torch.tensor([1.0, 0.1]), torch.zeros(2), torch.tensor([1.0, 1.0]), 0.2)
    torch.testing.assert_close(losses, torch.tensor([0.64 / 2, 0.81 / 2]))
    assert clipped.tolist() == [True, False]


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_both_estimate_the_divergence(estimator):
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(6, generator=generator).log_softmax(-1) for _ in range(2))
    exact = (p.exp() * (p - q)).sum()
    drawn = torch.multinomial(p.exp(), 200_000, replacement=True, generator=generator)
    found = divergence(p[drawn], q[drawn], estimator)
    assert found.mean().item() == pytest.approx(exact.item(), abs=4 * found.std().item() / 200_000**0.5)
    assert estimator == "k1" or found.min() >= 0


def test_the_second_is_half_the_square():
    found = divergence(torch.tensor([0.5, -1.0]), torch.tensor([0.0, 1.0]), "k2")
    torch.testing.assert_close(found, torch.tensor([0.125, 2.0]))


def test_the_coefficient_is_led_to_the_target():
    fixed, led = KLController(0.1), KLController(0.1, target=6.0, horizon=100)
    for _ in range(3):
        fixed.update(60.0, 50)
        led.update(60.0, 50)
    assert fixed.coefficient == 0.1
    assert led.coefficient == pytest.approx(0.1 * 1.1**3)  # at most 20 % in a horizon, whatever the error
    led.update(5.7, 100)
    assert led.coefficient == pytest.approx(0.1 * 1.1**3 * 0.95)


def test_the_scale_of_parts_is_that_of_the_whole():
    scores = torch.randn(40, generator=torch.Generator().manual_seed(1)) * 3 + 5
    scale = RunningScale()
    for part in scores.split([1, 7, 32]):
        scale.update(part)
    assert scale.mean == pytest.approx(scores.double().mean().item())
    wanted = (scores - scores.mean()) / scores.std()
    torch.testing.assert_close(scale(scores), wanted, atol=1e-5, rtol=1e-5)
