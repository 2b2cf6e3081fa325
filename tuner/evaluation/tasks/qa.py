"""Answers to questions on a text: spans that a model with a head for them finds, in overlapping windows of a text that
is longer than it reads; or what a causal model writes. Compared as SQuAD's script does.

A question without an answer is answered by nothing. A model with a head may say so (its first token) where the rows
have such questions, as transformers' `--version_2_with_negative`; a causal model is told to write `unanswerable`.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch

from tuner.evaluation.subject import Subject
from tuner.evaluation.tasks.base import Baselines, Figures, Row, Samples, Task
from tuner.loading.generation import generate_texts, room
from tuner.text.chat import generation_prompt

NOTHING = "unanswerable"
ASKED = "{context}\n\n{question}\nAnswer with a few words of the text, or with: unanswerable."
# Of a reader: starts and ends that are tried, as transformers' and SQuAD's scripts do.
TRIED = 20


class QA(Task):
    """Questions on a text."""

    name = "qa"
    models = ("reader", "causal")
    kinds = ("question",)
    default = "builtin:http-questions"
    set_aside = (0.2, False)
    figures = {
        **dict.fromkeys(("f1", "exact_match"), "higher"),
        **{f"{kind}_{name}": "higher" for kind in ("has_answer", "no_answer") for name in ("f1", "exact_match")},
    }
    by_row = {"f1": "f1", "exact_match": "exact_match"}

    def begin(self, subject: Subject) -> None:
        trained = subject.trained.get("max_length")
        self.length = subject.longest(self.args.max_length, trained or 384)
        self.stride = self.args.stride or self.length // 3
        self.may_refuse = any(not row["answers"] for row in self.data.rows)

    def score(self, subject: Subject, rows: list[Row]) -> list[Row]:
        said = self._read(subject, rows) if subject.kind == "reader" else self._ask(subject, rows)
        return [
            {
                "question": row["question"], "context": row["context"], "prediction": answer,
                "reference": [each["text"] for each in row["answers"]], "scores": {},
            } if answer is not None else {"question": row["question"], "left_out": "a text longer than the model reads"}
            for row, answer in zip(rows, said, strict=True)
        ]  # fmt: skip

    def _ask(self, subject: Subject, rows: list[Row]) -> list[str | None]:
        tokenizer, prompts = subject.tokenizer, []
        for row in rows:
            text = ASKED.format(**row)
            if tokenizer.chat_template:
                ids = generation_prompt(tokenizer, [{"role": "user", "content": text}])["input_ids"][0].tolist()
            else:
                ids = tokenizer(f"{text}\nAnswer:")["input_ids"]
            prompts.append(ids)
        fits = [number for number, ids in enumerate(prompts) if room(subject.model, len(ids)) > 0]
        found: list[str | None] = [None] * len(rows)
        how: Any = {"max_new_tokens": self.args.max_new_tokens, "batch_size": self.args.per_device_eval_batch_size}
        for number, text in generate_texts(subject.model, tokenizer, [prompts[n] for n in fits], **how):
            text = text.strip().split("\n")[0]
            found[fits[number]] = "" if text.lower().startswith(NOTHING) else text
        return found

    @torch.no_grad()
    def _read(self, subject: Subject, rows: list[Row]) -> list[str | None]:
        tokenizer, size = subject.tokenizer, self.args.per_device_eval_batch_size
        questions, contexts = [row["question"].strip() for row in rows], [row["context"] for row in rows]
        given = tokenizer(
            questions, contexts, truncation="only_second", max_length=self.length, stride=self.stride,
            return_overflowing_tokens=True, return_offsets_mapping=True, padding=True, return_tensors="pt",
        )  # fmt: skip
        best: list[tuple[float, str]] = [(-np.inf, "")] * len(rows)
        refusals = [np.inf] * len(rows)
        for start in range(0, len(given["input_ids"]), size):
            part = slice(start, start + size)
            known = {k: given[k][part].to(subject.device) for k in tokenizer.model_input_names if k in given}
            output = subject.model(**known)
            begins, ends = (logits.float().cpu().numpy() for logits in (output.start_logits, output.end_logits))
            for place in range(len(begins)):
                window = start + place
                row = int(given["overflow_to_sample_mapping"][window])
                inside = np.array([number == 1 for number in given.sequence_ids(window)])
                ids = given["input_ids"][window].tolist()
                first = ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0
                refusals[row] = min(refusals[row], float(begins[place, first] + ends[place, first]))
                offsets = given["offset_mapping"][window].numpy()
                found = self._span(begins[place], ends[place], inside, offsets, contexts[row])
                best[row] = max(best[row], found)
        refuses = [self.may_refuse and refusal > score for refusal, (score, _) in zip(refusals, best, strict=True)]
        return ["" if refused else text for refused, (_, text) in zip(refuses, best, strict=True)]

    def _span(
        self, begins: np.ndarray, ends: np.ndarray, inside: np.ndarray, offsets: np.ndarray, context: str
    ) -> tuple[float, str]:
        """The best span of a window: the sum of its logits, and its text."""
        starts, stops = (np.where(inside, logits, -np.inf) for logits in (begins, ends))
        some, others = (np.argsort(-logits)[:TRIED] for logits in (starts, stops))
        scores = starts[some][:, None] + stops[others][None]
        lengths = others[None] - some[:, None]
        scores = np.where((lengths >= 0) & (lengths < self.args.max_new_tokens), scores, -np.inf)
        start, stop = np.unravel_index(scores.argmax(), scores.shape)
        if not np.isfinite(scores[start, stop]):
            return -np.inf, ""
        return float(scores[start, stop]), context[offsets[some[start]][0] : offsets[others[stop]][1]]

    def score_rows(self, samples: Samples) -> None:
        samples.by_row(samples.of_metric("squad", _columns), "f1", "exact_match")

    def summarise(self, samples: Samples) -> Figures:
        self.score_rows(samples)
        lacking = np.array([not sample["reference"] for sample in samples])
        figures = {name: self.mean(samples, name) for name in ("f1", "exact_match")}
        if lacking.any() and not lacking.all():
            for kind, rows in (("has_answer", ~lacking), ("no_answer", lacking)):
                for name in ("f1", "exact_match"):
                    samples.scores[f"{kind}_{name}"] = np.where(rows, samples.scores[name], np.nan)
                    figures[f"{kind}_{name}"] = self.mean(samples, f"{kind}_{name}")
        return figures

    def baselines(self, samples: Samples) -> Baselines:
        """No answer at all, and the sentence that has most of the question's words."""
        found: Baselines = {}
        for who, answer in (("no answer", lambda sample: ""), ("the likest sentence", _likest)):

            def columns(sample: Row, answer: Any = answer) -> Row:
                return {"predictions": answer(sample), "references": sample["reference"]}

            for name, value in samples.value_of_metric("squad", columns).items():
                found.setdefault(name, {})[who] = value
        return found

    def settings(self) -> Row:
        return {"max_length": self.length, "stride": self.stride, "max_new_tokens": self.args.max_new_tokens}

    def notes(self) -> list[str]:
        return ["A causal model's answer is its first line; max_length and stride are for a model with a head."]


def _columns(sample: Row) -> Row:
    return {"predictions": sample["prediction"], "references": sample["reference"]}


def _likest(sample: Row) -> str:
    asked = set(re.findall(r"\w+", sample["question"].lower()))
    sentences = re.split(r"(?<=[.!?])\s+", sample["context"])
    return max(sentences, key=lambda sentence: len(asked & set(re.findall(r"\w+", sentence.lower()))))
