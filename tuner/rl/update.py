"""The update: several passes over an update's completions, in minibatches that are the same however many processes.

The loss is a mean over all tokens of a minibatch, of all processes; micro-batches are filled with completions of like
length up to a number of tokens, and only add to its gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tuner.rl.actor import ActorCritic, TokenScores
from tuner.rl.losses import LOG_RATIO, divergence, policy_loss, value_loss
from tuner.rl.rollout import Rollout

# What is added up over tokens, to be averaged in the log.
SUMS = ("policy", "value", "clipped", "value_clipped", "ratio", "ratio_squared", "kl_squared", "entropy")


@dataclass
class Experience:
    """What an update learns from, `(n, t)` each: of this process's completions.

    Attributes:
        numbers: the completions' places in the update's whole batch.
        reference: log-probabilities under the reference.
        advantages: of tokens, or with a `(n, 1)` of completions.
        states: of each sequence the frozen lower half's output, or None.
    """

    rollout: Rollout
    numbers: list[int]
    reference: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor
    states: list[torch.Tensor] | None = None


def minibatches(size: int, count: int, seed: int, update: int, epoch: int) -> list[np.ndarray]:
    """The places of a batch in a new order, in `count` parts: a function of (seed, update, epoch)."""
    order = np.random.default_rng([seed, update, epoch]).permutation(size)
    return np.array_split(order, count)


def micro_batches(rows: Sequence[int], lengths: Sequence[int], size: int, joined: bool) -> Iterator[list[int]]:
    """Rows of like length together, as many as have at most the tokens of `size` mean rows: with their padding, unless
    `joined`. One long row alone does not make every batch large."""
    budget = max(size * sum(lengths) // len(lengths), max(lengths))
    batch: list[int] = []
    tokens = 0
    for row in sorted(rows, key=lambda row: (-lengths[row], row)):
        longest = lengths[batch[0]] if batch else lengths[row]
        after = tokens + lengths[row] if joined else longest * (len(batch) + 1)
        if batch and after > budget:
            yield batch
            batch, after = [], lengths[row]
        batch.append(row)
        tokens = after
    if batch:
        yield batch


def losses(
    scores: TokenScores, experience: Experience, rows: Sequence[int], args: Any, tokens: int, sequences: int
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The part that some rows have in the loss of a minibatch, which has so many tokens and completions; and sums.

    With `--advantage rloo` the ratio is the completion's, and its loss a mean over completions (TRL's); else both are
    of tokens.
    """
    of_value, found = torch.zeros((), device=experience.reference.device), dict[str, torch.Tensor]()
    if scores.values is not None:
        of_value, found = value_part(scores.values, experience, rows, args, tokens)
    if scores.logprobs is None:
        return of_value, found
    old, drift = (experience.rollout.flat(x, rows) for x in (experience.rollout.logprobs, experience.rollout.drift))
    difference = scores.logprobs - old
    with torch.no_grad():
        found |= {"ratio": difference.exp().sum(), "ratio_squared": (2 * difference).exp().sum()}
        found["kl_squared"] = (difference**2).sum() / 2
        found["entropy"] = experience.rollout.flat(experience.rollout.entropies, rows).sum()
    clip = (args.cliprange, args.cliprange_high, args.dual_clip)
    if args.advantage == "rloo":
        lengths = experience.rollout.lengths[torch.as_tensor(rows, device=old.device)]
        owners = torch.repeat_interleave(torch.arange(len(rows), device=old.device), lengths)
        whole = torch.zeros(len(rows), device=old.device).index_add(0, owners, difference)
        advantages = experience.advantages[torch.as_tensor(rows, device=old.device), 0]
        each, _, clipped = policy_loss(whole, torch.zeros_like(whole), advantages, *clip)
        apart = torch.zeros_like(advantages).index_add(0, owners, drift)
        each = each * apart.exp().clamp(max=args.importance_sampling_cap)
        loss = each.sum() / sequences
        # For the log a completion counts as its tokens do.
        found |= {"policy": each.detach().sum() * tokens / sequences, "clipped": (clipped * lengths).sum()}
    else:
        advantages = experience.rollout.flat(experience.advantages, rows)
        each, _, clipped = policy_loss(scores.logprobs, old, advantages, *clip)
        each = each * drift.exp().clamp(max=args.importance_sampling_cap)
        loss = each.sum() / tokens
        found |= {"policy": each.detach().sum(), "clipped": clipped.sum()}
    if args.kl_in_loss:
        reference = experience.rollout.flat(experience.reference, rows)
        # Weighted by the ratio it has the divergence's own gradient, which it lacks also where the ratio is 1
        # (DeepSeek-V3.2 2025, https://arxiv.org/abs/2512.02556).
        weighted = difference.clamp(max=LOG_RATIO).exp() * divergence(scores.logprobs, reference, "k3")
        loss = loss + args.kl_coef * weighted.sum() / tokens
    if scores.entropies is not None:
        loss = loss - args.entropy_coef * scores.entropies.sum() / tokens
    return loss + of_value, found


def value_part(
    values: torch.Tensor, experience: Experience, rows: Sequence[int], args: Any, tokens: int
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The value's part in the loss, and sums."""
    old, returns = (experience.rollout.flat(x, rows) for x in (experience.rollout.values, experience.returns))
    each, clipped = value_loss(values, old, returns, args.cliprange_value)
    return args.vf_coef * each.sum() / tokens, {"value": each.detach().sum(), "value_clipped": clipped.sum()}


def learn(
    actor: ActorCritic,
    experience: Experience,
    args: Any,
    update: int,
    all_lengths: Sequence[int],
    step: Callable[[], None],
    add_up: Callable[[torch.Tensor], torch.Tensor],
    warming: bool = False,
) -> dict[str, float]:
    """Learn from an update's completions, and say means over its tokens.

    Args:
        all_lengths: tokens of every completion of the batch, of all processes.
        step: adds the gradients of all processes and has the optimizer go on.
        add_up: adds a tensor over all processes.
        warming: the value alone learns.
    """
    rollout, own = experience.rollout, {number: row for row, number in enumerate(experience.numbers)}
    whole, size = rollout.whole_lengths(), args.per_device_train_batch_size
    sums, seen = torch.zeros(len(SUMS), dtype=torch.float64, device=rollout.tokens.device), 0
    fresh = True  # the policy is still the one that sampled
    # What of (policy, value) a pass computes: activations of two models are not in memory at once.
    passes = [(False, True)] if warming else [(True, True)]
    if not warming and actor.value is not None and not actor.shares:
        passes = [(True, False), (False, True)]
    for epoch in range(args.num_ppo_epochs):
        for part in minibatches(len(all_lengths), args.num_mini_batches, args.seed, update, epoch):
            tokens = sum(all_lengths[number] for number in part)
            rows = [own[number] for number in part.tolist() if number in own]
            for batch in micro_batches(rows, whole, size, actor.layout.padding_free):
                states = None if experience.states is None else [experience.states[row] for row in batch]
                for policy, value in passes:
                    entropy = args.entropy_coef > 0 and policy
                    scores = actor(rollout, batch, states, entropy=entropy, policy=policy, value=value)
                    if policy and fresh:
                        # What it says now is what it said then, but for rounding: the first ratio is exactly 1.
                        chosen = torch.as_tensor(batch, device=rollout.tokens.device)
                        rollout.logprobs[chosen] = rollout.unflat(scores.logprobs.detach(), batch)
                    loss, found = losses(scores, experience, batch, args, tokens, len(part))
                    if loss.requires_grad:  # while a shared value warms up, an empty pass has none
                        loss.backward()
                    sums += torch.stack([torch.as_tensor(found.get(name, 0.0)).to(sums) for name in SUMS])
            step()
            fresh, seen = False, seen + tokens
    means = (add_up(sums) / seen).tolist()
    return dict(zip(SUMS, means, strict=True))
