"""The dry run: what a run would do, shown before it does it.

Resolved arguments, what became of the rows, two examples with what is learnt in green, the model's size, and estimates
of memory and time: memory by counting tensors, time by counting operations against the measured peak.
"""

from __future__ import annotations

import math
from itertools import islice

from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedModel

from tuner.corpus.stream import TokenStream
from tuner.data.draws import Draws
from tuner.estimate.model import Operations, parameters_by_component, training_bytes
from tuner.hardware import measure_peak, memory_bytes
from tuner.objectives.base import Objective
from tuner.objectives.records import Examples, Rows
from tuner.text.train_tokenizer import measure
from tuner.train.callbacks import count_batch
from tuner.train.run import Run, product_dtype

# Share of the measured peak that training steps were seen to reach on CPUs (0.2 to 0.5).
ASSUMED_PEAK_SHARE = 0.3
# Validation texts that the tokenizer is measured on.
MEASURED = 500


def show_plan(run: Run, rows: Rows, objective: Objective, examples: Examples, model: PreTrainedModel) -> None:
    """Print the plan of a run. Trains nothing and writes nothing."""
    console = Console(highlight=False)
    console.print(_arguments(run))
    if rows.cleaning is not None:
        table = _table("Cleaning", "step", "documents", "characters", "documents changed")
        for row in rows.cleaning.rows():
            table.add_row(*row)
        console.print(table)
    console.print(objective.describe(rows, examples) or _counts(rows, examples))
    if rows.kind == "text":
        console.print(_tokenizer(rows, objective))
    streamed = isinstance(examples.train, TokenStream)
    draws = list(islice(iter(examples.train if streamed else Draws(examples.train)), 2))
    for text in objective.show(draws):
        console.print(text)
    console.print(_parameters(model))
    console.print(_estimates(run, objective, examples, model))
    console.print("Dry run: nothing was trained and nothing was written.", style="bold")


def _table(title: str, *columns: str) -> Table:
    """A table whose first column is words and whose others are numbers."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    return table


def _arguments(run: Run) -> Table:
    table = _table("Resolved arguments", "flag", "value")
    for name, value in {**run.args.shown(), "bf16": run.training.bf16, "use_cpu": run.training.use_cpu}.items():
        if value is not None:
            table.add_row(name, Text(str(value)))
    table.add_row("continues from", str(run.checkpoint or "nothing: starts at step 0"))
    return table


def _counts(rows: Rows, examples: Examples) -> Table:
    table = _table("Data", "", "train", "eval")
    streamed = isinstance(examples.train, TokenStream)
    sizes = ["a stream"] * 2 if streamed else [f"{len(split):,}" for split in (rows.train, examples.train)]
    table.add_row("documents", sizes[0], f"{len(rows.eval):,}")
    table.add_row("examples", sizes[1], f"{len(examples.eval):,}")
    return table


def _tokenizer(rows: Rows, objective: Objective) -> Table:
    found = measure(objective.tokenizer, rows.eval.select(range(min(MEASURED, len(rows.eval))))["text"])
    table = _table("Tokenizer, on validation text", "", "")
    table.add_row("bytes a token", f"{found['bytes_per_token']:.2f}")
    table.add_row("characters that it knows", f"{found['coverage']:.2%}")
    return table


def _parameters(model: PreTrainedModel) -> Table:
    table = _table(f"Parameters of {type(model).__name__}", "component", "number", "share")
    sizes = parameters_by_component(model)
    total = sum(sizes.values())
    for component, count in [*sizes.items(), ("all", total)]:
        table.add_row(component, f"{count:,}", f"{count / total:.1%}")
    return table


def _estimates(run: Run, objective: Objective, examples: Examples, model: PreTrainedModel) -> Table:
    training = run.training
    per_device = training.per_device_train_batch_size
    per_step = per_device * training.gradient_accumulation_steps * training.world_size
    streamed = isinstance(examples.train, TokenStream)
    an_epoch = 0 if streamed else math.ceil(len(examples.train) / per_step)
    steps = training.max_steps if training.max_steps > 0 else math.ceil(an_epoch * training.num_train_epochs)
    draws = examples.train if streamed else Draws(examples.train)
    batch = objective(list(islice(iter(draws), per_device)))
    width = batch["input_ids"].numel()
    tokens, labels, pairs = (float(count) for count in count_batch(batch))
    memory = training_bytes(model, width, int(labels), training.bf16, bool(training.activation_checkpointing))
    operations = steps * (per_step / per_device) * Operations.of(model).training(tokens, labels, pairs)
    peak = measure_peak(product_dtype(training, model)) * ASSUMED_PEAK_SHARE * training.world_size
    table = _table("Estimates", "what", "how much")
    for name, size in memory.items():
        table.add_row(f"memory: {name}", f"{size / 2**20:,.0f} MiB")
    table.add_row("memory: all", f"{sum(memory.values()) / 2**20:,.0f} of {memory_bytes() / 2**20:,.0f} MiB")
    table.add_row("optimizer steps", f"{steps:,}" + (f", {an_epoch:,} an epoch" if an_epoch else ""))
    table.add_row("tokens", f"{steps * per_step / per_device * tokens:,.0f}")
    minutes = operations / peak / 60
    table.add_row("time of the steps", f"{minutes:,.1f} minutes, at {ASSUMED_PEAK_SHARE:.0%} of the measured peak")
    return table
