"""What an evaluation leaves: a file of figures for each task, a report to read, pictures, and the Hub's form.

eval/<task>.json           {"task", "data", "seed", "settings", "models": {label: {"name", "samples", "left_out",
                           "seconds", "figures": {figure: {"value", "low", "high", "n", "method", "better"}}}},
                           "baselines": {figure: {who: value}}, "differences": [...], "notes"}
eval/<task>.samples.jsonl  one line a row: what was asked, what came, and `scores`
eval/report.md, <task>.png, models.png    of every <task>.json in the folder
.eval_results/<task>.yaml  https://huggingface.co/docs/hub/eval-results
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
from rich.console import Console

from tuner.config.evaluation import TASKS
from tuner.errors import ArgumentError, GateError, nearest, survive
from tuner.evaluation.eval_pictures import main_figure, plot_models, plot_task
from tuner.evaluation.fonts import fonts_for
from tuner.evaluation.plan import Gate, Plan
from tuner.evaluation.run import Outcome
from tuner.evaluation.statistics import Estimate
from tuner.train.plan import table

SIGNS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
# What a test must be below for a difference to be called one.
SIGNIFICANT = 0.05

Json = dict[str, Any]


def write_evaluation(plan: Plan, outcomes: list[Outcome]) -> None:
    """Write and print the report, on the main process."""
    if not PartialState().is_main_process:
        return
    folder, console = plan.folder, Console(highlight=False)
    for outcome in outcomes:
        found = _clean(_as_json(plan, outcome))
        text = json.dumps(found, indent=1, ensure_ascii=False)
        (folder / f"{outcome.task.name}.json").write_text(text, encoding="utf-8")
        _write_hub_form(plan, outcome)
        with fonts_for(found["models"]):
            survive(partial(plot_task, folder / f"{outcome.task.name}.png", found), f"{outcome.task.name}.png")
        title, columns = f"{outcome.task.name}: {found['data']['what']}", ("", *found["models"], "baselines")
        console.print(table(title, columns, _rows(found)))
        for difference in found["differences"]:
            console.print(f"  {_sentence(difference)}")
    paths = [path for path in (folder / f"{task}.json" for task in TASKS) if path.is_file()]
    found = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    together = [each for each in found if list(each["models"]) == list(outcomes[0].figures)]
    if len(outcomes[0].figures) > 1:
        with fonts_for(outcomes[0].figures):
            survive(lambda: plot_models(folder / "models.png", together), "models.png")
    (folder / "report.md").write_text("\n".join(_markdown(folder, found, together)), encoding="utf-8")
    console.print(f"Written to {folder}: report.md, and of each task figures (json), samples (jsonl) and a picture.")


def check_gates(plan: Plan, outcomes: list[Outcome]) -> None:
    """A GateError naming every figure, of any model, that falls short; an ArgumentError for one that nobody made."""
    short = []
    for gate in plan.gates:
        found = list(_of_gate(gate, outcomes))
        if not found:
            known = sorted({name for o in outcomes for figures in o.figures.values() for name in figures})
            raise ArgumentError(f"--gate {gate.text}: the figures are {', '.join(known)}.{nearest(gate.figure, known)}")
        for label, task, estimate in found:
            if not SIGNS[gate.sign](estimate.value, gate.bound):
                short.append(f"--gate {gate.text}: {label} has {task}.{gate.figure} {estimate.value:.6g}")
    if short:
        raise GateError(f"{'; '.join(short)}.")


def _of_gate(gate: Gate, outcomes: list[Outcome]) -> Iterator[tuple[str, str, Estimate]]:
    for outcome in outcomes:
        for label, figures in outcome.figures.items():
            if gate.task in (None, outcome.task.name) and gate.figure in figures:
                yield label, outcome.task.name, figures[gate.figure]


def _as_json(plan: Plan, outcome: Outcome) -> Json:
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
                notes=f"{_cell(vars(estimate))}, n = {estimate.n}, {estimate.method}; {task.data.what}; "
                f"seed {plan.args.seed}",
            )
            for figure, estimate in figures.items()
            if math.isfinite(estimate.value)
        ]
        path = root / ".eval_results" / f"{task.name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True, width=1000)
        path.write_text(text, encoding="utf-8")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{0.0 if abs(value) < 1e-12 else value:.4g}"


def _cell(figure: Json) -> str:
    unknown = figure["low"] is None or math.isnan(figure["low"])
    return _number(figure["value"]) + ("" if unknown else f" [{_number(figure['low'])}, {_number(figure['high'])}]")


def _rows(found: Json) -> Iterator[tuple[str, ...]]:
    """A line for each figure: its name, each model's, and the baselines."""
    models = [model["figures"] for model in found["models"].values()]
    for name in dict.fromkeys(name for figures in models for name in figures):
        cells = [_cell(figures[name]) if name in figures else "-" for figures in models]
        beside = found["baselines"].get(name, {})
        yield name, *cells, ", ".join(f"{who} {_number(value)}" for who, value in beside.items())


def _sentence(found: Json) -> str:
    verdict = "they differ" if found["p"] < SIGNIFICANT else "no difference is shown"
    return (
        f"{found['score']}: {found['other']} - {found['first']} = {_cell(found['estimate'])}, mean over the same "
        f"{found['estimate']['n']:,} rows; {found['test']}, p = {found['p']:.3g}: {verdict}."
    )


def _markdown(folder: Path, found: list[Json], together: list[Json]) -> Iterator[str]:
    names = list(together[0]["models"])
    yield f"# Evaluation of {', '.join(names)}\n"
    yield "Intervals are of 95 %.\n"
    if len(names) > 1:
        yield "![models](models.png)\n"
        yield f"|  | {' | '.join(names)} |\n|---|{'---|' * len(names)}"
        for each in together:
            main = main_figure(each)
            cells = [_cell(model["figures"][main]) for model in each["models"].values()]
            yield f"| {each['task']}: {main} | {' | '.join(cells)} |"
        yield ""
    for each in found:
        yield from _section(folder, each)


def _section(folder: Path, found: Json) -> Iterator[str]:
    names = list(found["models"])
    settings = ", ".join(f"{name} {value}" for name, value in found["settings"].items())
    yield f"## {found['task']}\n"
    yield f"{found['data']['what']}; {settings}, seed {found['seed']}.\n"
    columns = ("figure", "better", *names, "baselines", "n", "interval")
    yield f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"
    for name, *cells in _rows(found):
        one = next(model["figures"][name] for model in found["models"].values() if name in model["figures"])
        yield f"| {name} | {one['better']} | {' | '.join(cells)} | {one['n']:,} | {one['method']} |"
    yield ""
    yield from (f"- {_sentence(difference)}" for difference in found["differences"])
    for label, model in found["models"].items():
        if model["left_out"]:
            yield f"- {label}: {model['left_out']:,} rows have no score; `left_out` in the samples says why."
    yield from (f"- {note}" for note in found["notes"])
    files = ", ".join(f"[{model['samples']}]({model['samples']})" for model in found["models"].values())
    yield f"- Samples: {files}.\n"
    if (folder / f"{found['task']}.png").is_file():
        yield f"![{found['task']}]({found['task']}.png)\n"
