"""Labels of texts: a class, any number of classes, or a number; from all weights, an adapter, or a head alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from datasets import Dataset
from rich.table import Table
from rich.text import Text
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from tuner.data.cache_key import map_batches
from tuner.data.collate import IGNORED
from tuner.data.draws import FILLER
from tuner.data.sources import SOURCE_ROW
from tuner.errors import DataError
from tuner.evaluation.baselines.tfidf import tfidf_classes
from tuner.objectives.arguments import ClassifyArguments
from tuner.objectives.base import Batch, Row, Sums
from tuner.objectives.heads import WithHead
from tuner.objectives.records import Comparison, Examples, Outcome, Predictions, Rows


class Classification(WithHead):
    """classification: the class of a text by cross-entropy, its classes by binary cross-entropy each, or a number by
    its squared error (Devlin et al. 2018, section 4.1, https://arxiv.org/abs/1810.04805)."""

    name = "classification"
    kinds = ("class", "classes", "score")
    model, mixes = "classifier", True
    loss_unit = "nats a text"  # or the squared error
    poolings = ("mean", "cls", "last")
    needs_offsets = False

    def __init__(self, args: ClassifyArguments, tokenizer: PreTrainedTokenizerBase, *more: Any, **named: Any):
        super().__init__(args, tokenizer, *more, **named)
        if self.problem == "regression":
            self.loss_unit = "squared error"

    # ---- data ----

    def examples(self, rows: Dataset, name: str) -> tuple[Dataset, None]:
        arguments = {
            **{"tokenizer": self.tokenizer, "max_length": self.args.max_length, "name": name},
            **{"refuse": self.args.truncation_mode == "error", "names": self.labels.names, "problem": self.problem},
        }
        how = {"num_proc": self.args.dataset_num_proc, "remove_columns": rows.column_names, "desc": "Tokenizing"}
        return map_batches(rows, _encode, [__file__], arguments, with_indices=True, **how), None

    def __call__(self, rows: list[Row]) -> Batch:
        targets = torch.as_tensor(np.stack([row["labels"] for row in rows]))
        targets = targets.long() if self.problem == "single_label_classification" else targets.float()
        for number, row in enumerate(rows):
            if row["draw"] == FILLER:
                targets[number] = IGNORED if targets.dtype == torch.int64 else torch.nan
        return self.inputs(rows) | {"labels": targets}

    # ---- loss and evaluation ----

    def counted(self, labels: torch.Tensor) -> torch.Tensor:
        first = labels if labels.dim() == 1 else labels[:, 0]
        return first != IGNORED if first.dtype == torch.int64 else ~first.isnan()

    def counts(self, batch: Batch) -> torch.Tensor:
        labels, weights = batch["labels"], self.weights
        real = self.counted(labels)
        outputs = labels.shape[1:].numel()  # of several classes a text has several labels
        return real.sum() * outputs if weights is None else weights.to(real.device)[labels[real]].sum()

    def sums(self, model: Any, labels: torch.Tensor, *, training: bool = False, **inputs: Any) -> Sums:
        real = self.counted(labels).nonzero()[:, 0]
        logits, targets = self.outputs(model, **inputs).logits.float()[real], labels[real]
        count = targets.new_full((), targets.numel())
        if self.problem == "regression":
            errors = logits.squeeze(-1) - targets
            return {"loss": (errors**2).sum(), "count": count, "mae": errors.abs().sum()}
        if self.problem == "multi_label_classification":
            loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
            said, true = logits > 0, targets > 0
            counted = {"hits": said & true, "said": said, "true": true}
            return {"loss": loss, "count": count, **{key: value.sum(dim=0) for key, value in counted.items()}}
        weights = None if self.weights is None else self.weights.to(logits)
        smoothing = self.label_smoothing if training else 0.0
        loss = F.cross_entropy(logits, targets, weights, reduction="sum", label_smoothing=smoothing)
        if training:
            return {"loss": loss}
        pairs = targets * logits.shape[1] + logits.argmax(-1)
        confusion = torch.bincount(pairs, minlength=logits.shape[1] ** 2)
        return {"loss": loss, "count": self.counts({"labels": labels}), "confusion": confusion}

    def metrics(self, sums: dict[str, np.ndarray]) -> dict[str, float]:
        if not sums.get("count"):
            return {}
        found = {"loss": float(sums["loss"] / sums["count"])}
        if self.problem == "regression":
            return {**found, "rmse": found["loss"] ** 0.5, "mae": float(sums["mae"] / sums["count"])}
        if self.problem == "single_label_classification":
            table = sums["confusion"].reshape(len(self.labels.names), -1)
            found["accuracy"] = float(table.trace() / table.sum())
            hits, said, true = table.diagonal(), table.sum(axis=0), table.sum(axis=1)
        else:
            hits, said, true = sums["hits"], sums["said"], sums["true"]
            found["f1_micro"] = float(2 * hits.sum() / max((said + true).sum(), 1))
        found["f1_macro"] = float(np.mean(2 * hits / np.maximum(said + true, 1)))
        return found

    def compare(self, outcome: Outcome) -> Comparison:
        """Beside the most frequent class (or the mean), and TF-IDF under a linear SVM (or ridge regression)."""
        main = {"regression": "rmse", "multi_label_classification": "f1_micro"}.get(self.problem, "accuracy")
        known = tfidf_classes(outcome.rows.train, outcome.rows.eval, main)
        return self.beside(outcome, known, outcome.before_and_after(main), main)

    def predict(self, outcome: Outcome) -> Predictions:
        """The logits of every validation row."""
        shown = [" / ".join(filter(None, (row["text"], row["text_pair"]))) for row in outcome.rows.eval]
        logits, targets = self.held_out_logits(outcome.model, outcome.examples)
        return Predictions(shown, logits, targets, self.labels.names, self.problem)

    # ---- the dry run ----

    def describe(self, rows: Rows, examples: Examples) -> Table:
        table = Table("", "train", "eval", title=f"Data: {self.problem}", title_justify="left")
        table.add_row("texts", *(f"{len(split):,}" for split in (examples.train, examples.eval)))
        cut = [np.mean(split.with_format("numpy")["cut"][:]) for split in (examples.train, examples.eval)]
        table.add_row("cut at --max_length", *(f"{share:.1%}" for share in cut))
        for name, count in zip(self.labels.names[:20], self.labels.counts, strict=False):
            column = "label" if rows.kind == "class" else "labels"
            table.add_row(name, f"{count:,}", f"{sum(value == name or name in value for value in rows.eval[column]):,}")
        return examples.add_shares(table)

    def show(self, draws: list[Row]) -> Any:
        for number, draw in enumerate(draws):
            text = Text(f"\nExample {number}:\n", style="bold")
            text.append(self.tokenizer.decode(draw["input_ids"][:160]), style="not bold dim")
            value = np.asarray(draw["labels"])
            if self.problem == "regression":
                said = f"{float(value):g}"
            elif value.ndim:
                said = ", ".join(name for name, on in zip(self.labels.names, value, strict=True) if on) or "none"
            else:
                said = self.labels.names[int(value)]
            yield text.append(f"\nis to give\n{said}\n", style="not bold green")


def _encode(
    batch: dict[str, list[Any]],
    indices: list[int],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    name: str,
    refuse: bool,
    names: tuple[str, ...],
    problem: str,
) -> dict[str, list[Any]]:
    pairs = batch["text_pair"] if any(batch["text_pair"]) else None
    encoded = tokenizer(batch["text"], pairs)
    lengths = [len(ids) for ids in encoded["input_ids"]]
    numbers = batch.get(SOURCE_ROW, indices)
    for row, length in zip(numbers, lengths, strict=True):
        if length == 0:
            raise DataError(f"{name}, row {row}: column 'text' is empty.")
        if refuse and length > max_length:
            raise DataError(
                f"{name}, row {row}: {length} tokens, longer than --max_length {max_length} (--truncation_mode error)."
            )
    if max(lengths) > max_length:
        encoded = tokenizer(batch["text"], pairs, truncation=True, max_length=max_length)
    found = {key: encoded[key] for key in ("input_ids", "token_type_ids") if key in encoded}
    number = {name: place for place, name in enumerate(names)}
    if problem == "single_label_classification":
        labels: list[Any] = [number[label] for label in batch["label"]]
    elif problem == "regression":
        labels = batch["label"]
    else:
        labels = [[float(name in chosen) for name in names] for chosen in batch["labels"]]
    return {
        **found,
        "labels": labels,
        "cut": [length > max_length for length in lengths],
        "rows": [[n] for n in numbers],
    }
