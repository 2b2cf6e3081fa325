"""Classes of texts, numbers, and tags of tokens, by a model with a head for them; or the class that a causal model
finds likeliest as the answer to a question, without having been trained for it.

Classes are compared by name. A row whose class the model does not know is an error, not a mistake of the model's.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from tuner.data.collate import IGNORED
from tuner.data.labels import labels_of
from tuner.data.schema import Kind, canonicalize
from tuner.errors import DataError
from tuner.evaluation.baselines.ngrams import is_small
from tuner.evaluation.baselines.tfidf import tfidf_classes
from tuner.evaluation.statistics import Estimate
from tuner.evaluation.subject import Subject
from tuner.evaluation.tasks.base import Baselines, Figures, Row, Samples, Task
from tuner.objectives.tagging import encode_words
from tuner.text.chat import generation_prompt

OF_KIND: dict[str, dict[str, str]] = {
    "class": {
        **dict.fromkeys(("accuracy", "f1_macro", "f1_micro", "matthews_correlation", "roc_auc"), "higher"),
        **dict.fromkeys(("ece", "brier", "nll"), "lower"),
    },
    "classes": dict.fromkeys(("f1_micro", "f1_macro", "accuracy", "roc_auc"), "higher"),
    "score": {"rmse": "lower", "mae": "lower", "pearson": "higher", "spearman": "higher"},
    "tags": {"f1": "higher", "precision": "higher", "recall": "higher", "token_accuracy": "higher"},
}
# Metrics of a kind of rows, the columns that each takes, and what of it is a figure.
LABELS, SCORES = ("prediction", "reference"), ("probabilities", "reference")
METRICS: dict[str, tuple[tuple[str, tuple[str, str]], ...]] = {
    "class": (
        *((name, LABELS) for name in ("f1", "matthews_correlation")),
        *((name, SCORES) for name in ("roc_auc", "calibration")),
    ),
    "classes": (("f1", LABELS), ("roc_auc", SCORES)),
    "score": (("regression", LABELS),),
    "tags": (("entity_f1", LABELS),),
}
TAKES: dict[str, Kind] = {"multilabel": "classes", "regressor": "score", "tagger": "tags"}
# Tokens of a text that a model without a head is asked about, and classes that it is asked to choose from.
ASKED_TOKENS, ASKED_CLASSES = 256, 50


class Classification(Task):
    """Labels that a model gives to texts."""

    name = "classification"
    models = ("classifier", "multilabel", "regressor", "tagger", "causal")
    kinds = ("class", "classes", "score", "tags")
    default = "builtin:bbc-news"
    set_aside = (0.2, True)
    figures = {figure: better for figures in OF_KIND.values() for figure, better in figures.items()}
    names: tuple[str, ...] = ()

    @classmethod
    def figures_of(cls, kind: Kind | None) -> dict[str, str]:
        return OF_KIND[str(kind)]

    @classmethod
    def kinds_of(cls, models: set[str]) -> tuple[Kind, ...]:
        found = {TAKES.get(kind, "class") for kind in models}
        return tuple(found) if len(found) == 1 else ()

    def begin(self, subject: Subject) -> None:
        self.unmade: dict[str, str] = {}
        there = labels_of(self.data.rows, str(self.data.kind)).names
        if subject.kind == "causal":
            if len(there) > ASKED_CLASSES:
                raise DataError(f"{self.data.name}: {len(there)} classes, more than {subject.name} can be asked about.")
            self.names = there
        else:
            self.names = subject.names
        unknown = [name for name in there if name not in self.names]
        if unknown and self.data.kind != "score":
            of_model = ", ".join(self.names[:20]) + (", ..." if len(self.names) > 20 else "")
            raise DataError(
                f"{self.data.name} has {', '.join(map(repr, unknown[:5]))}, which {subject.name} does not know: it "
                f"tells {of_model}. Rename them in the rows, or in the model's config.json (id2label)."
            )
        usual = ASKED_TOKENS if subject.kind == "causal" else subject.trained.get("max_length") or 512
        self.length = subject.longest(self.args.max_length, usual)

    @torch.no_grad()
    def score(self, subject: Subject, rows: list[Row]) -> list[Row]:
        if subject.kind == "causal":
            return self._ask(subject, rows)
        if self.data.kind == "tags":
            return self._tag(subject, rows)
        samples: list[Row] = [{} for _ in rows]
        for batch in self._batches(rows):
            some = [rows[number] for number in batch]
            pairs = [row["text_pair"] or "" for row in some] if any(row["text_pair"] for row in some) else None
            logits = self._logits(subject, [row["text"] for row in some], pairs)
            for number, row, scores in zip(batch, some, logits, strict=True):
                samples[number] = {"text": row["text"], **({"text_pair": row["text_pair"]} if row["text_pair"] else {})}
                samples[number] |= self._judged(row, scores)
        return samples

    def _batches(self, rows: list[Row]) -> list[list[int]]:
        size = self.args.per_device_eval_batch_size
        order = sorted(range(len(rows)), key=lambda number: -len(rows[number].get("text") or rows[number]["tokens"]))
        return [order[start : start + size] for start in range(0, len(order), size)]

    def _logits(self, subject: Subject, *texts: Any) -> torch.Tensor:
        """The model's output of a batch, float32 on the CPU."""
        tokenizer = subject.tokenizer
        given = tokenizer(
            *texts, truncation=True, max_length=self.length, padding=True, return_tensors="pt", verbose=False
        )
        known = {k: v.to(subject.device) for k, v in given.items() if k in tokenizer.model_input_names}
        return subject.model(**known).logits.float().cpu()

    def _judged(self, row: Row, logits: torch.Tensor) -> Row:
        """What the logits of a text say, and whether that is right."""
        if self.data.kind == "score":
            number, wanted = float(logits.reshape(-1)[0]), row["label"]
            return {"prediction": number, "reference": wanted, "scores": {"absolute_error": abs(number - wanted)}}
        if self.data.kind == "classes":
            chances = logits.sigmoid().tolist()
            said = [name for name, chance in zip(self.names, chances, strict=True) if chance > 0.5]
            scores = {"accuracy": float(set(said) == set(row["labels"]))}
            return {"prediction": said, "reference": row["labels"], "probabilities": chances, "scores": scores}
        chances = logits.double().softmax(-1).tolist()
        best = self.names[int(np.argmax(chances))]
        scores = {"accuracy": float(best == row["label"])}
        return {"prediction": best, "reference": row["label"], "probabilities": chances, "scores": scores}

    def _tag(self, subject: Subject, rows: list[Row]) -> list[Row]:
        """Each word has the tag of its first token, as in training; one that is cut off has O."""
        samples: list[Row] = [{} for _ in rows]
        for batch in self._batches(rows):
            columns = {name: [rows[number][name] for number in batch] for name in ("tokens", "tags")}
            encoded = encode_words(columns, batch, subject.tokenizer, self.length, self.data.name, False, self.names)
            inputs = {name: encoded[name] for name in ("input_ids", "token_type_ids") if name in encoded}
            given = subject.tokenizer.pad(inputs, return_tensors="pt", padding_side="right").to(subject.device)
            numbers = subject.model(**given).logits.argmax(-1).tolist()
            for place, number in enumerate(batch):
                words, tags = columns["tokens"][place], columns["tags"][place]
                firsts = [token for token, label in enumerate(encoded["labels"][place]) if label != IGNORED]
                said = ["O"] * len(words)
                for word, token in zip(encoded["words"][place], firsts, strict=True):
                    said[word] = self.names[numbers[place][token]]
                right = float(np.mean([one == other for one, other in zip(said, tags, strict=True)]))
                samples[number] = {
                    "tokens": words, "prediction": said, "reference": tags, "scores": {"token_accuracy": right}
                }  # fmt: skip
        return samples

    def _ask(self, subject: Subject, rows: list[Row]) -> list[Row]:
        """The likelihood of each class's name as the answer to which of them a text is."""
        tokenizer, sequences = subject.tokenizer, []
        before = "" if tokenizer.chat_template else " "
        choices = [tokenizer(f"{before}{name}", add_special_tokens=False)["input_ids"] for name in self.names]
        for row in rows:
            text = " / ".join(filter(None, (row["text"], row["text_pair"])))
            kept = tokenizer(text, add_special_tokens=False, truncation=True, max_length=self.length, verbose=False)
            said = f"{tokenizer.decode(kept['input_ids'])}\n\nWhich of these is it: {', '.join(self.names)}?"
            if tokenizer.chat_template:
                ids = generation_prompt(tokenizer, [{"role": "user", "content": said}])["input_ids"][0].tolist()
            else:
                ids = tokenizer(f"{said}\nAnswer:")["input_ids"]
            for answer in choices:
                sequences.append(([*ids, *answer], [*[IGNORED] * len(ids), *answer]))
        losses = subject.losses(sequences, self.args.per_device_eval_batch_size)
        found = -torch.tensor([each.sum() for each in losses]).reshape(len(rows), len(self.names))
        return [{"text": row["text"], **self._judged(row, scores)} for row, scores in zip(rows, found, strict=True)]

    def summarise(self, samples: Samples) -> Figures:
        kind, figures = str(self.data.kind), dict[str, Estimate]()
        for metric, (said, wanted) in METRICS[kind]:
            options = {"labels": list(self.names)} if said == "probabilities" else {}

            def columns(sample: Row, said: str = said, wanted: str = wanted) -> Row:
                return {"predictions": sample[said], "references": sample[wanted]}

            of_rows = samples.of_metric(metric, columns, **options)
            try:
                names = [name for name in of_rows(np.arange(len(samples))) if name in OF_KIND[kind]]
                figures |= self.bootstrap(samples, of_rows, *names)
            except DataError as error:
                self.unmade[metric] = str(error)
        if kind != "score":
            figures |= {name: self.mean(samples, name) for name in samples.scores}
        return {name: figures[name] for name in OF_KIND[kind] if name in figures}

    def by_row_of(self, samples: Samples) -> dict[str, str]:
        return {{"absolute_error": "mae"}.get(score, score): score for score in samples.scores}

    def baselines(self, samples: Samples) -> Baselines:
        """The most frequent class, and TF-IDF under a linear model, learnt from the rows that are not evaluated on."""
        kind, rows = str(self.data.kind), self.data.rows
        assert isinstance(rows, Dataset)
        if kind == "tags":
            return {}
        main = {"class": "accuracy", "classes": "f1_micro", "score": "rmse"}[kind]
        if self.data.train is not None and is_small(self.data.train):
            train = canonicalize(self.data.train, self.data.name, (self.data.kind,))[1]  # type: ignore[arg-type]
            return {main: tfidf_classes(train, rows, main)}
        if kind == "class":
            [(_, most)] = Counter(rows["label"]).most_common(1)
            return {main: {"most frequent of these rows": most / len(rows)}}
        return {main: {"their mean": float(np.std(rows["label"]))}} if kind == "score" else {}

    def settings(self) -> Row:
        return {"max_length": self.length}

    def notes(self) -> list[str]:
        said = [f"Left out: {reason}" for reason in self.unmade.values()]
        return [f"Texts are cut after {self.length} tokens; classes are compared by name.", *said]
