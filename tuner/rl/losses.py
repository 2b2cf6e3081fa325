"""The losses of policy and value by token, estimates of the divergence, and what keeps that near a target."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Beyond, a ratio says nothing but that the policies have parted: e^20 is still a number in float32.
LOG_RATIO = 20.0


def policy_loss(
    logprobs: torch.Tensor,
    old: torch.Tensor,
    advantages: torch.Tensor,
    low: float,
    high: float | None = None,
    dual: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`max(-A r, -A clamp(r, 1 - low, 1 + high))` with `r = exp(logprobs - old)` (Schulman et al. 2017,
    https://arxiv.org/abs/1707.06347, equation 7), all of one shape: tokens, or completions.

    Args:
        high: how far upwards, `low` where it is None (DAPO's clip-higher: Yu et al. 2025,
            https://arxiv.org/abs/2503.14476).
        dual: where the advantage is negative, the loss is at most `-A dual` (Ye et al. 2019,
            https://arxiv.org/abs/1912.09729).

    Returns:
        Losses, ratios, and where the clipped term was the larger.
    """
    ratio = (logprobs - old).clamp(-LOG_RATIO, LOG_RATIO).exp()
    plain, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - low, 1 + (low if high is None else high))
    losses = torch.maximum(plain, clipped)
    if dual is not None:
        losses = torch.where(advantages < 0, torch.minimum(losses, -advantages * dual), losses)
    return losses, ratio.detach(), clipped > plain


def value_loss(
    values: torch.Tensor, old: torch.Tensor, returns: torch.Tensor, cliprange: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`max((v - R)², (clamp(v, old ± cliprange) - R)²) / 2`, and where the clipped term was the larger."""
    plain = (values - returns) ** 2
    clipped = (torch.clamp(values, old - cliprange, old + cliprange) - returns) ** 2
    return torch.maximum(plain, clipped) / 2, clipped > plain


def divergence(logprobs: torch.Tensor, reference: torch.Tensor, estimator: str) -> torch.Tensor:
    """An estimate of KL(policy | reference) by token: `k1` is unbiased and may be negative, `k2` never is and varies
    less, but is biased where the two are far apart, `k3` has neither fault (Schulman 2020,
    http://joschu.net/blog/kl-approx.html)."""
    log_ratio = reference - logprobs
    if estimator == "k2":
        return log_ratio**2 / 2
    return -log_ratio if estimator == "k1" else torch.expm1(log_ratio) - log_ratio


@dataclass
class KLController:
    """The coefficient of the divergence: fixed, or with a `target` raised and lowered towards it (Ziegler et al. 2019,
    https://arxiv.org/abs/1909.08593, section 2.2).

    Args:
        coefficient: at the beginning.
        target: divergence of a completion in nats that is wanted; None for a fixed coefficient.
        horizon: episodes in which an error of 20 % or more changes the coefficient by 20 %.
    """

    coefficient: float
    target: float | None = None
    horizon: int = 10_000

    def update(self, divergence: float, episodes: int) -> None:
        """Learn that `episodes` completions had this mean divergence."""
        if self.target is not None:
            error = min(max(divergence / self.target - 1, -0.2), 0.2)
            self.coefficient *= 1 + error * episodes / self.horizon


@dataclass
class RunningScale:
    """Mean and variance of all scores so far, by which scores are made alike over a run (Engstrom et al. 2020,
    https://arxiv.org/abs/2005.12729, on what such details do)."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def update(self, scores: torch.Tensor) -> None:
        """Add scores, by Chan et al.'s formula for two sets."""
        count, mean = scores.numel(), float(scores.double().mean())
        total, shift = self.count + count, mean - self.mean
        self.squares += float(((scores.double() - mean) ** 2).sum()) + shift**2 * self.count * count / total
        self.mean += shift * count / total
        self.count = total

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores of mean 0 and variance 1, if they are like those before."""
        variance = self.squares / max(self.count - 1, 1)
        return (scores - self.mean) / (variance + 1e-8) ** 0.5
