"""Pictures of figures: points with their intervals, baselines as dashed lines."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

Json = dict[str, Any]


def main_figure(found: Json) -> str:
    """The figure that stands for a task: the first."""
    return next(iter(next(iter(found["models"].values()))["figures"]))


def plot_task(path: Path, found: Json) -> None:
    """A panel for each figure of a task (`<task>.json`): every model, and the baselines."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for model in found["models"].values() for name in model["figures"]))
    across = min(len(names), 3)
    down = math.ceil(len(names) / across)
    picture = Figure(figsize=(3.8 * across, (1.1 + 0.35 * len(found["models"])) * down), layout="constrained")
    panels = picture.subplots(down, across, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        _points(axes, {label: model["figures"].get(name) for label, model in found["models"].items()})
        beside = found["baselines"].get(name, {})
        for number, (who, value) in enumerate(beside.items(), 1):
            axes.axvline(value, linestyle="--", color=f"C{number}", label=who)
        if beside:
            axes.legend(fontsize=7)
        axes.set_title(name, fontsize=9)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    picture.savefig(path, dpi=110)


def plot_models(path: Path, found: list[Json]) -> None:
    """Every model on each task's main figure."""
    from matplotlib.figure import Figure

    height = 0.9 + 0.3 * len(found[0]["models"])
    picture = Figure(figsize=(7, height * len(found)), layout="constrained")
    for axes, each in zip(picture.subplots(len(found), 1, squeeze=False).ravel(), found, strict=True):
        main = main_figure(each)
        _points(axes, {label: model["figures"].get(main) for label, model in each["models"].items()})
        axes.set_title(f"{each['task']}: {main}", fontsize=9)
    picture.savefig(path, dpi=110)


def _points(axes: Any, figures: dict[str, Json | None]) -> None:
    for place, figure in enumerate(figures.values()):
        if figure is None or figure["value"] is None:
            continue
        value, low, high = figure["value"], figure["low"], figure["high"]
        ends = None if low is None else [[max(value - low, 0)], [max(high - value, 0)]]
        axes.errorbar(value, place, xerr=ends, fmt="o", color="C0", capsize=3)
    axes.set_yticks(range(len(figures)), list(figures), fontsize=8)
    axes.set_ylim(len(figures) - 0.5, -0.5)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", alpha=0.3)
