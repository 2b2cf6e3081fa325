"""What a model says of validation rows with labels: figures with intervals, each class, calibration, worst mistakes."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tuner.data.entities import entities, marks_entities
from tuner.errors import DataError
from tuner.evaluation.calibration import MULTI, crossed, fit_temperature, fit_thresholds, log_loss, probabilities
from tuner.evaluation.fonts import fonts_for
from tuner.evaluation.metrics import load_metric
from tuner.evaluation.statistics import bootstrap, mean, proportion
from tuner.objectives.records import Predictions

# Mistakes that are shown, characters of a text, classes of a picture, words around one.
MISTAKES, SHOWN, MOST, AROUND = 20, 160, 40, 8
# Draws of a bootstrap.
ROUNDS = 500


def write_class_report(found: Predictions, folder: Path, seed: int = 0) -> dict[str, Any]:
    """Write `classes.md` and, of one class a row, `confusion.png` into the folder.

    Returns:
        The figures, for `metrics.json`: {"accuracy": {"value", "low", "high", "n", "method"}, ...}
    """
    kinds = {"regression": _regression, MULTI: _several, "question_answering": _answers, "preference": _pairs}
    figures, parts = kinds.get(found.problem, _single)(found, folder, seed)
    lines = ["| figure | value | 95 % interval | n | by |", "|---|---|---|---|---|"]
    for name, each in figures.items():
        if name == "thresholds":
            continue
        if isinstance(each, dict):
            interval = f"{each['low']:.4f} to {each['high']:.4f}"
            lines.append(f"| {name} | {each['value']:.4f} | {interval} | {each['n']} | {each['method']} |")
        else:
            lines.append(f"| {name} | {each:.4f} | | {len(found.logits)} | |")
    rows = f"{len(found.logits):,} validation rows"
    if found.clusters is not None:
        what = ("questions", "texts") if found.said is not None else ("words", "rows")
        rows = f"{len(found.logits):,} {what[0]} of {len(np.unique(found.clusters)):,} validation {what[1]}"
    text = "\n\n".join([f"# On {rows}", *found.notes, "\n".join(lines), *parts])
    (folder / "classes.md").write_text(text + "\n", encoding="utf-8")
    return figures


def _estimates(
    name: str, predictions: Any, references: Any, seed: int, clusters: Any = None, **options: Any
) -> dict[str, Any]:
    """Every figure of a metric, with its interval."""
    of_rows, n = load_metric(name, **options).on_rows(predictions=predictions, references=references), len(references)
    try:
        keys = list(of_rows(np.arange(n)))
    except DataError:  # such as a correlation with numbers that all are one
        return {}

    def figure(key: str, rows: np.ndarray) -> float:
        return of_rows(rows).get(key, np.nan)  # such as of answerable questions, where none was drawn

    return {key: vars(bootstrap(partial(figure, key), n, clusters, seed, ROUNDS)) for key in keys}


def _single(found: Predictions, folder: Path, seed: int) -> tuple[dict[str, Any], list[str]]:
    names, targets = list(found.names), found.targets
    chances, said = probabilities(found.logits, found.problem), found.logits.argmax(axis=1)
    pairs = [[names[number] for number in numbers] for numbers in (said, targets)]
    hits = said == targets
    figures, parts = dict[str, Any](), list[str]()
    if marks_entities(names):
        figures, parts = _entities(found, pairs, seed)
    figures["accuracy"] = vars(mean(hits.astype(float), found.clusters, seed))
    if not parts:
        for metric in ("f1", "matthews_correlation"):
            figures |= _estimates(metric, pairs[0], pairs[1], seed, found.clusters, labels=names)
        del figures["f1_micro"]  # of one class a row it is the accuracy
    figures |= _surety(found.logits, targets, found.problem)
    table = np.zeros((len(names), len(names)), int)
    np.add.at(table, (targets, said), 1)
    if len(names) <= MOST:
        with fonts_for(names):
            _draw(folder / "confusion.png", table, names)
    what = ("class", "rows") if found.clusters is None else ("tag", "words")
    lines = [f"| {what[0]} | {what[1]} | precision | recall | F1 | most often taken for |", "|---|---|---|---|---|---|"]
    for number, name in enumerate(names):
        wrong = table[number].copy()
        wrong[number] = 0
        for_what = f"{names[int(wrong.argmax())]} ({wrong.max()})" if wrong.max() else "-"
        lines.append(
            f"| {name} | {_shares(table[number, number], table[number].sum(), table[:, number].sum())} {for_what} |"
        )
    worst = [row for row in np.argsort(-chances.max(axis=1), kind="stable") if not hits[row]][:MISTAKES]
    listed = [f"{chances[row].max():.3f} for {names[said[row]]}, which is {names[targets[row]]}" for row in worst]
    picture = ["![confusion](confusion.png)"] if len(names) <= MOST else []
    return figures, [*parts, "\n".join(lines), *picture, _mistakes(found, worst, listed)]


def _surety(logits: np.ndarray, targets: np.ndarray, problem: str) -> dict[str, float]:
    """How much the probabilities mean, as they are and by what each half of the rows says of the other."""
    scaled = crossed(
        lambda rows: fit_temperature(logits[rows], targets[rows], problem),
        lambda rows, heat: logits[rows] / heat,
        len(targets),
    )
    figures = {}
    for when, each in (("", logits), (", by the other half's temperature", scaled)):
        figures[f"log loss{when}"] = log_loss(each, targets, problem)
        figures[f"calibration error{when}"] = calibration_error(probabilities(each, problem), targets)
    return figures


def _pairs(found: Predictions, folder: Path, seed: int) -> tuple[dict[str, Any], list[str]]:
    """Of rewards `(pairs, 2)`, the better answer's first: how often that has the higher one, where it is the longer and
    where it is the shorter, and by thirds of how much better the rows call it; and what `sigmoid` of their difference
    is worth as a probability."""
    gaps, longer = found.logits[:, 0] - found.logits[:, 1], found.targets[:, 0] - found.targets[:, 1]
    hits, first = gaps > 0, np.zeros(len(gaps), int)
    groups = {"accuracy": hits, "accuracy where the better one is longer": hits[longer > 0]}
    groups["accuracy where the better one is shorter"] = hits[longer < 0]
    groups["share of longer ones among the choices"] = (gaps * longer > 0)[longer != 0]
    if found.margins is not None and len(np.unique(found.margins)) > 1:
        low, high = np.quantile(found.margins, (1 / 3, 2 / 3))
        groups[f"accuracy where the margin is below {low:.3g}"] = hits[found.margins < low]
        groups[f"accuracy where the margin is {low:.3g} or more, below {high:.3g}"] = hits[
            (found.margins >= low) & (found.margins < high)
        ]
        groups[f"accuracy where the margin is {high:.3g} or more"] = hits[found.margins >= high]
    figures: dict[str, Any] = {name: vars(proportion(int(g.sum()), len(g))) for name, g in groups.items() if len(g)}
    figures |= _surety(found.logits, first, found.problem)
    figures["temperature that fits best"] = fit_temperature(found.logits, first, found.problem)
    worst = [row for row in np.argsort(gaps, kind="stable") if not hits[row]][:MISTAKES]
    return figures, [_mistakes(found, worst, [f"{-gaps[row]:.3f} for the second, which is worse" for row in worst])]


def _entities(found: Predictions, pairs: list[list[str]], seed: int) -> tuple[dict[str, Any], list[str]]:
    """Of tagged words, predicted and true ones, the figures of entities, and a table of their types."""
    ends = np.flatnonzero(np.diff(np.asarray(found.clusters))) + 1
    said, true = ([list(row) for row in np.split(np.array(tags), ends)] for tags in pairs)
    of_all = load_metric("entity_f1").on_rows(predictions=said, references=true)
    whole = of_all(np.arange(len(said)))

    def figure(key: str, rows: np.ndarray) -> float:
        return of_all(rows)[key]

    kept = [key for key in whole if key == "f1" or key.endswith("_f1")]
    figures = {key: vars(bootstrap(partial(figure, key), len(said), None, seed, ROUNDS)) for key in kept}
    counts = Counter(kind for row in true for kind, *_ in entities(row))
    lines = ["| type | entities | precision | recall | F1 | 95 % interval |", "|---|---|---|---|---|---|"]
    for kind in ("", *sorted({key[: -len("_f1")] for key in whole if key.endswith("_f1")})):
        start, f1 = f"{kind}_" if kind else "", figures[f"{kind}_f1" if kind else "f1"]
        shares = " | ".join(f"{whole[start + key]:.3f}" for key in ("precision", "recall", "f1"))
        number = counts[kind] if kind else counts.total()
        lines.append(f"| {kind or 'all'} | {number} | {shares} | {f1['low']:.3f} to {f1['high']:.3f} |")
    return {"f1": figures["f1"]}, ["\n".join(lines)]


def _answers(found: Predictions, folder: Path, seed: int) -> tuple[dict[str, Any], list[str]]:
    said, answers = found.said or [], found.targets
    figures = _estimates("squad", said, answers, seed, found.clusters)
    known = sum(map(bool, answers))
    for name, figure in figures.items():
        figure["n"] = {"has": known, "no": len(answers) - known}.get(name.partition("_")[0], len(answers))
    right = load_metric("squad").on_rows(predictions=said, references=answers)
    f1 = np.array([right(np.array([row]))["f1"] for row in range(len(said))])
    worst = [row for row in np.lexsort((-found.logits, f1)) if f1[row] < 1][:MISTAKES]
    wanted = [" or ".join(dict.fromkeys(each)) or "not answered" for each in answers]
    shown = [f"{found.logits[row]:.3f} for {said[row] or 'no answer'}, which is {wanted[row]}" for row in worst]
    return figures, [_mistakes(found, worst, shown)]


def _several(found: Predictions, folder: Path, seed: int) -> tuple[dict[str, Any], list[str]]:
    names, targets = found.names, found.targets > 0
    chances = probabilities(found.logits, found.problem)
    fitted = fit_thresholds(chances, targets)
    said = {
        "at 0.5": chances > 0.5,
        "at the other half's thresholds": crossed(
            lambda rows: fit_thresholds(chances[rows], targets[rows]),
            lambda rows, thresholds: chances[rows] > thresholds,
            len(targets),
        ),
    }
    figures: dict[str, Any] = {}

    def listed(which: np.ndarray) -> list[list[str]]:
        return [[name for name, on in zip(names, row, strict=True) if on] for row in which]

    for where, guessed in said.items():
        exact = (guessed == targets).all(axis=1)
        figures[f"all classes right, {where}"] = vars(proportion(int(exact.sum()), len(exact)))
        f1 = _estimates("f1", listed(guessed), listed(targets), seed, labels=list(names))
        figures |= {f"{key}, {where}": value for key, value in f1.items()}
    figures["log loss"] = log_loss(found.logits, targets, found.problem)
    head = "| class | rows | precision | recall | F1 at 0.5 | threshold, fitted on all these rows |"
    lines = [head, "|---|---|---|---|---|---|"]
    guessed = said["at 0.5"]
    for number, name in enumerate(names):
        hits = int((guessed[:, number] & targets[:, number]).sum())
        shares = _shares(hits, targets[:, number].sum(), guessed[:, number].sum())
        lines.append(f"| {name} | {shares} {fitted[number]:.3f} |")
    figures["thresholds"] = dict(zip(names, map(float, fitted), strict=True))
    doubt = np.abs(chances - targets).max(axis=1)
    worst = [row for row in np.argsort(-doubt, kind="stable") if not (guessed[row] == targets[row]).all()][:MISTAKES]
    both = zip(listed(guessed[worst]), listed(targets[worst]), strict=True)
    shown = [f"{', '.join(one) or 'none'}, which is {', '.join(other) or 'none'}" for one, other in both]
    return figures, ["\n".join(lines), _mistakes(found, worst, shown)]


def _regression(found: Predictions, folder: Path, seed: int) -> tuple[dict[str, Any], list[str]]:
    said, targets = found.logits.reshape(-1), found.targets.astype(float)
    figures = _estimates("regression", said, targets, seed)
    worst = np.argsort(-np.abs(said - targets), kind="stable")[:MISTAKES]
    shown = [f"{said[row]:.3f}, which is {targets[row]:.3f}" for row in worst]
    return figures, [_mistakes(found, list(worst), shown)]


def calibration_error(chances: np.ndarray, targets: np.ndarray, bins: int = 15) -> float:
    """The expected calibration error (Guo et al. 2017, equation 3): the mean distance between how sure the model is and
    how often it is right, over bins of equal width."""
    return float(load_metric("calibration", bins=bins).compute(predictions=chances, references=targets)["ece"])


def _shares(hits: int, there: int, said: int) -> str:
    parts = [hits / max(said, 1), hits / max(there, 1), 2 * hits / max(there + said, 1)]
    return f"{there} | " + " | ".join(f"{part:.3f}" for part in parts) + " |"


def _mistakes(found: Predictions, rows: list[Any], said: list[str]) -> str:
    if not rows:
        return "No mistakes."
    lines = [f"## The {len(rows)} most confident mistakes"]
    for row, what in zip(rows, said, strict=True):
        text = " ".join(_read(found, row).split())
        text = (text if len(text) <= SHOWN else f"{text[:SHOWN]}...").replace("`", "'")
        lines.append(f"- {what}: `{text}`")
    return "\n".join(lines)


def _read(found: Predictions, row: int) -> str:
    """What a person reads of a row; of a tagged word those around it too."""
    if found.clusters is None or found.said is not None:
        return found.shown[row]
    near = range(max(row - AROUND, 0), min(row + AROUND + 1, len(found.shown)))
    words = (
        f"[{found.shown[n]}]" if n == row else found.shown[n] for n in near if found.clusters[n] == found.clusters[row]
    )
    return " ".join(words)


def _draw(path: Path, table: np.ndarray, names: list[str]) -> None:
    from matplotlib.figure import Figure

    size = max(4.0, 0.55 * len(names) + 2)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    axes.imshow(table / np.maximum(table.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(table):
        if count:
            color = "white" if count > table[row].sum() / 2 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="true")
    figure.savefig(path, dpi=130)
