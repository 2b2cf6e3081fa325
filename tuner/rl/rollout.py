"""Completions that a policy samples, with what the update needs of each token, gathered as it is sampled.

A token is the first whose share of the distribution covers a uniform random number, and those numbers are a function of
(seed, episode, place): a completion does not depend on the others of its batch, nor on how many processes share the
work, but for rounding. Prompts of like length go together, and a completion that ends leaves the batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from tuner.data.collate import alike
from tuner.hardware import many_shapes

# Completions that have ended are computed on until they are this share of the batch: to leave copies the cache.
LEAVING = 0.25
# A batch reads all weights once a token, so that prompts of less like length share one than sequences that are scored.
PADDED = 2.0


@dataclass
class Rollout:
    """Prompts and completions: `n` of them, the longest of `t` tokens. Behind a completion everything is 0.

    Attributes:
        prompts: their tokens.
        tokens: the completions', `(n, t)`; an end token belongs to it.
        lengths: `(n,)`.
        ended: whether the last token is an end token, `(n,)`.
        logprobs: of the tokens, at the temperature that they were sampled with, `(n, t)` float32.
        entropies: of the distributions that they were sampled from, `(n, t)`.
        values: of the state before each token, `(n, t)`; zeros without a value head.
        drift: the policy's log-probability of each token less that of the program that sampled it, `(n, t)`: 0 where
            the policy samples.
    """

    prompts: list[list[int]]
    tokens: torch.Tensor
    lengths: torch.Tensor
    ended: torch.Tensor
    logprobs: torch.Tensor
    entropies: torch.Tensor
    values: torch.Tensor
    drift: torch.Tensor

    @property
    def mask(self) -> torch.Tensor:
        """Where there is a token, `(n, t)` bool."""
        return torch.arange(self.tokens.shape[1], device=self.tokens.device) < self.lengths[:, None]

    def completions(self) -> list[list[int]]:
        """The tokens of each, its end token included."""
        return [row[:length] for row, length in zip(self.tokens.tolist(), self.lengths.tolist(), strict=True)]

    def whole_lengths(self) -> list[int]:
        """Tokens of each prompt with its completion."""
        return [len(prompt) + n for prompt, n in zip(self.prompts, self.lengths.tolist(), strict=True)]

    def flat(self, values: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """`values` `(n, t)` or `(n, 1)` at the tokens of these rows, one row after the other: `(tokens,)`."""
        chosen = torch.as_tensor(rows, device=values.device)
        return values[chosen].expand(-1, self.tokens.shape[1])[self.mask[chosen]]

    def unflat(self, values: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """Of the tokens of these rows `(tokens,)`, `(rows, t)`."""
        mask = self.mask[torch.as_tensor(rows, device=values.device)]
        return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)

    def select(self, order: Sequence[int]) -> Rollout:
        """These rows, in this order."""
        rows = torch.as_tensor(order, device=self.tokens.device)
        kept = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "prompts"}
        return Rollout([self.prompts[row] for row in order], **kept)


def uniforms(seed: int, episodes: Sequence[int], count: int) -> torch.Tensor:
    """`count` random numbers from 0 to 1 of each episode, `(episodes, count)` float64."""
    return torch.from_numpy(np.stack([np.random.default_rng([seed, e]).random(count) for e in episodes]))


def choose(logits: torch.Tensor, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, their log-probabilities and the entropies of the distributions, `(n,)` each.

    Args:
        logits: `(n, vocabulary)` float32.
        numbers: `(n,)`, from 0 to 1: which place of the cumulated distribution.
    """
    log_sum = logits.logsumexp(dim=-1, keepdim=True)
    probabilities = (logits - log_sum).exp_()
    entropies = (log_sum - (probabilities * logits.clamp(min=torch.finfo(logits.dtype).min)).sum(-1, keepdim=True))[
        :, 0
    ]
    below = probabilities.cumsum(dim=-1, dtype=torch.float64)
    # Of a total that is not quite 1; never beyond the last token that has a probability at all.
    wanted = numbers.to(below)[:, None] * below[:, -1:]
    tokens = torch.searchsorted(below, wanted, right=True).clamp(max=logits.shape[-1] - 1)
    return tokens[:, 0], (logits.gather(1, tokens) - log_sum)[:, 0], entropies


@torch.no_grad()
@many_shapes()
def sample(
    model: Any,
    prompts: Sequence[Sequence[int]],
    numbers: torch.Tensor,
    *,
    ends: Sequence[int],
    temperature: float,
    batch_size: int,
    value: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Rollout:
    """Sample a completion for each prompt.

    Args:
        model: a causal model of transformers, bare or with adapters in it. Its generation configuration is not asked:
            what is sampled is the distribution that training sees.
        numbers: random numbers of each prompt, `(n, t)`: `t` is the most tokens of a completion.
        ends: tokens that end a completion.
        batch_size: prompts at once.
        value: `(n, hidden_size)` -> `(n,)` of what the model's head reads, for a value head on the policy's trunk.
    """
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    order, parts = list[int](), []
    was_training = bare.training
    bare.eval()
    lengths = [len(prompt) + numbers.shape[1] for prompt in prompts]
    for rows in alike(lengths, batch_size, bare.device, PADDED):
        order += rows
        parts.append(_sample(bare, [prompts[row] for row in rows], numbers[rows], ends, temperature, value))
    bare.train(was_training)
    time = max(int(part.lengths.max()) for part in parts)
    found = {f.name: [getattr(part, f.name) for part in parts] for f in fields(Rollout) if f.name != "prompts"}
    whole = {name: torch.cat([v[:, :time] if v.dim() == 2 else v for v in values]) for name, values in found.items()}
    joined = Rollout([prompt for part in parts for prompt in part.prompts], **whole)
    return joined.select(np.argsort(order).tolist())


def _sample(
    model: Any, prompts: list[Any], numbers: torch.Tensor, ends: Sequence[int], temperature: float, value: Any
) -> Rollout:
    device, (count, most) = model.device, numbers.shape
    time = max(map(len, prompts))
    ids = torch.zeros(count, time, dtype=torch.long)
    attended = torch.zeros(count, time, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, time - len(prompt) :], attended[row, time - len(prompt) :] = torch.as_tensor(prompt), 1
    ids, attended, numbers = ids.to(device), attended.to(device), numbers.to(device)
    tokens = torch.zeros(count, most, dtype=torch.long, device=device)
    logprobs, entropies, values = (torch.zeros(count, most, device=device) for _ in range(3))
    lengths, ended = torch.full((count,), most, device=device), torch.zeros(count, dtype=torch.bool, device=device)
    last, rows, going = torch.as_tensor(ends, device=device), torch.arange(count, device=device), ~ended
    positions = (attended.cumsum(dim=1) - 1).clamp(min=0)
    placed, cache = "position_ids" in inspect.signature(model.forward).parameters, None
    seen: list[torch.Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        for step in range(most):
            where = {"position_ids": positions} if placed else {}
            out = model(
                input_ids=ids, attention_mask=attended, past_key_values=cache, use_cache=True, logits_to_keep=1, **where
            )
            cache = out.past_key_values
            ids, chance, entropy = choose(out.logits[:, -1].float() / temperature, numbers[rows, step])
            # All rows are written, those that have ended with zeros: to pick the others, a card would be waited for.
            tokens[rows, step] = ids.where(going, 0)
            logprobs[rows, step], entropies[rows, step] = chance.where(going, 0), entropy.where(going, 0)
            if value is not None:
                values[rows, step] = value(seen[-1][:, -1]).float().where(going, 0)
            seen.clear()
            done = going & torch.isin(ids, last)
            lengths[rows], ended[rows] = lengths[rows].where(~done, step + 1), ended[rows] | done
            going = going & ~done
            left = int(going.sum())
            if not left:
                break
            attended = torch.cat([attended, attended.new_ones(len(rows), 1)], dim=1)
            positions = positions[:, -1:] + 1
            if left <= (1 - LEAVING) * len(rows) and hasattr(cache, "batch_select_indices"):
                kept = going.nonzero()[:, 0]
                cache.batch_select_indices(kept)
                ids, attended, positions, rows, going = (x[kept] for x in (ids, attended, positions, rows, going))
            ids = ids[:, None]
    finally:
        hook.remove()
    nothing = torch.zeros_like(values)
    return Rollout([list(p) for p in prompts], tokens, lengths, ended, logprobs, entropies, values, nothing)
