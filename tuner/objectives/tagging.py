"""A tag for each word of a text: names, parts of speech; from all weights, an adapter, or a head alone."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from rich.table import Table
from rich.text import Text
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from tuner.data.cache_key import map_batches
from tuner.data.collate import IGNORED, pad
from tuner.data.draws import FILLER
from tuner.data.entities import entities, marks_entities
from tuner.data.sources import SOURCE_ROW
from tuner.errors import DataError, notice
from tuner.evaluation.baselines.words import word_tags
from tuner.objectives.arguments import ClassifyArguments
from tuner.objectives.base import SHOWN_TOKENS, Batch, Row, Sums
from tuner.objectives.heads import WithHead
from tuner.objectives.records import Comparison, Examples, Outcome, Predictions, Rows


class Tagging(WithHead):
    """tagging: the tag of each word by cross-entropy, at the word's first token (Devlin et al. 2018, section 5.3,
    https://arxiv.org/abs/1810.04805).

    The words are joined by spaces and tokenized as one text, as whoever uses the model will: with
    `is_split_into_words` a tokenizer of bytes gives other tokens (RoBERTa's, GPT-2's), or none (without
    `add_prefix_space`). Where tags mark entities (IOB, BIOES), F1 of whole entities is the metric, else accuracy.
    """

    name = "tagging"
    kinds = ("tags",)
    model, mixes = "tagger", True
    loss_unit = "nats a word"

    def __init__(self, args: ClassifyArguments, tokenizer: PreTrainedTokenizerBase, *more: Any, **named: Any):
        super().__init__(args, tokenizer, *more, **named)
        self.marks_entities = marks_entities(self.labels.names)
        self.main = "f1" if self.marks_entities else "accuracy"

    # ---- data ----

    def examples(self, rows: Dataset, name: str) -> tuple[Dataset, None]:
        arguments = {
            **{"tokenizer": self.tokenizer, "max_length": self.args.max_length, "name": name},
            **{"refuse": self.args.truncation_mode == "error", "names": self.labels.names},
        }
        how = {"num_proc": self.args.dataset_num_proc, "remove_columns": rows.column_names, "desc": "Tokenizing"}
        examples = map_batches(rows, encode_words, [__file__], arguments, with_indices=True, **how)
        if note := _without_tag(examples):
            if not any(examples["words"]):
                raise DataError(f"{name}: {note} Nothing is left.")
            notice(f"{name}: {note}")
        self.reckon(examples)
        return examples, None

    def __call__(self, rows: list[Row]) -> Batch:
        batch = self.inputs(rows)
        labels = pad([row["labels"] for row in rows], IGNORED)
        time = batch["states" if "states" in batch else "input_ids"].shape[1]
        labels = F.pad(labels, (0, time - labels.shape[1]), value=IGNORED)
        labels[torch.tensor([row["draw"] == FILLER for row in rows])] = IGNORED
        return batch | {"labels": labels}

    # ---- loss and evaluation ----

    def counted(self, labels: torch.Tensor) -> torch.Tensor:
        return labels != IGNORED

    def counts(self, batch: Batch) -> torch.Tensor:
        labels, weights = batch["labels"], self.weights
        real = self.counted(labels)
        return real.sum() if weights is None else weights.to(real.device)[labels[real]].sum()

    def sums(self, model: Any, labels: torch.Tensor, *, training: bool = False, **inputs: Any) -> Sums:
        real = self.counted(labels)
        logits, targets = self.outputs(model, **inputs).logits.float()[real], labels[real]
        weights = None if self.weights is None else self.weights.to(logits)
        smoothing = self.label_smoothing if training else 0.0
        loss = F.cross_entropy(logits, targets, weights, reduction="sum", label_smoothing=smoothing)
        if training:
            return {"loss": loss}
        said, size = logits.argmax(-1), logits.shape[1]
        found = {"loss": loss, "count": self.counts({"labels": labels})}
        found["confusion"] = torch.bincount(targets * size + said, minlength=size**2)
        if self.marks_entities:
            pairs = (self.by_row(numbers.cpu().numpy(), real.sum(1).tolist()) for numbers in (said, targets))
            counts = [
                (len(a & b), len(a), len(b)) for a, b in (map(entities, pair) for pair in zip(*pairs, strict=True))
            ]
            found["entities"] = torch.tensor(counts).sum(0)
        return found

    def by_row(self, numbers: np.ndarray, sizes: list[int]) -> list[list[str]]:
        """Tags by number, those of all rows in one list, as the names of each row's."""
        return [[self.labels.names[n] for n in row] for row in np.split(numbers, np.cumsum(sizes)[:-1])]

    def metrics(self, sums: dict[str, np.ndarray]) -> dict[str, float]:
        if not sums.get("count"):
            return {}
        table = sums["confusion"].reshape(len(self.labels.names), -1)
        found = {"loss": float(sums["loss"] / sums["count"]), "accuracy": float(table.trace() / table.sum())}
        if self.marks_entities:
            both, said, true = map(float, sums["entities"])
            precision, recall = both / max(said, 1), both / max(true, 1)
            return {**found, "precision": precision, "recall": recall, "f1": 2 * both / max(said + true, 1)}
        hits, said, true = table.diagonal(), table.sum(axis=0), table.sum(axis=1)
        return {**found, "f1_macro": float(np.mean(2 * hits / np.maximum(said + true, 1)))}

    def compare(self, outcome: Outcome) -> Comparison:
        """Beside the tag that each word most often had in training, over the words that the model sees."""
        seen = [np.array(words) for words in outcome.examples.eval.with_format(None)["words"]]
        pairs = zip(outcome.rows.eval["tokens"], outcome.rows.eval["tags"], seen, strict=True)
        words, tags = zip(*(([w[n] for n in numbers], [t[n] for n in numbers]) for w, t, numbers in pairs), strict=True)
        known = word_tags(outcome.rows.train, words, tags, self.main)
        return self.beside(outcome, known, outcome.before_and_after(self.main), self.main)

    def predict(self, outcome: Outcome) -> Predictions:
        """The logits of every word that has a tag in the validation examples."""
        logits, targets = self.held_out_logits(outcome.model, outcome.examples)
        numbers, words = outcome.examples.eval.with_format(None)["words"], outcome.rows.eval["tokens"]
        shown = [row[n] for row, places in zip(words, numbers, strict=True) for n in places]
        clusters = np.repeat(np.arange(len(numbers)), [len(places) for places in numbers])
        notes = tuple(filter(None, [_without_tag(outcome.examples.eval)]))
        return Predictions(shown, logits, targets, self.labels.names, self.problem, clusters, notes=notes)

    # ---- the dry run ----

    def describe(self, rows: Rows, examples: Examples) -> Table:
        splits = [split.with_format(None) for split in (examples.train, examples.eval)]
        table = Table("", "train", "eval", title=f"Data: {self.problem}", title_justify="left")
        table.add_row("rows", *(f"{len(split):,}" for split in splits))
        table.add_row("words", *(f"{sum(map(len, split['words'])):,}" for split in splits))
        table.add_row("rows cut at --max_length", *(f"{np.mean(split['cut']):.1%}" for split in splits))
        there = [tag for tags in rows.eval["tags"] for tag in tags]
        for name, count in zip(self.labels.names[:20], self.labels.counts, strict=False):
            table.add_row(name, f"{count:,}", f"{there.count(name):,}")
        return examples.add_shares(table)

    def show(self, draws: list[Row]) -> Any:
        for number, draw in enumerate(draws):
            text = Text(f"\nExample {number}, its first {SHOWN_TOKENS} tokens:\n", style="bold")
            pairs = list(zip(draw["input_ids"], draw["labels"], strict=True))[:SHOWN_TOKENS]
            for token, label in pairs:
                text.append(f"{self.tokenizer.decode([token])} ", style="not bold dim")
                if label != IGNORED:
                    text.append(f"{self.labels.names[label]} ", style="not bold green")
            yield text.append("\n")


def _without_tag(examples: Dataset) -> str | None:
    """What to say of words that have no tag, or nothing."""
    kept = examples.with_format(None)
    rows, words, lost = len(kept), sum(map(len, kept["words"])), sum(kept["lost"])
    if not lost:
        return None
    cut = sum(kept["cut"])
    return (
        f"{lost:,} of {words + lost:,} words have no token of their own and are neither learnt nor counted: "
        f"{cut:,} of {rows:,} rows ({cut / rows:.1%}) are cut at --max_length."
    )


def encode_words(
    batch: dict[str, list[Any]],
    indices: list[int],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    name: str,
    refuse: bool,
    names: tuple[str, ...],
) -> dict[str, list[Any]]:
    """Tokens of rows with a label at each word's first, the `words` that have one by number, how many are `lost`, and
    whether the row is `cut`."""
    texts, numbers = [" ".join(words) for words in batch["tokens"]], batch.get(SOURCE_ROW, indices)
    encoded = tokenizer(texts, return_offsets_mapping=True)
    lengths = [len(ids) for ids in encoded["input_ids"]]
    if max(lengths) > max_length:
        encoded = tokenizer(texts, truncation=True, max_length=max_length, return_offsets_mapping=True)
    found: dict[str, list[Any]] = {key: encoded[key] for key in ("input_ids", "token_type_ids") if key in encoded}
    found |= {"labels": [], "words": [], "lost": [], "cut": []}
    place = {tag: number for number, tag in enumerate(names)}
    for row, (words, tags, number) in enumerate(zip(batch["tokens"], batch["tags"], numbers, strict=True)):
        if refuse and lengths[row] > max_length:
            raise DataError(
                f"{name}, row {number}: {lengths[row]} tokens, longer than --max_length {max_length} "
                "(--truncation_mode error)."
            )
        ends = [end - 1 for end in accumulate(len(word) + 1 for word in words)]
        labels, seen = [IGNORED] * len(encoded["input_ids"][row]), [-1]
        for token, (start, end) in enumerate(encoded["offset_mapping"][row]):
            # The first word that ends behind the token's beginning; a token may begin with the space before its word.
            word = bisect_right(ends, start)
            if start < end and word > seen[-1] and end > ends[word] - len(words[word]):
                seen.append(word)
                labels[token] = place[tags[word]]
        found["labels"].append(labels)
        found["words"].append(seen[1:])
        found["lost"].append(len(words) - len(seen[1:]))
        found["cut"].append(lengths[row] > max_length)
    return found
