"""Models of one line beside each other: a base model and what became of it by fine-tuning and PPO.

All read the same validation rows with the same tokenizer and draw the same random numbers, so that they are compared
prompt by prompt.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from tuner.data.collate import IGNORED, pad
from tuner.data.questions import add_system
from tuner.data.sources import load_splits
from tuner.data.turns import messages_of
from tuner.data.written import is_dialogue, turns_in
from tuner.evaluation.statistics import Estimate, mean, paired
from tuner.loading.checkpoints import pretrained_decoder
from tuner.loading.generation import room
from tuner.ops.block_attention import BLOCK_ATTENTION, can_use_block_attention
from tuner.rl.actor import ActorCritic, layout_of
from tuner.rl.evaluation import EVALUATION, logprobs_of
from tuner.rl.losses import divergence
from tuner.rl.prompts import encode_prompts, read_prompts
from tuner.rl.rollout import Rollout, sample, uniforms
from tuner.text.answers import training_tokenizer
from tuner.text.chat import encode_conversations

# Where a row's own answer is: no data set's column has this name, and reward functions are not told it.
SAID = "said by the assistant"


@dataclass
class Compared:
    """What one model does.

    Attributes:
        perplexity: of the rows' own answers by token, or None where they have none.
        reward: of its completions.
        kl: from the reference in nats a completion (k1).
        said: the completions' perplexity under the reference, by token at a temperature of 1.
        length: tokens of a completion.
        win_rate: the share of prompts whose reward is above that of the model before, ties counted half; None for the
            first model.
        p: two-sided, of rewards that do not differ (a permutation of pairs).
    """

    name: str
    perplexity: float | None
    reward: Estimate
    kl: float
    said: float
    length: float
    win_rate: float | None = None
    p: float | None = None

    def cells(self) -> tuple[str, ...]:
        """A table's row."""
        reward = f"{self.reward.value:.3f} ({self.reward.low:.3f} to {self.reward.high:.3f})"
        perplexity = "-" if self.perplexity is None else f"{self.perplexity:,.4g}"
        won = ("-", "-") if self.win_rate is None or self.p is None else (f"{self.win_rate:.1%}", f"{self.p:.2g}")
        return self.name, perplexity, reward, f"{self.kl:.2f}", f"{self.said:,.4g}", f"{self.length:.1f}", *won


def compare(
    models: Iterator[tuple[str, Any]],
    reference: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, Any]],
    rewards: Any,
    ends: Sequence[int],
    *,
    response_length: int = 53,
    batch_size: int = 64,
    seed: int = 42,
) -> Iterator[Compared]:
    """Compare causal models of one vocabulary.

    Args:
        models: names and models, each gone when the next is asked for.
        reference: what the divergence is measured from.
        rows: with `input_ids`, a prompt's, and `prompt` as `tuner.rl.prompts` leaves it; what the assistant said to it
            under `SAID`, or None there.
        rewards: a `tuner.rl.rewards.Rewards`.
        ends: tokens that end a completion.
    """
    filler = tokenizer.pad_token_id or 0
    numbers = uniforms(seed, [EVALUATION + row for row in range(len(rows))], response_length)
    own = answers(tokenizer, rows)
    of_reference = ActorCritic(reference, None, 1.0, layout_of(reference, None), filler)
    told = [{key: value for key, value in row.items() if key != SAID} for row in rows]
    before: np.ndarray | None = None
    for name, model in models:
        actor = ActorCritic(model, None, 1.0, layout_of(model, None), filler)
        rollout = sample(
            model,
            [row["input_ids"] for row in rows],
            numbers,
            ends=ends,
            temperature=1.0,
            batch_size=batch_size,
        )
        scores = rewards(told, rollout.prompts, rollout.completions())[0].numpy()
        known = logprobs_of(of_reference, rollout, batch_size, reference)
        kl = (divergence(rollout.logprobs, known, "k1") * rollout.mask).sum(dim=1).mean()
        tokens = int(rollout.lengths.sum())
        said = math.exp(min(-float(known.sum()) / tokens, 700.0))
        found = Compared(name, None, mean(scores), float(kl), said, tokens / len(rows))
        if own is not None:
            nats = -float(logprobs_of(actor, own, batch_size, model).sum()) / int(own.lengths.sum())
            found.perplexity = math.exp(min(nats, 700.0))
        if before is not None:
            gains = scores - before
            found.win_rate, found.p = float(((gains > 0) + 0.5 * (gains == 0)).mean()), paired(scores, before)[1]
        before = scores
        yield found


def load_stage(name: str, tokenizer: PreTrainedTokenizerBase, device: str, new: bool = False, seed: int = 0) -> Any:
    """A causal model in float32, with its weights or new ones.

    Raises:
        ModelError: nothing to load, or a vocabulary smaller than the tokenizer's.
    """
    model = pretrained_decoder(name, tokenizer)
    if new:
        torch.manual_seed(seed)
        model = type(model)(model.config)
    if device == "cpu" and can_use_block_attention(model):
        model.set_attn_implementation(BLOCK_ATTENTION)
    return model.to(device).eval()


def prompts_with_answers(
    name: str,
    test_split_size: float,
    most: int,
    longest: int | None,
    tokenizer: PreTrainedTokenizerBase,
    model: Any,
    response_length: int,
) -> list[dict[str, Any]]:
    """Up to `most` validation rows as `compare` takes them.

    Raises:
        DataError: no such data, a row without a prompt, or a prompt that the model cannot read with a completion.
    """
    _, held_out = load_splits(name, test_split_size=test_split_size)
    held_out = held_out.select(range(min(most, len(held_out))))
    read, _ = read_prompts(held_out, name)
    if "prompt" in read.column_names:
        read = read.add_column(
            SAID, [_answer(row, len(known["prompt"])) for row, known in zip(held_out, read, strict=True)]
        )
    return list(encode_prompts(read, tokenizer, room(model, response_length), longest, name)[0])


def _answer(row: dict[str, Any], asked: int) -> str | None:
    """What the assistant said after so many messages."""
    for column in ("messages", "conversations"):
        if column in row:
            turns = messages_of(row[column], column, set(), answered=False)
            add_system(row, turns)
            return turns[asked]["content"] if asked < len(turns) else None
    names = ("output", "response") if "instruction" in row else ("completion",)
    said = turns_in(next((row[name] for name in names if name in row), None))
    if isinstance(said, list) and said:
        turns = messages_of(said, "completion", set(), answered=False)
        first = max((place + 1 for place, turn in enumerate(turns) if turn["role"] == "user"), default=0)
        said = turns[first]["content"] if first < len(turns) else None
    if isinstance(said, str):
        return said.strip() if is_dialogue(row.get("prompt")) else said
    return None


def answers(tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]]) -> Rollout | None:
    """The answers that rows have, as if they had been sampled; None where no row has one."""
    turns = [[*row["prompt"], {"role": "assistant", "content": row[SAID]}] for row in rows if row.get(SAID) is not None]
    if not turns:
        return None
    prompts, tokens = [], []
    writer, _ = training_tokenizer(tokenizer)
    for row in encode_conversations(writer, turns, eos_required=False, prompts=[len(turn) - 1 for turn in turns]):
        learnt = [place for place, label in enumerate(row["labels"]) if label != IGNORED]
        if learnt:  # of some templates an answer cannot be told from the rest
            prompts.append(row["input_ids"][: learnt[0]])
            tokens.append(row["input_ids"][learnt[0] : learnt[-1] + 1])
    if not tokens:
        return None
    filled = pad(tokens, 0)
    empty = torch.zeros(filled.shape)
    ended = torch.ones(len(tokens), dtype=torch.bool)
    return Rollout(prompts, filled, torch.tensor([len(ids) for ids in tokens]), ended, *[empty] * 4)
