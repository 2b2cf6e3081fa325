"""Answers to questions on a text: spans that a model with a head for them finds, in overlapping windows of a text that
is longer than it reads; or what a causal model writes. Compared as SQuAD's script does.

A question without an answer is answered by nothing. A model with a head may say so (its first token) where the rows
have such questions, as transformers' `--version_2_with_negative`; a causal model is told to write `unanswerable`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from tuner.data.sources import SOURCE_ROW
from tuner.evaluation.baselines.words import nearest_sentence
from tuner.evaluation.subject import Subject
from tuner.evaluation.tasks.base import Baselines, Figures, Row, Samples, Task
from tuner.loading.generation import generate_texts, room
from tuner.objectives.question_answering import best_answers, encode_windows, span_scores
from tuner.text.chat import generation_prompt

NOTHING = "unanswerable"
ASKED = "{context}\n\n{question}\nAnswer with a few words of the text, or with: unanswerable."


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
        tokenizer, size, contexts = (
            subject.tokenizer,
            self.args.per_device_eval_batch_size,
            [r["context"] for r in rows],
        )
        asked = {"question": [row["question"] for row in rows], "context": contexts, "answers": [[]] * len(rows)}
        asked[SOURCE_ROW] = [row.get(SOURCE_ROW, number) for number, row in enumerate(rows)]
        every = encode_windows(asked, [*range(len(rows))], tokenizer, self.length, self.stride, self.data.name)

        def scored() -> Iterator[tuple[np.ndarray, dict[str, list[Any]]]]:
            for start in range(0, len(every["question"]), size):
                windows = {name: column[start : start + size] for name, column in every.items()}
                inputs = {name: windows[name] for name in ("input_ids", "token_type_ids") if name in windows}
                given = tokenizer.pad(inputs, return_tensors="pt", padding_side="right").to(subject.device)
                yield span_scores(subject.model(**given), given["attention_mask"].sum(dim=1)).cpu().numpy(), windows

        best, none = best_answers(scored(), contexts, self.args.max_new_tokens)
        refuses = [self.may_refuse and null > score for (score, *_), (null, _) in zip(best, none, strict=True)]
        return ["" if refused else text for refused, (*_, text) in zip(refuses, best, strict=True)]

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
        for who, answer in (("no answer", lambda sample: ""), ("the likest sentence", nearest_sentence)):

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
