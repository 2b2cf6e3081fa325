"""Evaluating: each model on each task, row by row into files of samples, and figures of those.

Rows are dealt to the processes in blocks that do not depend on how many there are, so that two processes compute what
one does. Each writes its samples as they come; the main one puts them in order and makes the figures, and all get them.
"""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import merge
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from tuner.data.sources import SOURCE_ROW
from tuner.errors import CheckpointError, DataError
from tuner.evaluation.plan import Plan
from tuner.evaluation.statistics import Estimate, paired
from tuner.evaluation.subject import Subject, load_subject
from tuner.evaluation.tasks.base import Baselines, Figures, Row, Samples, Task
from tuner.train.run import say

# Batches of a block: within one, sequences are sorted by length.
BLOCK = 8


@dataclass
class Difference:
    """Two models on the same rows: the mean difference of a score, other - first, and its test."""

    first: str
    other: str
    figure: str
    score: str
    estimate: Estimate
    p: float
    test: str


@dataclass
class Outcome:
    """What came of a task: figures, baselines and samples by model, and paired differences from the first model."""

    task: Task
    figures: dict[str, Figures] = field(default_factory=dict)
    baselines: Baselines = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    settings: Row = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)


def evaluate(plan: Plan) -> list[Outcome]:
    """Evaluate every model on every task; writes `<task>.samples.jsonl` for each.

    Raises:
        ModelError, DataError: see `load_subject` and the tasks.
        CheckpointError: the folder cannot be written.
    """
    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"--output_dir {plan.folder.parent} cannot be written: {error.strerror}.") from error
    outcomes = [Outcome(task) for task in plan.tasks]
    several = len(plan.args.names()) > 1
    for name, label in labels(plan.args.names()).items():
        subject = load_subject(name, plan.args)
        for outcome in outcomes:
            file = f"{outcome.task.name}{f'.{label}' if several else ''}.samples.jsonl"
            _evaluate(outcome, subject, label, plan.folder / file)
        del subject
        gc.collect()
    if PartialState().is_main_process:
        for outcome in outcomes:
            outcome.differences = list(_differences(outcome, plan))
    return outcomes


def labels(names: list[str]) -> dict[str, str]:
    """A short name for each model: the last part of what it is called, or all where that tells no two apart."""
    short = [Path(name.removeprefix("builtin:")).name or name for name in names]
    unique = len(set(short)) == len(short)
    return dict(zip(names, short if unique else [name.strip("/.").replace("/", "-") for name in names], strict=True))


def _evaluate(outcome: Outcome, subject: Subject, label: str, path: Path) -> None:
    task, state = outcome.task, PartialState()
    say(f"{task.name}: {label} ...")
    started = time.monotonic()
    task.begin(subject)
    shards = [path.with_name(f".{path.name}.{rank}") for rank in range(state.num_processes)]
    with shards[state.process_index].open("w", encoding="utf-8") as file:
        for sample in _samples(task, subject):
            file.write(json.dumps(sample, ensure_ascii=False) + "\n")
    state.wait_for_everyone()
    made: list[Any] = [None]
    if state.is_main_process:
        _merge(shards, path)
        samples = Samples(path)
        made = [_figures(outcome, samples)]
    broadcast_object_list(made)
    if isinstance(made[0], str):
        raise DataError(made[0])
    outcome.figures[label], outcome.left_out[label] = made[0]
    outcome.files[label], outcome.settings, outcome.notes = path.name, task.settings(), task.notes()
    outcome.seconds[label] = round(time.monotonic() - started, 1)


def _figures(outcome: Outcome, samples: Samples) -> tuple[Figures, int] | str:
    """Figures, and how many rows have none; or what to say where no row has one, which all processes are told."""
    task = outcome.task
    if not len(samples):
        with samples.path.open(encoding="utf-8") as file:
            why = json.loads(file.readline())["left_out"]
        return f"{task.data.name}: none of the {samples.left_out:,} rows can be used for {task.name}; the first: {why}."
    figures = task.summarise(samples)
    outcome.baselines = outcome.baselines or task.baselines(samples)
    return figures, samples.left_out


def _samples(task: Task, subject: Subject) -> Iterator[Row]:
    """This process's samples, with the number of each row and what its source is called."""
    state, rows, clusters = PartialState(), task.data.rows, task.data.clusters
    size = task.block or BLOCK * task.args.per_device_eval_batch_size
    for number, start in enumerate(range(0, len(rows), size)):
        if number % state.num_processes != state.process_index:
            continue
        places = range(start, min(start + size, len(rows)))
        block = [rows[place] for place in places]
        samples = task.score(subject, block)
        whose = range(len(block)) if len(samples) == len(block) else [0] * len(samples)
        for row, place, sample in ((block[n], places[n], sample) for n, sample in zip(whose, samples, strict=True)):
            source = {} if clusters is None else {"cluster": str(next(iter(clusters[place].values())))}
            yield {"number": place, "row": row.get(SOURCE_ROW, place), **source, **sample}


def _merge(shards: list[Path], path: Path) -> None:
    """The processes' samples in the order of the rows."""
    files = [shard.open(encoding="utf-8") for shard in shards]
    with path.with_suffix(".partial").open("w", encoding="utf-8") as whole:
        whole.writelines(merge(*files, key=lambda line: json.loads(line)["number"]))
    for file, shard in zip(files, shards, strict=True):
        file.close()
        shard.unlink()
    os.replace(path.with_suffix(".partial"), path)


def _differences(outcome: Outcome, plan: Plan) -> Iterator[Difference]:
    """Each model beside the first, on the rows that both have a score of."""
    first, *others = outcome.figures
    known = {label: Samples(plan.folder / file) for label, file in outcome.files.items()} if others else {}
    for samples in known.values():
        outcome.task.score_rows(samples)
    for other in others:
        one, two = known[other], known[first]
        _, here, there = np.intersect1d(one.rows, two.rows, return_indices=True)
        for figure, score in outcome.task.by_row_of(two).items():
            if score in one.scores and score in two.scores and len(here):
                ones, others_ = one.scores[score][here], two.scores[score][there]
                both = ~np.isnan(ones) & ~np.isnan(others_)
                clusters = None if two.clusters is None else two.clusters[there][both]
                estimate, p, test = paired(ones[both], others_[both], clusters, plan.args.seed)
                yield Difference(first, other, figure, score, estimate, p, test)
