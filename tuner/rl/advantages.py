"""How much better a token, or a completion, was than expected: pure functions of tensors.

Of `n` completions whose longest has `t` tokens, `mask` `(n, t)` is true on a completion's tokens, its end token
included: the first `lengths` of a row. What is masked is 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

# TRL's, which keeps a group of equal rewards from a division by zero.
GROUP_EPSILON = 1e-4


def token_rewards(scores: torch.Tensor, kl: torch.Tensor, mask: torch.Tensor, kl_coef: float) -> torch.Tensor:
    """Rewards of tokens `(n, t)`: `-kl_coef * kl` of each, and at a completion's last its score (Ziegler et al. 2019,
    https://arxiv.org/abs/1909.08593, equation 2).

    Args:
        scores: `(n,)`.
        kl: `(n, t)`, an estimate of the divergence from the reference by token.
    """
    last = mask.sum(dim=1, keepdim=True) - 1
    return (-kl_coef * kl * mask).scatter_add(1, last, scores.unsqueeze(1))


def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float | torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimation (Schulman et al. 2015, https://arxiv.org/abs/1506.02438, equation 16). Nothing
    comes after a completion's last token, whether it ended or was cut.

    Args:
        values: `(n, t)`, of the state before each token.
        lam: of all completions, or `(n,)` of each.

    Returns:
        Advantages and returns, `(n, t)`.
    """
    advantages = torch.zeros_like(values)
    carried, following = torch.zeros_like(values[:, 0]), torch.zeros_like(values[:, 0])
    for step in reversed(range(values.shape[1])):
        delta = rewards[:, step] + gamma * following - values[:, step]
        carried = (delta + gamma * lam * carried) * mask[:, step]
        following = values[:, step] * mask[:, step]
        advantages[:, step] = carried
    return advantages, (advantages + values) * mask


def length_adaptive(lengths: torch.Tensor, alpha: float) -> torch.Tensor:
    """Lambda of completions of so many tokens, `1 - 1 / (alpha * length)` and at least 0: the longer, the further back
    a score is felt (VAPO: Yue et al. 2025, https://arxiv.org/abs/2504.05118, length-adaptive GAE)."""
    return (1 - 1 / (alpha * lengths.float())).clamp(min=0)


def overlong(lengths: torch.Tensor, most: int, buffer: int) -> torch.Tensor:
    """What is taken off the scores of completions that come near to `most` tokens, `(n,)`: nothing up to
    `most - buffer`, 1 at `most`, evenly between (DAPO: Yu et al. 2025, https://arxiv.org/abs/2503.14476, soft
    overlong punishment)."""
    return ((lengths.float() - (most - buffer)) / buffer).clamp(0, 1)


def leave_one_out(scores: torch.Tensor, group: int) -> torch.Tensor:
    """Each score less the mean of the others of its group, `(n,)` (RLOO: Ahmadian et al. 2024,
    https://arxiv.org/abs/2402.14740, equation 8). Groups are `group` scores in a row, at least 2."""
    grouped = scores.view(-1, group)
    return ((grouped - grouped.mean(dim=1, keepdim=True)) * group / (group - 1)).flatten()


def group_normalised(scores: torch.Tensor, group: int, scale: bool = True) -> torch.Tensor:
    """Each score less its group's mean, over the group's standard deviation if `scale`, `(n,)` (GRPO: Shao et al. 2024,
    https://arxiv.org/abs/2402.03300, section 4.1.2; without scale Liu et al. 2025, https://arxiv.org/abs/2503.20783).
    """
    grouped = scores.view(-1, group)
    centred = grouped - grouped.mean(dim=1, keepdim=True)
    return (centred / (grouped.std(dim=1, keepdim=True) + GROUP_EPSILON) if scale else centred).flatten()


def whiten(
    values: torch.Tensor,
    mask: torch.Tensor,
    shift_mean: bool = True,
    add_up: Callable[[torch.Tensor], torch.Tensor] = lambda sums: sums,
) -> torch.Tensor:
    """Values of mean 0 (or their own, without `shift_mean`) and variance 1 over everything in `mask`.

    Args:
        add_up: adds a tensor over all processes, so that they share one mean and one variance.
    """
    real = values[mask].double()
    count, total = add_up(torch.stack([real.new_full((), len(real)), real.sum()]))
    mean = total / count
    variance = add_up(((real - mean) ** 2).sum()) / (count - 1).clamp(min=1)
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8) + (0 if shift_mean else mean)
    return (whitened * mask).to(values.dtype)
