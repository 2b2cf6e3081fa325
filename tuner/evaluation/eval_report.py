"""What an evaluation leaves: a file of figures for each task, a report to read, pictures, and the Hub's form.

    eval/<task>.json           {"task", "data", "seed", "settings", "models": {name: {"samples", "left_out", "seconds",
                               "figures": {figure: {"value", "low", "high", "n", "method", "better"}}}},
                               "baselines": {figure: {who: value}}, "differences": [...], "notes"}
    eval/<task>.samples.jsonl  one line a row: what was asked, what came, and `scores`
    eval/report.md, eval/<task>.png, eval/models.png
    .eval_results/<task>.yaml  https://huggingface.co/docs/hub/eval-results
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
from rich.console import Console

from tuner.errors import ArgumentError, GateError, nearest, survive
from tuner.evaluation.plan import Gate, Plan
from tuner.evaluation.run import Outcome
from tuner.evaluation.statistics import Estimate
from tuner.train.plan import table

SIGNS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


def write_evaluation(plan: Plan, outcomes: list[Outcome]) -> None:
    """Write and print the report, on the main process."""
    if not PartialState().is_main_process:
        return
    folder = plan.folder
    for outcome in outcomes:
        text = json.dumps(_clean(_as_json(plan, outcome)), indent=1, ensure_ascii=False)
        (folder / f"{outcome.task.name}.json").write_text(text, encoding="utf-8")
        survive(lambda outcome=outcome: _plot(folder, outcome), f"{outcome.task.name}.png")
        _write_hub_form(plan, outcome)
    names = list(outcomes[0].figures)
    if len(names) > 1:
        survive(lambda: _plot_models(folder, outcomes), "models.png")
    (folder / "report.md").write_text("\n".join(_markdown(plan, outcomes)), encoding="utf-8")
    console = Console(highlight=False)
    for outcome in outcomes:
        rows = [(name, *cells) for name, *cells in _rows(outcome)]
        console.print(table(f"{outcome.task.name}: {outcome.task.data.what}", ("", *names, "baselines"), rows))
        for difference in outcome.differences:
            console.print(f"  {_sentence(difference)}")
    console.print(f"Written to {folder}: report.md, and of each task figures (json), samples (jsonl) and a picture.")


def check_gates(plan: Plan, outcomes: list[Outcome]) -> None:
    """A GateError for the first figure, of any model, that falls short; an ArgumentError for one that nobody made."""
    for gate in plan.gates:
        found = list(_of_gate(gate, outcomes))
        if not found:
            known = sorted({name for o in outcomes for figures in o.figures.values() for name in figures})
            raise ArgumentError(f"--gate {gate.text}: the figures are {', '.join(known)}.{nearest(gate.figure, known)}")
        for label, task, estimate in found:
            if not SIGNS[gate.sign](estimate.value, gate.bound):
                raise GateError(f"gate {gate.text}: {label} has {task}.{gate.figure} {estimate.value:.6g}.")


def _of_gate(gate: Gate, outcomes: list[Outcome]) -> Iterator[tuple[str, str, Estimate]]:
    for outcome in outcomes:
        for label, figures in outcome.figures.items():
            if gate.task in (None, outcome.task.name) and gate.figure in figures:
                yield label, outcome.task.name, figures[gate.figure]


def _as_json(plan: Plan, outcome: Outcome) -> dict[str, Any]:
    better, task = outcome.task.figures_of(outcome.task.data.kind), outcome.task
    models = {
        label: {
            "name": name,
            "samples": outcome.files[label],
            "left_out": outcome.left_out[label],
            "seconds": outcome.seconds[label],
            "figures": {figure: vars(e) | {"better": better.get(figure, "")} for figure, e in figures.items()},
        }
        for name, (label, figures) in zip(plan.args.names(), outcome.figures.items(), strict=True)
    }
    return {
        "task": task.name,
        "data": {"name": task.data.name, "kind": task.data.kind, "what": task.data.what, "rows": len(task.data.rows)},
        "seed": plan.args.seed,
        "settings": {"dtype": plan.args.dtype, **outcome.settings},
        "models": models,
        "baselines": outcome.baselines,
        "differences": [vars(d) | {"estimate": vars(d.estimate)} for d in outcome.differences],
        "notes": outcome.notes,
    }


def _clean(value: Any) -> Any:
    """Without what JSON has no word for: NaN and infinity are null."""
    if isinstance(value, dict):
        return {key: _clean(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_clean(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_hub_form(plan: Plan, outcome: Outcome) -> None:
    today, task = datetime.now(UTC).date().isoformat(), outcome.task
    for label, figures in outcome.figures.items():
        root = plan.args.folder() if len(outcome.figures) == 1 else plan.folder / label
        entries = [
            EvalResultEntry(
                dataset_id=task.data.name,
                task_id=f"{task.name}.{figure}",
                value=round(estimate.value, 6),
                date=today,
                notes=f"{_cell(estimate)}, n = {estimate.n}, {estimate.method}; {task.data.what}; seed {plan.args.seed}",
            )
            for figure, estimate in figures.items()
            if math.isfinite(estimate.value)
        ]
        path = root / ".eval_results" / f"{task.name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True, width=1000)
        path.write_text(text, encoding="utf-8")


def _cell(estimate: Estimate) -> str:
    interval = "" if math.isnan(estimate.low) else f" [{estimate.low:.4g}, {estimate.high:.4g}]"
    return f"{estimate.value:.4g}{interval}"


def _rows(outcome: Outcome) -> Iterator[tuple[str, ...]]:
    """A line for each figure: its name, each model's, and the baselines."""
    for figure in dict.fromkeys(name for figures in outcome.figures.values() for name in figures):
        cells = [_cell(figures[figure]) if figure in figures else "-" for figures in outcome.figures.values()]
        beside = outcome.baselines.get(figure, {})
        yield figure, *cells, ", ".join(f"{who} {value:.4g}" for who, value in beside.items())


def _sentence(difference: Any) -> str:
    d = difference.estimate
    verdict = "differ" if difference.p < 0.05 else "cannot be told apart"
    return (
        f"{difference.figure}: {difference.other} - {difference.first} = {_cell(d)} ({difference.score} of the same "
        f"{d.n} rows; {difference.test}, p = {difference.p:.3g}): they {verdict}."
    )


def _markdown(plan: Plan, outcomes: list[Outcome]) -> Iterator[str]:
    names = list(outcomes[0].figures)
    yield f"# Evaluation of {', '.join(names)}\n"
    yield f"Intervals are of 95 %. Seed {plan.args.seed}, {plan.args.dtype}.\n"
    if len(names) > 1:
        yield "![models](models.png)\n"
        yield f"|  | {' | '.join(names)} |\n|---|{'---|' * len(names)}"
        for outcome in outcomes:
            main = next(iter(next(iter(outcome.figures.values()))))
            yield f"| {outcome.task.name}: {main} | {' | '.join(_cell(f[main]) for f in outcome.figures.values())} |"
        yield ""
    for outcome in outcomes:
        task, better = outcome.task, outcome.task.figures_of(outcome.task.data.kind)
        yield f"## {task.name}\n"
        settings = ", ".join(f"{name} {value}" for name, value in outcome.settings.items())
        yield f"{task.data.what}{f'; {settings}' if settings else ''}.\n"
        yield f"| figure | better | {' | '.join(names)} | baselines | n | interval |\n|---|---|{'---|' * (len(names) + 3)}"
        for figure, *cells in _rows(outcome):
            estimate = next(figures[figure] for figures in outcome.figures.values() if figure in figures)
            ends = f"{estimate.n:,} | {estimate.method}"
            yield f"| {figure} | {better.get(figure, '')} | {' | '.join(cells)} | {ends} |"
        yield ""
        yield from (f"- {_sentence(difference)}" for difference in outcome.differences)
        for label, count in outcome.left_out.items():
            if count:
                yield f"- {label}: {count:,} rows have no score; `left_out` in the samples says why."
        yield from (f"- {note}" for note in outcome.notes)
        yield f"- Samples: {', '.join(f'[{file}]({file})' for file in outcome.files.values())}.\n"
        if (plan.folder / f"{task.name}.png").is_file():
            yield f"![{task.name}]({task.name}.png)\n"


def _plot(folder: Path, outcome: Outcome) -> None:
    """A panel for each figure: every model with its interval, and baselines as dashed lines."""
    from matplotlib.figure import Figure

    figures = list(dict.fromkeys(name for found in outcome.figures.values() for name in found))
    across = min(len(figures), 3)
    down = math.ceil(len(figures) / across)
    height = 1.1 + 0.35 * len(outcome.figures)
    picture = Figure(figsize=(3.6 * across, height * down), layout="constrained")
    panels = picture.subplots(down, across, squeeze=False).ravel()
    for axes, name in zip(panels, figures, strict=False):
        _points(axes, {label: found[name] for label, found in outcome.figures.items() if name in found})
        for number, (who, value) in enumerate(outcome.baselines.get(name, {}).items()):
            axes.axvline(value, linestyle="--", color=f"C{number + 1}", label=who)
        if name in outcome.baselines:
            axes.legend(fontsize=7)
        axes.set_title(name, fontsize=9)
    for axes in panels[len(figures) :]:
        axes.set_visible(False)
    picture.savefig(folder / f"{outcome.task.name}.png", dpi=110)


def _plot_models(folder: Path, outcomes: list[Outcome]) -> None:
    """Every model on each task's main figure."""
    from matplotlib.figure import Figure

    height = 0.9 + 0.3 * len(outcomes[0].figures)
    picture = Figure(figsize=(7, height * len(outcomes)), layout="constrained")
    for axes, outcome in zip(picture.subplots(len(outcomes), 1, squeeze=False).ravel(), outcomes, strict=True):
        main = next(iter(next(iter(outcome.figures.values()))))
        _points(axes, {label: found[main] for label, found in outcome.figures.items()})
        axes.set_title(f"{outcome.task.name}: {main}", fontsize=9)
    picture.savefig(folder / "models.png", dpi=110)


def _points(axes: Any, estimates: dict[str, Estimate]) -> None:
    for place, estimate in enumerate(estimates.values()):
        if math.isfinite(estimate.value):
            known = math.isfinite(estimate.low)
            ends = [[max(estimate.value - estimate.low, 0)], [max(estimate.high - estimate.value, 0)]] if known else None
            axes.errorbar(estimate.value, place, xerr=ends, fmt="o", color="C0", capsize=3)
    axes.set_yticks(range(len(estimates)), list(estimates), fontsize=8)
    axes.set_ylim(len(estimates) - 0.5, -0.5)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", alpha=0.3)
