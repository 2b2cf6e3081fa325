"""The dry run: what a run would do, shown before it does it.

Resolved arguments, what became of the rows, two examples with what is learnt in green, the model's size, and estimates
of memory and time: memory by counting tensors, time by counting operations against the measured peak.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import islice

from rich.console import Console
from rich.markup import escape
from rich.table import Table
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
    shown = {**run.args.shown(), "bf16": run.training.bf16, "use_cpu": run.training.use_cpu}
    shown["continues from"] = run.checkpoint or "nothing: starts at step 0"
    arguments = [(name, escape(str(value))) for name, value in shown.items() if value is not None]
    console.print(table("Resolved arguments", ("flag", "value"), arguments))
    if rows.cleaning is not None:
        columns = ("step", "documents", "characters", "documents changed")
        steps = [(name, *(f"{number:,}" for number in numbers)) for name, *numbers in rows.cleaning]
        console.print(table("Cleaning", columns, steps))
    streamed = isinstance(examples.train, TokenStream)
    console.print(objective.describe(rows, examples) or _counts(rows, examples, streamed))
    if rows.kind == "text":
        found = measure(objective.tokenizer, rows.eval.select(range(min(MEASURED, len(rows.eval))))["text"])
        known = {
            "bytes a token": f"{found['bytes_per_token']:.2f}",
            "characters known": f"{found['coverage']:.2%}",
        }
        console.print(table("Tokenizer, on validation text", ("", ""), known.items()))
    draws = examples.train if streamed else Draws(examples.train)
    for text in objective.show(list(islice(iter(draws), 2))):
        console.print(text)
    sizes = parameters_by_component(model)
    total = sum(sizes.values())
    parts = [(name, f"{count:,}", f"{count / total:.1%}") for name, count in [*sizes.items(), ("all", total)]]
    console.print(table(f"Parameters of {type(model).__name__}", ("component", "number", "share"), parts))
    batch = objective(list(islice(iter(draws), run.training.per_device_train_batch_size)))
    console.print(_estimates(run, batch, 0 if streamed else len(examples.train), model))
    console.print("Dry run: nothing was trained and nothing was written.", style="bold")


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> Table:
    """A table whose first column is words and whose others are numbers."""
    made = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        made.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def _counts(rows: Rows, examples: Examples, streamed: bool) -> Table:
    sizes = ["a stream"] * 2 if streamed else [f"{len(split):,}" for split in (rows.train, examples.train)]
    held_out = (f"{len(split):,}" for split in (rows.eval, examples.eval))
    counts = table("Data", ("", "train", "eval"), zip(("documents", "examples"), sizes, held_out, strict=True))
    return examples.add_shares(counts)


def _estimates(run: Run, batch: dict, examples: int, model: PreTrainedModel) -> Table:
    training = run.training
    batches = training.gradient_accumulation_steps * training.world_size  # in a step
    an_epoch = math.ceil(examples / (training.per_device_train_batch_size * batches))  # steps; of a stream, 0
    steps = training.max_steps if training.max_steps > 0 else math.ceil(an_epoch * training.num_train_epochs)
    tokens, labels, pairs = count_batch(batch).tolist()
    width = batch["input_ids"].numel()
    memory = training_bytes(model, width, labels, training.bf16, bool(training.activation_checkpointing))
    operations = steps * batches * Operations.of(model).training(tokens, labels, pairs)
    peak = measure_peak(product_dtype(training, model)) * ASSUMED_PEAK_SHARE * training.world_size
    minutes = f"{operations / peak / 60:,.1f} minutes, at {ASSUMED_PEAK_SHARE:.0%} of the measured peak"
    rows = {
        **{f"memory: {name}": f"{size / 2**20:,.0f} MiB" for name, size in memory.items()},
        "memory: all": f"{sum(memory.values()) / 2**20:,.0f} of {memory_bytes() / 2**20:,.0f} MiB",
        "optimizer steps": f"{steps:,}" + (f", {an_epoch:,} an epoch" if an_epoch else ""),
        "tokens": f"{steps * batches * tokens:,.0f}",
        "time of the steps": minutes,
    }
    return table("Estimates", ("what", "how much"), rows.items())
