"""The next token: of raw text (`clm`), and of the answers in conversations (`sft`)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedModel

from tuner.config.arguments import RecipeArguments
from tuner.corpus.stream import TokenStream
from tuner.data.collate import IGNORED, collate_causal
from tuner.data.draws import FILLER
from tuner.data.encode import encode_dataset
from tuner.data.encoding_report import EncodingReport
from tuner.data.pack import pack_dataset
from tuner.errors import ModelError
from tuner.evaluation.baselines.ngrams import KneserNey, is_small, unigram_loss
from tuner.model import TunerPreTrainedModel
from tuner.objectives.arguments import TextArguments
from tuner.objectives.base import SHOWN_TOKENS, A, Batch, Objective, Row, Sums, own_class
from tuner.objectives.records import Comparison, Examples, Outcome, Rows
from tuner.ops.chunked_loss import chunked_cross_entropy, supervised_positions
from tuner.text.answers import training_tokenizer


class NextToken(Objective[A]):
    """`-log p(token | those before it)` over the tokens that have a label, for any causal model of transformers, bare
    or in a PEFT wrapper. Where the layout says so, the loss is computed in chunks (`tuner.ops.chunked_loss`)."""

    keeps_rows, mixes = True, True

    def __call__(self, rows: list[Row]) -> Batch:
        rows = [self.sequence(row) for row in rows]
        blank = [
            {**row, "labels": np.full_like(row["labels"], IGNORED)} if row["draw"] == FILLER else row for row in rows
        ]
        batch = collate_causal(blank, self.tokenizer.pad_token_id, self.layout.padding_free)
        if self.layout.masks and not self.layout.padding_free and not self.layout.packing:
            batch["attention_mask"] = (torch.arange(batch["labels"].shape[1]) < batch["tokens"][:, None]).long()
        return batch

    def sequence(self, row: Row) -> Row:
        """A draw with `input_ids` and `labels`."""
        return row

    def counts(self, batch: Batch) -> torch.Tensor:
        return (batch["labels"][:, 1:] != IGNORED).sum()

    def check_model(self, model: PreTrainedModel) -> None:
        for flag in ("z_loss", "label_smoothing_factor"):
            if self.args.values().get(flag) and not self.layout.chunked_loss:
                raise ModelError(f"--{flag} is not for {type(model).__name__}, which keeps its own loss.")

    def sums(self, model: Any, labels: torch.Tensor, *, training: bool = False, **inputs: Any) -> Sums:
        if self.layout.chunked_loss:
            return super().sums(model, labels, training=training, **inputs)
        # The model's own, which holds the logits of all tokens; a mean, so that there must be something to average.
        count = int((labels[:, 1:] != IGNORED).sum())
        outputs = own_class(model).forward(model, labels=labels, use_cache=False, **inputs)
        return {
            "loss": outputs.loss * count if count else outputs.logits.sum() * 0,
            "count": labels.new_full((), count),
        }

    def hidden(self, model: Any, labels: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, torch.Tensor, Any]:
        inputs = model.with_router(labels, inputs) if isinstance(model, TunerPreTrainedModel) else inputs
        outputs = model.base_model(**inputs, use_cache=False)
        return *supervised_positions(outputs.last_hidden_state, labels), outputs

    def examples(self, rows: Dataset, name: str) -> tuple[Dataset, EncodingReport]:
        args = self.args
        cut = (args.max_length, args.truncation_mode, args.max_labels_lost, args.dataset_num_proc)
        encoded, report = self.encode(rows, *cut, name)
        return pack_dataset(encoded, args.max_length) if self.layout.packing else encoded, report

    def encode(self, rows: Dataset, *how: Any) -> tuple[Dataset, EncodingReport]:
        """Rows as sequences (`tuner.data.encode`), and what became of them."""
        return encode_dataset(rows, "messages" if "messages" in rows.column_names else "text", self.tokenizer, *how)

    def describe(self, rows: Rows, examples: Examples) -> Table | None:
        table = super().describe(rows, examples)
        if table is None:
            return None
        if self.layout.packing:
            table.add_row("blocks", f"{len(examples.train):,}", f"{len(examples.eval):,}")
        if rows.kind != "text":
            table.caption = f"Answers are found by {training_tokenizer(self.tokenizer)[1]}."
        return table

    def show(self, draws: list[Row]) -> Iterator[Text]:
        """What is learnt in green, where it stands."""
        for number, draw in enumerate(map(self.sequence, draws)):
            ids, labels = (draw[name][:SHOWN_TOKENS].tolist() for name in ("input_ids", "labels"))
            head = f"\nTraining row {number}, its first {SHOWN_TOKENS} tokens; what is learnt is green:\n"
            text = Text(head, style="bold")
            for learnt, tokens in groupby(zip(ids, labels, strict=True), lambda token: token[1] != IGNORED):
                piece = self.tokenizer.decode([i for i, _ in tokens], clean_up_tokenization_spaces=False)
                text.append(piece, style="not bold green" if learnt else "not bold dim")
            yield text.append("\n")


class SFT(NextToken[RecipeArguments]):
    """sft: the assistant's tokens of conversations, or all of a text (Ouyang et al. 2022, section 3.5,
    https://arxiv.org/abs/2203.02155)."""

    name = "sft"
    kinds = ("messages", "text")
    loss_unit = "nats a supervised token"

    def compare(self, outcome: Outcome) -> Comparison:
        unigram = unigram_loss(outcome.examples.train, outcome.examples.eval, len(self.tokenizer))
        return {self.loss_unit: {"unigram model": unigram, **outcome.before_and_after("loss")}}


class CausalLM(NextToken[TextArguments]):
    """clm: every token of raw text, of whole documents packed into blocks, none seeing another (Bengio et al. 2003)."""

    arguments = TextArguments
    name = "clm"
    streams = True

    def stream(self, documents: Any, clean: Any = None) -> TokenStream:
        """Blocks of documents that are read while training."""
        first, last = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        before = first if first != last else None  # one mark for both, as GPT-2's, stands between documents once
        return TokenStream(documents, self.tokenizer, self.args.max_length, None, before, last, clean)

    def sequence(self, row: Row) -> Row:
        """A block of a stream gets `labels`, and `position_ids` that start again after each document's end."""
        if "labels" in row:
            return row
        ids = row["input_ids"]
        starts = np.concatenate([[True], ids[:-1] == self.tokenizer.eos_token_id])
        first = np.maximum.accumulate(np.where(starts, np.arange(len(ids)), 0))
        return {
            **row,
            "labels": np.where(starts, IGNORED, ids),
            "position_ids": np.arange(len(ids)) - first,
            "rows": [row["row"]],
        }

    def token_sums(
        self, model: Any, hidden: torch.Tensor, targets: torch.Tensor, outputs: Any, training: bool, inputs: Any
    ) -> Sums:
        sums = super().token_sums(model, hidden, targets, outputs, training, inputs)
        if not training:
            ends, head = targets == self.tokenizer.eos_token_id, model.get_output_embeddings()
            sums["end_loss"] = chunked_cross_entropy(hidden[ends], head.weight, targets[ends], head.bias)
        return sums

    def compare(self, outcome: Outcome) -> Comparison:
        """Beside a Kneser-Ney 5-gram: both are asked for the same tokens, all of a sequence but its first. A byte's
        perplexity is given with the end tokens and without, as lm-eval has it: they are no bytes of the text."""
        losses, ends = outcome.before_and_after("loss"), outcome.before_and_after("end_loss")
        if isinstance(outcome.examples.train, TokenStream):
            return {self.loss_unit: losses}
        tokens = list(_sequences(outcome.examples.eval))
        count = sum(len(ids) - 1 for ids in tokens)
        if is_small(outcome.rows.train):
            grams = KneserNey(_sequences(outcome.examples.train), len(self.tokenizer))
            odds = np.concatenate([grams.log_probabilities(ids)[1:] for ids in tokens])
            are_ends = np.concatenate([ids[1:] for ids in tokens]) == self.tokenizer.eos_token_id
            losses = {"5-gram": -float(odds.sum()) / count, **losses}
            ends = {"5-gram": -float(odds[are_ends].sum()) / count, **ends}
        size = sum(len(self.tokenizer.decode(ids, skip_special_tokens=True).encode()) for ids in tokens)

        def a_byte(nats: dict[str, float]) -> dict[str, float]:
            return {who: math.exp(loss * count / size) for who, loss in nats.items()}

        found = {"perplexity a byte, end tokens counted": a_byte(losses)}
        if "trained" in ends:  # they are not known apart where a model computes its own loss
            found["perplexity a byte, end tokens not counted"] = a_byte({who: losses[who] - ends[who] for who in ends})
        return {**found, self.loss_unit: losses}


def _sequences(blocks: Dataset) -> Iterator[np.ndarray]:
    """The sequences of packed blocks: positions start again with each."""
    for block in blocks.with_format("numpy"):
        starts = np.flatnonzero(block["position_ids"] == 0) if "position_ids" in block else [0]
        yield from np.split(block["input_ids"], starts[1:])
