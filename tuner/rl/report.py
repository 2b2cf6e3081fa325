"""What is written beside the policy when a run of PPO ends: `metrics.json`, `ppo.png`, `samples.md`.

{"objective": "ppo", "steps", "eval": {metric: value}, "untrained": {metric: value},
 "comparison": {metric: {"untrained", "trained"}}, "speed": {phase: tokens a second}, "log"}
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from tuner.errors import survive
from tuner.evaluation.report import show_comparison
from tuner.rl.evaluation import FILE
from tuner.rl.ppo import PPOTrainer

# What of an evaluation is compared with the first.
COMPARED = ("reward", "kl", "perplexity", "length", "ended", "win_rate", "reward/judge")
# Prompts of `samples.md`.
SAMPLES = 8


def write_ppo_report(trainer: PPOTrainer) -> dict[str, Any]:
    """Evaluate, unless that was done at the last update, and write the report; every process returns the metrics."""
    history = trainer.state.log_history
    done = [entry for entry in history if "eval_reward" in entry]
    if trainer.eval_dataset is not None and not (done and done[-1]["step"] == trainer.state.global_step):
        trainer.evaluate()
        done = [entry for entry in history if "eval_reward" in entry]
    after = _metrics(done[-1]) if done else {}
    before = _metrics(done[0]) if done and done[0]["step"] == 0 else {}  # with --eval_on_start false nobody knows
    last: dict[str, Any] = next((entry for entry in reversed(history) if "objective/kl" in entry), {})
    comparison: dict[str, dict[str, float]] = {name: {} for name in COMPARED if name in after}
    for who, values in (("untrained", before), ("trained", after)):
        for name in comparison:
            if name in values:
                comparison[name][who] = values[name]
    metrics = {
        "objective": "ppo",
        "steps": trainer.state.global_step,
        "eval": after,
        "untrained": before,
        "comparison": comparison,
        "speed": {k.partition("/")[2]: v for k, v in last.items() if k.startswith("tokens_per_second/")},
        "log": history,
    }
    if trainer.args.should_save:
        folder = trainer.folder
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=1), encoding="utf-8")
        survive(lambda: plot(folder / "ppo.png", history), "ppo.png")
        survive(lambda: write_samples(folder), "samples.md")
        show_comparison(comparison, "ppo")
        files = ("metrics.json", "ppo.png", "samples.md", FILE)
        there = ", ".join(name for name in files if (folder / name).exists())
        Console(highlight=False).print(f"Written to {folder}: the policy, run.yaml, {there}.")
    return metrics


def _metrics(entry: dict[str, Any]) -> dict[str, float]:
    return {name.removeprefix("eval_"): value for name, value in entry.items() if name.startswith("eval_")}


def plot(path: Path, history: list[dict[str, Any]]) -> None:
    """Draw the reward over the divergence that it was bought with, and both over updates."""
    from matplotlib.figure import Figure

    trained = [entry for entry in history if "objective/kl" in entry]
    tested = [entry for entry in history if "eval_reward" in entry]
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(
        [e["objective/kl"] for e in trained], [e["objective/scores"] for e in trained], ".", alpha=0.4, label="training"
    )
    left.plot([e["eval_kl"] for e in tested], [e["eval_reward"] for e in tested], "o-", label="validation")
    if any("eval_reward/judge" in e for e in tested):
        left.plot([e["eval_kl"] for e in tested], [e["eval_reward/judge"] for e in tested], "s--", label="judge")
    left.set(xlabel="divergence from the reference, nats a completion", ylabel="reward")
    right.plot([e["step"] for e in trained], [e["objective/scores"] for e in trained], alpha=0.4, label="training")
    right.plot([e["step"] for e in tested], [e["eval_reward"] for e in tested], "o-", label="validation")
    right.set(xlabel="update", ylabel="reward")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=130)


def write_samples(folder: Path) -> None:
    """The first validation prompts, with their completions at the first and at the last evaluation."""
    file = folder / FILE
    if not file.exists():
        return
    every = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    first, last = every[0]["step"], every[-1]["step"]
    parts = []
    for row in sorted({one["row"] for one in every})[:SAMPLES]:
        said = {one["step"]: one for one in every if one["row"] == row}
        prompt = said[last]["prompt"]
        text = prompt if isinstance(prompt, str) else "\n\n".join(turn["content"] for turn in prompt or [])
        answers = [
            f"**update {step}** (reward {said[step]['reward']:.3f}): {said[step]['completion']}"
            for step in dict.fromkeys((first, last))
        ]
        parts.append(f"**prompt:** {text}\n\n" + "\n\n".join(answers) + "\n")
    (folder / "samples.md").write_text(
        "# Completions of validation prompts\n\n" + "\n---\n\n".join(parts), encoding="utf-8"
    )
