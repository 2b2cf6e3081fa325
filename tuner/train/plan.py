"""The dry run: what a run would do, shown before it does it.

Resolved arguments, the data and what is lost of it, the first two rows with what is learnt in green, the model's size,
and estimates of memory and time. Estimates are estimates: memory by counting tensors (`size.py`), time by counting
operations against the measured peak.
"""

from __future__ import annotations

import math

from datasets import Dataset
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tuner.estimate.sizes import linear_sizes, parameters_by_component, training_bytes
from tuner.hardware import measure_peak, memory_bytes
from tuner.train.prepare import Sequences
from tuner.train.run import Run, joins_rows, product_dtype

# Share of the measured peak that training steps were seen to reach on CPUs (0.2 to 0.5).
ASSUMED_PEAK_SHARE = 0.3
SHOWN_TOKENS = 160


def show_plan(run: Run, data: Sequences, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Print the plan of a run. Trains nothing and writes nothing."""
    console = Console(highlight=False)
    console.print(arguments_table(run))
    console.print(_data(data))
    for number in range(min(2, len(data.train))):
        console.print(_row(data.train, number, tokenizer))
    console.print(parameters_table(model))
    console.print(_estimates(run, data, model))
    console.print("Dry run: nothing was trained and nothing was written.", style="bold")


def new_table(title: str, *columns: str) -> Table:
    """A table whose first column is words and whose others are numbers."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    return table


def arguments_table(run: Run) -> Table:
    """Every resolved argument."""
    table = new_table("Resolved arguments", "flag", "value")
    for name, value in {**run.args.values(), "bf16": run.training.bf16, "use_cpu": run.training.use_cpu}.items():
        if value is not None:
            table.add_row(name, Text(str(value)))
    table.add_row("continues from", str(run.checkpoint or "nothing: starts at step 0"))
    return table


def _data(data: Sequences) -> Table:
    table = new_table("Data", "", "train", "eval")
    reports = (data.train_report, data.eval_report)
    for name, form in (
        *(("rows", "{0.rows:,}"), ("sequences", "{0.sequences:,}"), ("tokens", "{0.tokens:,}")),
        *(("truncated", "{0.share_truncated:.1%}"), ("labels lost", "{0.share_labels_lost:.1%}")),
        ("supervised", "{0.share_supervised:.1%}"),
    ):
        table.add_row(name, *(form.format(report) for report in reports))
    if "position_ids" in data.train.column_names:
        table.add_row("blocks", f"{len(data.train):,}", f"{len(data.eval):,}")
    return table


def _row(rows: Dataset, number: int, tokenizer: PreTrainedTokenizerBase) -> Text:
    row = rows[number]
    text = Text(f"\nTraining row {number}, its first {SHOWN_TOKENS} tokens; what is learnt is green:\n", style="bold")
    learnt = [label != -100 for label in row["labels"][:SHOWN_TOKENS]]
    start = 0
    for end in range(1, len(learnt) + 1):
        if end == len(learnt) or learnt[end] != learnt[start]:
            piece = tokenizer.decode(row["input_ids"][start:end], clean_up_tokenization_spaces=False)
            text.append(piece, style="not bold green" if learnt[start] else "not bold dim")
            start = end
    text.append("\n")
    return text


def parameters_table(model: PreTrainedModel) -> Table:
    """Parameters by component."""
    table = new_table(f"Parameters of {type(model).__name__}", "component", "number", "share")
    sizes = parameters_by_component(model)
    total = sum(sizes.values())
    for component, count in [*sizes.items(), ("all", total)]:
        table.add_row(component, f"{count:,}", f"{count / total:.1%}")
    return table


def _estimates(run: Run, data: Sequences, model: PreTrainedModel) -> Table:
    training = run.training
    batch = training.per_device_train_batch_size
    per_step = batch * training.gradient_accumulation_steps * training.world_size
    steps_an_epoch = math.ceil(len(data.train) / per_step)
    steps = training.max_steps if training.max_steps > 0 else math.ceil(steps_an_epoch * training.num_train_epochs)
    tokens = data.train_report.tokens / len(data.train)
    padded = run.args.max_length if run.args.packing else min(2 * tokens, run.args.max_length)
    width = tokens if joins_rows(run, model) else padded
    supervised = data.train_report.share_supervised
    memory = training_bytes(
        model,
        int(batch * width),
        int(batch * tokens * supervised),
        training.bf16,
        bool(training.activation_checkpointing),
    )
    weights, head, attention = linear_sizes(model)
    operations = steps * per_step * tokens * (6 * (weights + supervised * head) + attention * width / 2)
    peak = measure_peak(product_dtype(training, model)) * ASSUMED_PEAK_SHARE * training.world_size
    seconds = operations / peak
    table = new_table("Estimates", "what", "how much")
    for name, size in memory.items():
        table.add_row(f"memory: {name}", f"{size / 2**20:,.0f} MiB")
    table.add_row("memory: all", f"{sum(memory.values()) / 2**20:,.0f} of {memory_bytes() / 2**20:,.0f} MiB")
    table.add_row("optimizer steps", f"{steps:,}, {steps_an_epoch:,} an epoch")
    table.add_row("tokens", f"{steps * per_step * tokens:,.0f}")
    table.add_row("time of the steps", f"{seconds / 60:,.1f} minutes, at {ASSUMED_PEAK_SHARE:.0%} of the measured peak")
    return table
