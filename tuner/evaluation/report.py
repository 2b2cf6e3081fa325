"""What is written beside the model when a run ends, and what its user then sees.

`metrics.json` first: one schema for every method. The comparison with baselines, `loss.png` and samples come after it,
and none of them can lose the run: what fails is a warning.

    {"objective", "steps", "saved_step", "train_loss", "eval": {metric: value}, "untrained": {metric: value},
     "comparison": {metric: {who: value}}, "speed": {...}, "data": {"train": {...}, "eval": {...}} or null, "log"}
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tuner.errors import one_line
from tuner.evaluation.samples import SampleCallback
from tuner.loading.models import build_model
from tuner.objectives.records import Comparison, Outcome, Rows
from tuner.train.trainer import Trainer

SPEEDS = ("tokens_per_second", "supervised_tokens_per_second", "peak_share")


def write_report(trainer: Trainer, rows: Rows) -> dict[str, Any]:
    """Evaluate, and write `metrics.json`, `loss.png` and what samples there are into the run's folder. Every process
    evaluates and returns what `metrics.json` holds; the main one compares, writes and prints.
    """
    history = trainer.state.log_history
    evaluated = [entry for entry in history if any(name.startswith("eval_") for name in entry)]
    done = [entry for entry in evaluated if entry.get("step") == trainer.saved_step()]
    after = done[-1] if done else trainer.evaluate()
    before: dict[str, Any] = next((entry for entry in evaluated if entry.get("step") == 0), {})
    rates: dict[str, Any] = next((entry for entry in reversed(history) if SPEEDS[0] in entry), {})
    reports = trainer.examples.reports
    metrics: dict[str, Any] = {
        "objective": trainer.objective.name,
        "steps": trainer.state.global_step,
        "saved_step": trainer.saved_step(),
        "train_loss": trainer.mean_loss(),
        "eval": _metrics(after),
        "untrained": _metrics(before),
        "comparison": {},
        "speed": {name: rates.get(name) for name in SPEEDS},
        "data": reports and dict(zip(("train", "eval"), (report.to_dict() for report in reports), strict=True)),
        "log": history,
    }
    if not trainer.is_world_process_zero():
        return metrics
    folder, written = trainer.folder, ["the model", "metrics.json"]
    _write(folder, metrics)
    trained = trainer.accelerator.unwrap_model(trainer.model)
    # What the model was when the run began: of its seed, or of its checkpoint.
    start = (trainer.run.args, trainer.objective.model, trainer.objective.tokenizer)
    outcome = Outcome(trained, rows, trainer.examples, after, before, lambda: build_model(*start)[0])
    if _survives(lambda: metrics.update(comparison=trainer.objective.compare(outcome)), "The comparison"):
        _write(folder, metrics)
        show_comparison(metrics["comparison"], trainer.objective.name)
    if _survives(lambda: plot_losses(folder / "loss.png", metrics, trainer.objective.loss_unit), "loss.png"):
        written.append("loss.png")
    samples = next((c for c in trainer.callback_handler.callbacks if isinstance(c, SampleCallback)), None)
    if samples is not None and _survives(lambda: samples.finish(trainer), "samples.md") and samples.conversations:
        samples.show()
        written.append("samples.md")
    console = Console(highlight=False)
    console.print(f"Written to {folder}: {', '.join([*written, 'run.yaml'])}")
    if samples is not None and samples.conversations and rows.kind == "messages":
        console.print(f"Chat with it:  tuner chat {folder}", style="bold")
    return metrics


def _survives(work: Callable[[], Any], name: str) -> bool:
    """Do what a finished run can do without; a failure is a warning."""
    try:
        work()
    except Exception as error:  # whatever it is, the model and its metrics are written
        warnings.warn(f"{name} could not be made: {type(error).__name__}: {one_line(error)}", stacklevel=2)
        return False
    return True


def _metrics(entry: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("eval_"): value for name, value in entry.items() if name.startswith("eval_")}


def _write(folder: Path, metrics: dict[str, Any]) -> None:
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1), encoding="utf-8")


def show_comparison(comparison: Comparison, objective: str) -> None:
    """Print a line for each metric, a column for each who is compared."""
    table = Table("", title=f"{objective}, on the validation rows", title_justify="left")
    names = list(dict.fromkeys(name for values in comparison.values() for name in values))
    for name in names:
        table.add_column(name, justify="right")
    for metric, values in comparison.items():
        table.add_row(metric, *(f"{values[name]:.4g}" if name in values else "-" for name in names))
    Console(highlight=False).print(table)


def plot_losses(path: Path, metrics: dict[str, Any], unit: str) -> None:
    """Draw training and validation loss over steps; baselines of the loss as dashed lines."""
    from matplotlib.figure import Figure

    log = metrics["log"]
    losses = [(entry["step"], entry["loss"]) for entry in log if "loss" in entry]
    evaluations = [(entry["step"], entry["eval_loss"]) for entry in log if "eval_loss" in entry]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    if losses:
        axes.plot(*zip(*losses, strict=True), label="training", color="tab:blue", alpha=0.7)
    if evaluations:
        axes.plot(*zip(*evaluations, strict=True), "o-", label="validation", color="tab:orange")
    for who, value in metrics["comparison"].get(unit, {}).items():
        if who not in ("untrained", "trained"):
            axes.axhline(value, linestyle="--", color="gray", label=f"{who} ({value:.2f})")
    axes.set(xlabel="optimizer step", ylabel=f"loss, {unit}")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    figure.savefig(path, dpi=130)
