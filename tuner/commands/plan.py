"""`tuner plan`: what a configuration is, before anything is built: parameters, operations, memory.

The model is laid out on the meta device, where tensors have shapes and no memory, so that any size can be asked about.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tuner.config.flags import number
from tuner.errors import ArgumentError


def add_parser(subparsers: Any) -> None:
    """Add the command's flags."""
    parser = subparsers.add_parser("plan", help="parameters, operations and memory of a configuration")
    text = "a preset, a folder, a config.json, a Hub id, builtin:<name>, or a recipe's YAML for its cost too"
    parser.add_argument("model", metavar="CONFIG", help=text)
    count = number(int, 1)
    parser.add_argument("--context", type=count, metavar="INT", help="tokens of context (default: the longest)")
    text = "that train by a recipe's YAML (default: %(default)s)"
    parser.add_argument("--processes", type=count, default=1, metavar="INT", help=text)
    text = "the picture (default: %(default)s)"
    parser.add_argument("--output", type=Path, default=Path("parameters.png"), metavar="FILE", help=text)


def main(args: argparse.Namespace) -> None:
    """Print a configuration's tables, and draw its parameters; an `ArgumentError` where that cannot be written."""
    from rich.console import Console

    from tuner.estimate.model import Operations, cache_bytes, parameters_by_component, state_bytes
    from tuner.estimate.plan import cost, read_plan

    model, longest, tokens = read_plan(args.model)
    context = args.context or longest
    console = Console(highlight=False)
    sizes = parameters_by_component(model)
    total = sum(sizes.values())
    shares = [(name, f"{size:,}", f"{size / total:.1%}") for name, size in [*sizes.items(), ("all", total)]]
    console.print(_table(f"Parameters of {args.model}", shares))
    counted = Operations.of(model)
    training = counted.training(1, 1, context)
    found = [
        ("weights", counted.products(1, 1)),
        (f"attention over {context:,}", counted.attention(1, 1, context)),
        ("forward", counted.forward(1, 1, context)),
        ("training", training),
    ]
    console.print(_table("Operations a token", [(name, f"{count:,.0f}") for name, count in found]))
    if tokens is not None:
        title = f"Training by {args.processes} process{'es' if args.processes > 1 else ''}"
        console.print(_table(title, cost(tokens * args.processes, training).items()))
    cache = cache_bytes(counted, context)
    ways = (("float32", 4, False), ("bf16 mixed precision", 4, True), ("--dtype bfloat16", 2, False))
    held = [(f"training, {name}", sum(state_bytes(model, size, mixed).values())) for name, size, mixed in ways]
    for name, size in (("float32", 4), ("bfloat16", 2), ("int8", 1)):
        held.append((f"inference, {name}", size * total + cache))
    console.print(_table("Memory", [(name, f"{size / 2**20:,.1f} MiB") for name, size in held]))
    if cache:
        console.print(f"KV cache in bfloat16: {cache_bytes(counted, 1):,} bytes a token.")
    output = args.output.expanduser()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _draw(sizes, f"{args.model}: {total / 1e6:,.1f} M", output)
    except (OSError, ValueError) as error:
        raise ArgumentError(f"--output {output} cannot be written: {error}") from error
    console.print(f"Written to {output}")


def _draw(sizes: dict[str, int], title: str, path: Path) -> None:
    """A bar for each component."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.45 * len(sizes) + 1), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(list(sizes), [size / 1e6 for size in sizes.values()])
    axes.bar_label(bars, [f"{size / sum(sizes.values()):.1%}" for size in sizes.values()], padding=3)
    axes.set(xlabel="million parameters", title=title)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    figure.savefig(path, dpi=130)


def _table(title: str, rows: Iterable[tuple[str, ...]]) -> Any:
    """A table whose first column is words and whose others are numbers."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False)
    for row in rows:
        table.add_row(*row)
    for column in table.columns[1:]:
        column.justify = "right"
    return table
