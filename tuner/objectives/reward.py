"""reward: one number for a conversation, learnt from pairs of answers of which one is better."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from rich.text import Text
from torch.nn import functional as F

from tuner.data.draws import FILLER
from tuner.data.encode import encode_dataset
from tuner.data.encoding_report import EncodingReport
from tuner.data.sources import SOURCE_ROW
from tuner.evaluation.baselines.tfidf import tfidf_pairs
from tuner.objectives.arguments import RewardArguments
from tuner.objectives.base import SHOWN_TOKENS, Batch, Objective, Row, Sums, own_class
from tuner.objectives.records import Comparison, Outcome, Predictions

PARTS = ("chosen", "rejected")  # the two sequences of an example
WORDS = "TF-IDF + logistic"


class Reward(Objective[RewardArguments]):
    """`-log sigmoid(r_chosen - r_rejected - margin)` (Bradley and Terry 1952; the margin: Touvron et al. 2023,
    https://arxiv.org/abs/2307.09288, equation 2), and with a coefficient `c` that centres rewards `c (r_chosen +
    r_rejected)²` more (Eisenstein et al. 2023, https://arxiv.org/abs/2312.09244, equation 2). With label smoothing `s`
    the loss is what is expected where a share `s` of the pairs is labelled the wrong way round, ties being half so."""

    arguments = RewardArguments
    name = "reward"
    kinds = ("ranked",)
    model, mixes = "reward", True
    needs_end = False
    refused = ("label_smoothing_factor", "packing", "padding_free")
    loss_unit = "loss a pair"
    judged: np.ndarray | None = None  # the last rewards of validation pairs that are no tie `(pairs, 2)`

    # ---- data ----

    def examples(self, rows: Dataset, name: str) -> tuple[Dataset, EncodingReport]:
        args = self.args
        cut = (args.max_length, args.truncation_mode, args.max_labels_lost, args.dataset_num_proc)
        return encode_dataset(rows, "ranked", self.tokenizer, *cut, name)

    def __call__(self, rows: list[Row]) -> Batch:
        """The chosen sequences, then the rejected ones; `labels` `(pairs,)` are how likely the chosen one is better."""
        sequences = [{"input_ids": row[f"{part}_input_ids"]} for part in PARTS for row in rows]
        better = [torch.nan if row["draw"] == FILLER else 0.5 if row["tie"] else 1.0 for row in rows]
        margins = torch.tensor([float(row["margin"]) for row in rows])
        return self.padded(sequences, rows * 2) | {"labels": torch.tensor(better), "margin": margins}

    # ---- loss and evaluation ----

    def counts(self, batch: Batch) -> torch.Tensor:
        return (~batch["labels"].isnan()).sum()

    def _rewards(self, model: Any, **inputs: Any) -> torch.Tensor:
        """Of the chosen and the rejected `(2, pairs)`, float32."""
        forward = own_class(model).forward
        if "use_cache" in inspect.signature(forward).parameters:
            inputs["use_cache"] = False
        rewards: torch.Tensor = forward(model, **inputs).logits.float().view(len(PARTS), -1)
        return rewards

    def sums(self, model: Any, labels: torch.Tensor, *, training: bool = False, **inputs: Any) -> Sums:
        smoothing, centring = self.args.label_smoothing, self.args.center_rewards_coefficient
        margin, real = inputs.pop("margin"), ~labels.isnan()
        one, other = rewards = self._rewards(model, **inputs)
        labels = labels.nan_to_num(0.5)  # what fills a batch has a gradient of 0, not of 0 times NaN
        better, gap = labels * (1 - 2 * smoothing) + smoothing, one - other
        losses = -better * F.logsigmoid(gap - margin) - (1 - better) * F.logsigmoid(-gap - margin)
        if centring is not None:
            losses = losses + centring * (one + other) ** 2
        ranked = labels == 1
        found = {"right": (gap > 0) & ranked, "ranked": ranked, "margin": gap * ranked}
        found |= {"reward": rewards.sum(dim=0), "squares": (rewards**2).sum(dim=0)}
        sums = {name: torch.where(real, each, 0).sum() for name, each in {"loss": losses, **found}.items()}
        return {"count": real.sum(), **sums}

    def metrics(self, sums: dict[str, np.ndarray]) -> dict[str, float]:
        if not sums.get("count"):
            return {}
        ranked, mean = max(sums["ranked"], 1), sums["reward"] / sums["count"] / 2
        deviation = np.sqrt(np.maximum(sums["squares"] / sums["count"] / 2 - mean**2, 0))
        found = {"loss": sums["loss"] / sums["count"], "accuracy": sums["right"] / ranked}
        found |= {"margin": sums["margin"] / ranked, "reward": mean, "reward_deviation": deviation}
        return {name: float(value) for name, value in found.items()}

    @torch.no_grad()
    def predict(self, outcome: Outcome) -> Predictions:
        """The rewards of every validation pair that is no tie."""
        model, pairs = outcome.model, outcome.examples.eval
        bare, found = model.get_base_model() if hasattr(model, "get_base_model") else model, list[torch.Tensor]()
        model.eval()
        for batch in self.held_out(outcome.examples, self.args.per_device_eval_batch_size):
            inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask") if name in batch}
            found.append(self._rewards(bare, **inputs).T.cpu())
        ranked = ~np.array(pairs["tie"])
        self.judged = torch.cat(found).numpy()[ranked]
        lengths = np.array([[len(ids) for ids in pairs[f"{part}_input_ids"]] for part in PARTS]).T[ranked]
        texts = [" / ".join(_said(row, part) for part in PARTS) for row in _rows_of(outcome.rows.eval, pairs)]
        shown = [text for text, counts in zip(texts, ranked, strict=True) if counts]
        ties = len(ranked) - len(shown)
        notes = (f"{ties:,} ties are left out.",) * bool(ties)
        margins = np.array(pairs["margin"])[ranked]
        return Predictions(shown, self.judged, lengths, PARTS, "preference", margins=margins, notes=notes)

    def compare(self, outcome: Outcome) -> Comparison:
        """Beside chance, "the longer one is better", and words alone; all of them also where the better one is the
        shorter."""
        train, pairs = _rows_of(outcome.rows.train, outcome.examples.train), outcome.examples.eval
        ranked = np.flatnonzero(~np.array(pairs["tie"]))
        chosen, rejected = (np.array([len(ids) for ids in pairs.select(ranked)[f"{part}_input_ids"]]) for part in PARTS)
        answers = [
            [(_said(row, "chosen"), _said(row, "rejected")) for row in rows if not row["tie"]]
            for rows in (train, _rows_of(outcome.rows.eval, pairs))
        ]
        gaps = {"chance": np.zeros(len(ranked)), "longer": chosen - rejected, WORDS: tfidf_pairs(*answers)}
        right = {who: (np.sign(gap) + 1) / 2 for who, gap in gaps.items()}
        known = {who: float(hits.mean()) for who, hits in right.items()}
        found = self.beside(outcome, known, outcome.before_and_after("accuracy"), "accuracy")
        shorter = chosen < rejected
        if shorter.any() and self.judged is not None:
            trained = self.judged[:, 0] > self.judged[:, 1]
            found["accuracy where the better one is shorter"] = {
                who: float(hits[shorter].mean()) for who, hits in {**right, "trained": trained}.items()
            }
        return found

    # ---- the dry run ----

    def show(self, draws: list[Row]) -> Iterator[Text]:
        for number, draw in enumerate(draws):
            for part in PARTS:
                said = f"tied, {part}" if draw["tie"] else part
                text = Text(f"\nExample {number}, {said}, its first {SHOWN_TOKENS} tokens:\n", style="bold")
                ids, labels = (draw[f"{part}_{name}"][:SHOWN_TOKENS] for name in ("input_ids", "labels"))
                answer = next((place for place, label in enumerate(labels) if label >= 0), len(ids))
                text.append(self.tokenizer.decode(ids[:answer]), style="not bold dim")
                yield text.append(self.tokenizer.decode(ids[answer:]) + "\n", style="not bold green")


def _said(row: Row, part: str) -> str:
    """What an answer of a canonical row says."""
    return " ".join(turn["content"] for turn in row[part])


def _rows_of(rows: Dataset, examples: Any) -> Iterator[Row]:
    """The canonical row of each example, in the examples' order: some rows have none."""
    kept = {numbers[0] for numbers in examples["rows"]}
    return (row for row in rows if row[SOURCE_ROW] in kept)
