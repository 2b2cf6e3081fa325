"""Policy and value as one module that says of completions what the update needs: log-probabilities, entropies, values.

The head runs on the tokens of completions alone, over a slice of the vocabulary at a time (`tuner.ops.chunked_loss`):
memory grows with the tokens of a micro-batch and not with their product with the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tuner.data.collate import IGNORED, collate_causal
from tuner.errors import ModelError
from tuner.objectives.records import Layout
from tuner.ops.block_attention import BLOCK_ATTENTION
from tuner.ops.chunked_loss import chunked_cross_entropy, supervised_positions
from tuner.rl.rollout import Rollout
from tuner.train.adapters import LowerHalf
from tuner.train.probe import probe

# Tokens whose logits are in memory at once where entropies are asked for.
ENTROPY_TOKENS = 256


@dataclass
class TokenScores:
    """Of the tokens of some completions, one after the other: `(tokens,)` float32 each; None for what was not asked."""

    logprobs: torch.Tensor | None = None
    entropies: torch.Tensor | None = None
    values: torch.Tensor | None = None


def layout_of(model: Any, autocast: torch.dtype | None, critic: Any = None) -> Layout:
    """How completions lie in a micro-batch, by a probe of the model and its attention. A critic of another family reads
    them padded and with a mask: it is not known to keep joined ones apart."""
    found = probe(model, autocast)
    skips = str(model.config._attn_implementation).startswith((BLOCK_ATTENTION, "flash"))
    alike = critic is None or critic.config.model_type == model.config.model_type
    joined, masks = found.joining and skips and alike, not (found.padding and alike)
    return Layout(padding_free=joined, chunked_loss=found.chunked_loss, masks=masks)


class ValueHead(nn.Linear):
    """A value of each state of the policy's trunk. It begins as nothing: the first advantages are the rewards."""

    def __init__(self, hidden_size: int):
        super().__init__(hidden_size, 1)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """`(..., hidden_size)` -> `(...,)`, in float32."""
        with torch.autocast(hidden.device.type, enabled=False):
            return super().forward(hidden.float()).squeeze(-1)


class ActorCritic(nn.Module):
    """A policy, and a value head on its trunk, or a value model of its own, or neither.

    Args:
        policy: a causal model, bare or with adapters (PEFT).
        value: a `ValueHead`, or a model with one output for a sequence, as TRL's `value_model`.
        temperature: what logits are divided by.
        layout: of micro-batches.
    """

    def __init__(self, policy: Any, value: Any, temperature: float, layout: Layout, pad_token_id: int):
        super().__init__()
        self.policy, self.value = policy, value
        self.temperature, self.layout, self.pad_token_id = temperature, layout, pad_token_id
        self.lower: LowerHalf | None = None  # of the policy's layers, where adapters learn above it alone

    @property
    def bare(self) -> Any:
        """The policy without a wrapper."""
        return self.policy.get_base_model() if hasattr(self.policy, "get_base_model") else self.policy

    @property
    def shares(self) -> bool:
        """Whether the value is a head on the policy's trunk."""
        return isinstance(self.value, ValueHead)

    def batch(self, rollout: Rollout, rows: Sequence[int]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The model's inputs of these sequences, and labels at the tokens of the completions."""
        completions = rollout.completions()
        features = [
            {
                "input_ids": [*rollout.prompts[row], *completions[row]],
                "labels": [IGNORED] * len(rollout.prompts[row]) + completions[row],
                "rows": [row],
            }
            for row in rows
        ]
        batch = collate_causal(features, self.pad_token_id, self.layout.padding_free)
        if self.layout.masks and not self.layout.padding_free:
            batch["attention_mask"] = (torch.arange(batch["labels"].shape[1]) < batch["tokens"][:, None]).long()
        device = self.bare.device
        inputs = {k: v.to(device) for k, v in batch.items() if k not in ("labels", "tokens", "rows")}
        return inputs, batch["labels"].to(device)

    def forward(
        self,
        rollout: Rollout,
        rows: Sequence[int],
        states: Sequence[torch.Tensor] | None = None,
        entropy: bool = False,
        policy: bool = True,
        value: bool = True,
    ) -> TokenScores:
        """Scores of the completions in `rows`, in this order.

        Args:
            states: of each sequence the output of the lower half of the layers, `(time, hidden_size)`.
            entropy: with entropies, and gradients of them.
            policy: with log-probabilities; else the policy has no gradients either.
            value: with values, where there is a value function.
        """
        inputs, labels = self.batch(rollout, rows)
        values, given = None, None if states is None else pad_states(states, labels)
        if value and self.value is not None and not self.shares:
            body = getattr(self.value, self.value.base_model_prefix)
            hidden, _ = supervised_positions(body(**inputs, use_cache=False)[0], labels)
            values = score_head(self.value)(hidden).squeeze(-1).float()
        if not policy and not self.shares:
            return TokenScores(values=values)
        with self._above(given), nullcontext() if policy else torch.no_grad():
            hidden, targets, logits = token_states(self.bare, inputs, labels, self.layout.chunked_loss)
        if value and self.shares:
            values = self.value(hidden)
        if not policy:
            return TokenScores(values=values)
        logprobs, entropies = self._token_logprobs(hidden, targets, logits, entropy)
        return TokenScores(logprobs, entropies, values)

    @torch.no_grad()
    def reference(
        self, rollout: Rollout, rows: Sequence[int], model: Any = None, temperature: float | None = None
    ) -> tuple[torch.Tensor, list[torch.Tensor] | None]:
        """Log-probabilities under the reference, and the lower half's output of each sequence where it is kept.

        Args:
            model: the reference; None for the policy's weights without its adapter.
            temperature: another than that of sampling.
        """
        inputs, labels = self.batch(rollout, rows)
        states, found = None, None
        if self.lower is not None:
            found = self.lower(inputs)
            lengths = [len(rollout.prompts[row]) + int(rollout.lengths[row]) for row in rows]
            joined = self.layout.padding_free
            states = list(found[0, : sum(lengths)].split(lengths)) if joined else cut(found, lengths)
        off = nullcontext() if model is not None else self.policy.disable_adapter()
        with off, self._above(found if model is None else None):
            scores = token_states(model or self.bare, inputs, labels, self.layout.chunked_loss)
        return self._token_logprobs(*scores, False, model, temperature)[0], states

    @contextmanager
    def _above(self, states: torch.Tensor | None) -> Iterator[None]:
        """Have the policy go on from what its lower half gave."""
        if self.lower is not None:
            self.lower.given = states
        try:
            yield
        finally:
            if self.lower is not None:
                self.lower.given = None

    def _token_logprobs(
        self, hidden: Any, targets: Any, logits: Any, entropy: bool, model: Any = None, temperature: float | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        head, heat = (model or self.bare).get_output_embeddings(), temperature or self.temperature
        if logits is None and not entropy:
            bias = None if head.bias is None else head.bias / heat
            losses = chunked_cross_entropy(hidden / heat, head.weight, targets, bias, reduction="none")
            return -losses, None
        parts = []
        for start in range(0, len(targets), ENTROPY_TOKENS):
            piece = slice(start, start + ENTROPY_TOKENS)
            if logits is None:
                part = checkpoint(_scored, head, hidden[piece], targets[piece], heat, use_reentrant=False)
            else:
                part = _scored(None, logits[piece], targets[piece], heat)
            parts.append(part)
        logprobs, entropies = (torch.cat(part) for part in zip(*parts, strict=True))
        return logprobs, entropies


def token_states(
    model: Any, inputs: dict[str, torch.Tensor], labels: torch.Tensor, chunked: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """What the head reads where a label is predicted `(tokens, hidden_size)`, the labels, and, of a model that does
    more to its logits than its head, those `(tokens, vocabulary)`."""
    if chunked:
        hidden, targets = supervised_positions(model.base_model(**inputs, use_cache=False)[0], labels)
        return hidden, targets, None
    seen: list[torch.Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        found = model(**inputs, use_cache=False).logits
    finally:
        hook.remove()
    logits, targets = supervised_positions(found, labels)
    return supervised_positions(seen[-1], labels)[0], targets, logits


def _scored(head: Any, states: torch.Tensor, targets: torch.Tensor, heat: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies of tokens, of hidden states or, without a head, of logits."""
    chances = F.log_softmax((states if head is None else head(states)).float() / heat, dim=-1)
    return chances.gather(1, targets[:, None])[:, 0], -(chances.exp() * chances).sum(dim=-1)


def score_head(model: Any) -> nn.Module:
    """The layer that gives the one output of a sequence; a ModelError where there is none."""
    heads = [m for m in model.children() if getattr(m, "out_features", None) == 1]  # also in a wrapper of PEFT's
    if not heads:
        raise ModelError(f"{type(model).__name__} has no linear layer with one output: it gives no score.")
    return heads[-1]


def cut(states: torch.Tensor, lengths: Sequence[int]) -> list[torch.Tensor]:
    """Rows of a padded batch without their padding."""
    return [row[:length] for row, length in zip(states, lengths, strict=True)]


def pad_states(states: Sequence[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """Hidden states of sequences as the batch of `labels` `(batch, time)` has them: each in a row, or all in one."""
    lines, time = labels.shape
    rows = [torch.cat(list(states))] if lines == 1 else states
    return torch.stack([F.pad(row, (0, 0, 0, time - len(row))) for row in rows])
