"""What is written beside the model when a run ends, and what its user then sees.

`metrics.json` first: one schema for every method. The comparison with baselines, `loss.png` and samples come after it,
and none of them can lose the run: what fails is a warning.

    {"objective", "steps", "saved_step", "train_loss", "eval": {metric: value}, "untrained": {metric: value},
     "comparison": {metric: {who: value}}, "classes": {figure: {"value", "low", "high", ...}} (of rows with labels),
     "speed": {...}, "data": {"train": {...}, "eval": {...}} or null, "log"}
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from tuner.errors import survive
from tuner.evaluation.samples import SampleCallback
from tuner.loading.models import build_model
from tuner.objectives.records import Comparison, Outcome, Rows
from tuner.train.plan import table
from tuner.train.trainer import Trainer

FILES = ("metrics.json", "loss.png", "samples.md", "classes.md", "confusion.png")
SPEEDS = ("tokens_per_second", "supervised_tokens_per_second", "peak_share")


def write_report(trainer: Trainer, rows: Rows) -> dict[str, Any]:
    """Evaluate, and write `metrics.json`, `loss.png` and what samples there are into the run's folder. Every process
    evaluates and returns what `metrics.json` holds; the main one compares, writes and prints."""
    history, objective, reports = trainer.state.log_history, trainer.objective, trainer.examples.reports
    evaluated = [entry for entry in history if any(name.startswith("eval_") for name in entry)]
    done = [entry for entry in evaluated if entry.get("step") == trainer.saved_step()]
    after = done[-1] if done else trainer.evaluate()
    before: dict[str, Any] = next((entry for entry in evaluated if entry.get("step") == 0), {})
    rates: dict[str, Any] = next((entry for entry in reversed(history) if SPEEDS[0] in entry), {})
    metrics: dict[str, Any] = {
        "objective": objective.name,
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
    folder, trained = trainer.folder, trainer.accelerator.unwrap_model(trainer.model)
    samples = next((c for c in trainer.callback_handler.callbacks if isinstance(c, SampleCallback)), None)
    # What the model was when the run began: of its seed, or of its checkpoint.
    start = (trainer.run.args, objective.model, objective.tokenizer, trainer.run.labels)
    outcome = Outcome(trained, rows, trainer.examples, after, before, lambda: build_model(*start)[0])

    def compare() -> None:
        metrics["comparison"] = objective.compare(outcome)
        _write(folder, metrics)
        show_comparison(metrics["comparison"], objective.name)

    def classes() -> None:
        if predictions := objective.predict(outcome):
            from tuner.evaluation.class_report import write_class_report  # and with it the library evaluate

            metrics["classes"] = outcome.figures = write_class_report(predictions, folder)
            _write(folder, metrics)

    _write(folder, metrics)
    survive(classes, "classes.md")
    survive(compare, "The comparison")
    survive(lambda: plot_losses(folder / "loss.png", metrics, objective.loss_unit), "loss.png")
    if samples is not None:
        survive(lambda: samples.finish(trained, trainer.saved_step(), folder), "samples.md")
    console = Console(highlight=False)
    console.print(f"Written to {folder}: the model, run.yaml, {', '.join(f for f in FILES if (folder / f).exists())}.")
    if samples is not None and samples.conversations and rows.kind in ("messages", "pair"):
        how = f"Chat with it:  tuner chat {folder}" if rows.kind == "messages" else f"Ask it:  tuner generate {folder}"
        console.print(how, style="bold")
    return metrics


def _metrics(entry: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("eval_"): value for name, value in entry.items() if name.startswith("eval_")}


def _write(folder: Path, metrics: dict[str, Any]) -> None:
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1), encoding="utf-8")


def show_comparison(comparison: Comparison, objective: str) -> None:
    """Print a line for each metric, a column for each who is compared."""
    who = list(dict.fromkeys(name for values in comparison.values() for name in values))
    rows = [(m, *(f"{values[n]:.4g}" if n in values else "-" for n in who)) for m, values in comparison.items()]
    Console(highlight=False).print(table(f"{objective}, on the validation rows", ("", *who), rows))


def plot_losses(path: Path, metrics: dict[str, Any], unit: str) -> None:
    """Draw training and validation loss over steps; baselines of the loss as dashed lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, label, style in (("loss", "training", "-"), ("eval_loss", "validation", "o-")):
        entries = [entry for entry in metrics["log"] if name in entry]
        axes.plot([entry["step"] for entry in entries], [entry[name] for entry in entries], style, label=label)
    for who, value in metrics["comparison"].get(unit, {}).items():
        if who not in ("untrained", "trained"):
            axes.axhline(value, linestyle="--", color="gray", label=f"{who} ({value:.2f})")
    axes.set(xlabel="optimizer step", ylabel=f"loss, {unit}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=130)
