"""Which of two answers is better, by the likelihood that a model gives to each (as DPO's implicit reward without its
reference)."""

from __future__ import annotations

import numpy as np

from tuner.evaluation.subject import Subject
from tuner.evaluation.tasks.base import Baselines, Figures, Row, Samples, Task
from tuner.text.answers import training_tokenizer
from tuner.text.chat import encode_conversations, require_chat_template

PARTS = ("chosen", "rejected")


class Preference(Task):
    """Share of pairs whose chosen answer is likelier than the rejected one; a tie is half a pair."""

    name = "preference"
    kinds = ("preference",)
    default = "builtin:chitchat-pairs"
    figures = {"pair_accuracy": "higher", "pair_accuracy_per_token": "higher", "margin": "higher"}
    by_row = {name: name for name in figures}

    def begin(self, subject: Subject) -> None:
        require_chat_template(subject.tokenizer)
        self.length = subject.longest(self.args.max_length)
        self.encoder, _ = training_tokenizer(subject.tokenizer)

    def score(self, subject: Subject, rows: list[Row]) -> list[Row]:
        sequences = []
        for part in PARTS:
            whole = [[*row["prompt"], *row[part]] for row in rows]
            names = [f"{self.data.name}, row {row['source_row']}" for row in rows]
            prompts = [len(row["prompt"]) for row in rows]
            encoded = encode_conversations(self.encoder, whole, eos_required=False, names=names, prompts=prompts)
            sequences += [(each["input_ids"], each["labels"]) for each in encoded]
        # Nothing is cut: a pair is judged whole or not at all.
        fits = [len(ids) <= self.length + 1 for ids, _ in sequences]
        long = [not (fits[number] and fits[number + len(rows)]) for number in range(len(rows))]
        sequences = [each if not long[n % len(rows)] else ([0], [0]) for n, each in enumerate(sequences)]
        losses = subject.losses(sequences, self.args.per_device_eval_batch_size)
        samples = []
        for number, row in enumerate(rows):
            one, other = losses[number], losses[number + len(rows)]
            sample: Row = {"prompt": row["prompt"], **{part: row[part] for part in PARTS}}
            if not len(one) or not len(other):
                reason = f"longer than {self.length} tokens" if long[number] else "an answer without a token"
                sample["left_out"] = reason
            else:
                sums, means = other.sum() - one.sum(), other.mean() - one.mean()
                sample["log_likelihoods"] = {"chosen": -float(one.sum()), "rejected": -float(other.sum())}
                sample["scores"] = {
                    "pair_accuracy": float(sums > 0), "pair_accuracy_per_token": float(means > 0),
                    "margin": float(means), "longer": float(len(one) > len(other)),
                }  # fmt: skip
            samples.append(sample)
        return samples

    def summarise(self, samples: Samples) -> Figures:
        return {name: self.mean(samples, name) for name in self.figures}

    def baselines(self, samples: Samples) -> Baselines:
        longer = float(np.nanmean(samples.scores["longer"]))
        return {name: {"chance": 0.5, "the longer one": longer} for name in list(self.figures)[:2]}

    def notes(self) -> list[str]:
        return [
            "A tie is wrong. pair_accuracy compares sums over an answer's tokens, which favours short answers; "
            "per_token compares means, and margin is their difference in nats a token."
        ]
