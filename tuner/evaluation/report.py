"""What is written beside the model when a run ends, and what its user then sees.

`metrics.json` (the numbers), `loss.png` (the curve, with the untrained and the unigram loss to compare with),
`samples.md` (three conversations). `run.yaml` was written before the first step.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tuner.evaluation.baselines.unigram import unigram_loss
from tuner.evaluation.samples import sample_conversations
from tuner.train.prepare import Rows, Sequences
from tuner.train.run import Run
from tuner.train.trainer import SFTTrainer


def write_report(trainer: SFTTrainer, run: Run, rows: Rows, data: Sequences) -> dict[str, Any]:
    """Evaluate, sample, and write `metrics.json`, `loss.png` and `samples.md` into the run's folder.

    Every process evaluates; the main one writes and prints.

    Returns:
        What `metrics.json` holds.
    """
    history = trainer.state.log_history
    done = [entry for entry in history if entry.get("step") == trainer.state.global_step and "eval_loss" in entry]
    trained = done[-1]["eval_loss"] if done else trainer.evaluate()["eval_loss"]
    untrained = next((e["eval_loss"] for e in history if e.get("step") == 0 and "eval_loss" in e), None)
    losses = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    rates: dict[str, Any] = next((e for e in reversed(history) if "tokens_per_second" in e), {})
    metrics = {
        "steps": trainer.state.global_step,
        "eval_loss": trained,
        "eval_loss_untrained": untrained,
        "eval_loss_unigram": unigram_loss(data.train, data.eval, len(trainer.processing_class)),
        "train_loss": trainer.mean_loss(),
        "losses": losses,
        "tokens_per_second": rates.get("tokens_per_second"),
        "supervised_tokens_per_second": rates.get("supervised_tokens_per_second"),
        "peak_share": rates.get("peak_share"),
        "log": history,
        "train_data": data.train_report.to_dict(),
        "eval_data": data.eval_report.to_dict(),
    }
    if not trainer.is_world_process_zero():
        return metrics
    model = trainer.accelerator.unwrap_model(trainer.model)
    samples = sample_conversations(model, trainer.processing_class, rows.eval, rows.kind)
    (run.folder / "metrics.json").write_text(json.dumps(metrics, indent=1), encoding="utf-8")
    (run.folder / "samples.md").write_text(_markdown(samples), encoding="utf-8")
    evaluations = [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    plot_losses(run.folder / "loss.png", losses, evaluations, metrics["eval_loss_unigram"])
    _show(metrics, samples, run.folder)
    return metrics


def plot_losses(
    path: Path,
    losses: list[tuple[int, float]],
    evaluations: list[tuple[int, float]],
    unigram: float | None = None,
    unit: str = "nats a token",
) -> None:
    """Draw training and validation loss over steps; `unigram` as a dashed line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    if losses:
        axes.plot(*zip(*losses, strict=True), label="training", color="tab:blue", alpha=0.7)
    if evaluations:
        axes.plot(*zip(*evaluations, strict=True), "o-", label="validation", color="tab:orange")
    if unigram is not None:
        axes.axhline(unigram, linestyle="--", color="gray", label=f"unigram model ({unigram:.2f})")
    axes.set(xlabel="optimizer step", ylabel=f"loss, {unit}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _show(metrics: dict[str, Any], samples: list[dict[str, str]], folder: Path) -> None:
    console = Console(highlight=False)
    console.print("\nValidation loss, nats a supervised token", style="bold")
    table = Table()
    for name in ("untrained", "unigram model", "trained"):
        table.add_column(name, justify="right")
    values = (metrics["eval_loss_untrained"], metrics["eval_loss_unigram"], metrics["eval_loss"])
    table.add_row(*("-" if value is None else f"{value:.3f}" for value in values))
    console.print(table)
    for sample in samples:
        console.print(f"[bold]user[/]       {_plain(sample['prompt'])}")
        console.print(f"[bold]assistant[/]  {_plain(sample['answer'])}\n")
    console.print(f"Written to {folder}: the model, metrics.json, loss.png, samples.md, run.yaml")
    console.print(f"Talk to it:  tuner chat {folder}", style="bold")


def _plain(text: str) -> str:
    return text.replace("[", "\\[")


def _markdown(samples: list[dict[str, str]]) -> str:
    parts = [
        f"**user:** {s['prompt']}\n\n**assistant:** {s['answer']}\n\n*the validation row says:* {s['reference']}\n"
        for s in samples
    ]
    return "# Three conversations on validation prompts\n\n" + "\n---\n\n".join(parts)
