"""The dry run of pretraining: what cleaning removed, what the tokenizer makes of the text, what the model is asked."""

from __future__ import annotations

import math
from itertools import islice
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tuner.corpus.corrupt import IGNORED
from tuner.corpus.stream import TokenStream
from tuner.data.draws import Draws
from tuner.estimate.sizes import linear_sizes
from tuner.hardware import measure_peak
from tuner.objectives.base import Objective
from tuner.text.train_tokenizer import measure
from tuner.train.plan import ASSUMED_PEAK_SHARE, SHOWN_TOKENS, arguments_table, new_table, parameters_table
from tuner.train.pretraining import Documents, Examples
from tuner.train.run import Run, product_dtype

# Validation documents that the tokenizer is measured on.
MEASURED = 500


def show_pretraining_plan(
    run: Run,
    documents: Documents,
    objective: Objective,
    examples: Examples,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Print the plan of a run. Trains nothing and writes nothing."""
    console = Console(highlight=False)
    console.print(arguments_table(run))
    if documents.cleaning is not None:
        table = new_table("Cleaning", "step", "documents", "characters", "documents changed")
        for row in documents.cleaning.rows():
            table.add_row(*row)
        console.print(table)
    console.print(_text(documents, examples, tokenizer))
    draws = examples.train if isinstance(examples.train, TokenStream) else Draws(examples.train)
    drawn = list(islice(iter(draws), 2))
    batch = objective(drawn)
    for number in range(len(batch["input_ids"])):
        console.print(_example(batch, number, tokenizer))
    console.print(parameters_table(model))
    console.print(_estimates(run, float(batch["tokens"].sum()) / len(drawn), examples, model))
    console.print("Dry run: nothing was trained and nothing was written.", style="bold")


def _text(documents: Documents, examples: Examples, tokenizer: PreTrainedTokenizerBase) -> Table:
    table = new_table("Text", "", "train", "eval")
    streamed = isinstance(examples.train, TokenStream)
    sizes = ["a stream"] * 2 if streamed else [f"{len(rows):,}" for rows in (documents.train, examples.train)]
    table.add_row("documents", sizes[0], f"{len(documents.eval):,}")
    table.add_row("examples", sizes[1], f"{len(examples.eval):,}")
    found = measure(tokenizer, documents.eval.select(range(min(MEASURED, len(documents.eval))))["text"])
    table.add_row("bytes a token", "", f"{found['bytes_per_token']:.2f}")
    table.add_row("characters that the tokenizer knows", "", f"{found['coverage']:.2%}")
    return table


def _example(batch: dict[str, torch.Tensor], number: int, tokenizer: PreTrainedTokenizerBase) -> Text:
    """What the model reads, and green what it is asked for; of the token before, in causal models."""
    ids = batch["input_ids"][number, :SHOWN_TOKENS].tolist()
    text = Text(f"\nExample {number}, its first {SHOWN_TOKENS} tokens:\n", style="bold")
    text.append(tokenizer.decode([i for i in ids if i != tokenizer.pad_token_id]), style="not bold dim")
    labels = batch["labels"]
    if labels.dim() == 2 and number < len(labels):
        wanted = [i for i in labels[number, :SHOWN_TOKENS].tolist() if i != IGNORED]
        text.append("\nis to give\n", style="bold")
        text.append(tokenizer.decode(wanted), style="not bold green")
    text.append("\n")
    return text


def _estimates(run: Run, tokens_per_example: float, examples: Examples, model: Any) -> Table:
    training = run.training
    per_step = training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size
    an_epoch = 0 if isinstance(examples.train, TokenStream) else math.ceil(len(examples.train) / per_step)
    steps = training.max_steps if training.max_steps > 0 else math.ceil(an_epoch * training.num_train_epochs)
    tokens = steps * per_step * tokens_per_example
    weights, head, _ = linear_sizes(model)
    peak = measure_peak(product_dtype(training, model)) * ASSUMED_PEAK_SHARE * training.world_size
    table = new_table("Estimates", "what", "how much")
    table.add_row("optimizer steps", f"{steps:,}" + (f", {an_epoch:,} an epoch" if an_epoch else ""))
    table.add_row("tokens", f"{tokens:,.0f}")
    minutes = tokens * 6 * (weights + head) / peak / 60
    table.add_row("time of the steps", f"{minutes:,.1f} minutes, at {ASSUMED_PEAK_SHARE:.0%} of the measured peak")
    return table
