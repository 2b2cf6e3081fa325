"""What an evaluation will do, settled before a model is loaded: which tasks fit the models and the rows, on which rows,
and whether every gate can be read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml
from accelerate import PartialState
from datasets import Dataset

from tuner.config.evaluation import TASKS, EvaluationArguments
from tuner.data.columns import parse_mapping, rename_columns
from tuner.data.schema import Kind, canonicalize, shape_of
from tuner.data.sources import SOURCE_ROW, held_out_split, load_splits, open_source
from tuner.data.unused import sentence
from tuner.errors import ArgumentError, DataError, ModelError, nearest
from tuner.evaluation.subject import CALLED, kind_of
from tuner.evaluation.tasks.base import Data, Task, spread
from tuner.hardware import device_type, use_all_cores
from tuner.train.run import say

GATE = re.compile(r"(?:([a-z]+)\.)?(\S+?)\s*(>=|<=|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)")
# What training says of the rows that it sets aside: flags of a run that an evaluation of its model reads.
SPLIT_FLAGS = (
    "dataset_name",
    "dataset_config",
    "dataset_test_split",
    "test_split_size",
    "split_seed",
    "column_mapping",
)


@dataclass(frozen=True)
class Gate:
    """A figure to reach."""

    text: str
    task: str | None
    figure: str
    sign: str
    bound: float


class Found(NamedTuple):
    """Raw rows to evaluate on, their source, which of its rows they are, and those that are not among them."""

    rows: Dataset
    name: str
    what: str
    train: Dataset | None


@dataclass
class Plan:
    """What will be evaluated."""

    args: EvaluationArguments
    tasks: list[Task]
    gates: list[Gate]

    @property
    def folder(self) -> Path:
        return self.args.folder() / "eval"


def task_class(name: str) -> type[Task]:
    """The class of a task, by its name."""
    module = import_module(f"tuner.evaluation.tasks.{name}")
    return next(v for v in vars(module).values() if isinstance(v, type) and getattr(v, "name", "") == name)


def plan_evaluation(args: EvaluationArguments) -> Plan:
    """Settle tasks, rows and gates.

    Raises:
        ArgumentError: flags that go with none of the tasks, or a gate that cannot be read or names no figure.
        ModelError: a model of no kind that is evaluated, or of another than a task takes.
        DataError: rows that cannot be used, or are of another kind than a task takes.
    """
    use_all_cores()
    PartialState(cpu=args.use_cpu or device_type() == "cpu")
    gates = [read_gate(text) for text in args.gate]
    models = {name: kind_of(name, args) for name in args.names()}
    kinds = set(models.values())
    classes = [task_class(name) for name in args.tasks or TASKS]
    fitting = [each for each in classes if kinds <= set(each.models)]
    for each in classes if args.tasks else ():
        if each not in fitting:
            name, kind = next((name, kind) for name, kind in models.items() if kind not in each.models)
            wanted = " or ".join(CALLED[kind] for kind in each.models)
            raise ModelError(f"--tasks {each.name} takes {wanted}; {name} is {CALLED[kind]}.")
    if not fitting:
        said = ", ".join(f"{name} is {CALLED[kind]}" for name, kind in models.items())
        raise ModelError(f"No task takes all of these models: {said}.")
    with PartialState().main_process_first():
        tasks = _with_rows(fitting, args, kinds)
    args.check_read_by([task.name for task in tasks])
    for task in tasks:
        task.check()
    check_gates_known(gates, tasks)
    for task in tasks:
        say(f"{task.name}: {task.data.what}")
    return Plan(args, tasks, gates)


def _with_rows(classes: list[type[Task]], args: EvaluationArguments, kinds: set[str]) -> list[Task]:
    """The tasks with their rows; of those that were not asked for by name, the ones that take the rows named."""
    named_rows: Found | None = None
    tasks: list[Task] = []
    for each in classes:
        wanted = each.kinds_of(kinds)
        if not each.kinds:
            if args.dataset_name is None or args.tasks:
                tasks.append(each(args, each.own_data(args)))
            continue
        if args.dataset_name is None:
            found = _of_run(args, wanted) or read_rows(args, each.default_of(kinds), *each.set_aside)
        else:
            found = named_rows = named_rows or read_rows(args, args.dataset_name, *each.set_aside)
            if not args.tasks and not _fits(found[0], wanted):
                continue
        tasks.append(each(args, _canonical(args, wanted, *found)))
    if not tasks:
        assert named_rows is not None
        shape_of(named_rows[0][0], str(args.dataset_name), tuple(k for each in classes for k in each.kinds_of(kinds)))
        raise DataError(f"{args.dataset_name}: no task takes these rows.")
    return tasks


def _of_run(args: EvaluationArguments, wanted: tuple[Kind, ...]) -> Found | None:
    """The rows that the first model's training set aside, where its folder says and they are of a kind wanted."""
    file = Path(args.names()[0], "run.yaml")
    if not file.is_file():
        return None
    said = yaml.safe_load(file.read_text("utf-8")) or {}
    if isinstance(said.get("dataset_name"), list):
        return None  # which of them is meant, a flag says
    try:
        options = {k.removeprefix("dataset_"): said[k] for k in SPLIT_FLAGS[1:] if said.get(k) is not None}
        train, rows = load_splits(said["dataset_name"], **options, stratify="split_seed" in said)
    except (KeyError, TypeError, DataError):
        return None
    what = f"the rows that {file.parent} was validated on"
    return Found(rows, said["dataset_name"], what, train) if _fits(rows, wanted) else None


def _fits(rows: Dataset, wanted: tuple[Kind, ...]) -> bool:
    try:
        shape_of(rows[0], "", wanted)
    except DataError:
        return False
    return True


def read_rows(args: EvaluationArguments, name: str, share: float, stratify: bool) -> Found:
    """Rows to evaluate on: the test (or validation) split; without one, all rows
    of a file, and of a built-in or with `--test_split_size` those that training sets aside. Raises a DataError."""
    if name.startswith("builtin:") or args.test_split_size is not None:
        size = share if args.test_split_size is None else args.test_split_size
        given = (args.dataset_config, "train", args.dataset_test_split, size)
        train, rows = load_splits(name, *given, stratify=stratify, column_mapping=args.column_mapping)
        return Found(rows, name, "those that training sets aside", train)
    splits = ("train", args.dataset_test_split)
    source = open_source(name, splits, args.dataset_config)
    split = args.dataset_test_split if args.dataset_test_split in source else held_out_split(source, splits, name)
    if split is None and (len(source) > 1 or args.dataset_test_split != "test"):
        there = ", ".join(sorted(source))
        raise DataError(f"{name} has no split {args.dataset_test_split!r} (--dataset_test_split); it has {there}.")

    def read(split: str) -> Dataset:
        return rename_columns(source[split](), parse_mapping(args.column_mapping), name)

    train = read("train") if split and split != "train" and "train" in source else None
    what = f"its split {split!r}" if split else "all of its rows"
    return Found(read(split or next(iter(source))), name, what, train)


def _canonical(
    args: EvaluationArguments, wanted: tuple[Kind, ...], raw: Dataset, name: str, what: str, train: Dataset | None
) -> Data:
    if len(raw) == 0:
        raise DataError(f"{name} has no row to evaluate on.")
    if args.max_eval_samples is not None and args.max_eval_samples < len(raw):
        if SOURCE_ROW not in raw.column_names:
            raw = raw.add_column(SOURCE_ROW, np.arange(len(raw)))
        raw = raw.select(spread(len(raw), args.max_eval_samples))
        what = f"{len(raw)} of {what}, evenly spread"
    column = args.cluster_column
    if column and column not in raw.column_names:
        raise DataError(f"--cluster_column {column}: {name} has the columns {', '.join(raw.column_names)}.")
    kind, rows, unused = canonicalize(raw, name, wanted)
    unused.pop(column or "", None)
    say(sentence(unused, name))
    clusters = raw.select_columns([column]) if column else None
    return Data(name, kind, rows, f"{len(rows):,} rows of {name} ({what})", clusters, train)


def read_gate(text: str) -> Gate:
    """A gate as it is written, `[task.]figure>=number`; an ArgumentError where it is none."""
    found = GATE.fullmatch(text.strip())
    if found is None:
        raise ArgumentError(f"--gate {text!r}: expected a figure, >=, <=, > or <, and a number: 'accuracy>=0.9'.")
    task, figure, sign, bound = found.groups()
    if task is not None and task not in TASKS:
        raise ArgumentError(f"--gate {text}: there is no task {task!r}.{nearest(task, TASKS)}")
    return Gate(text, task, figure, sign, float(bound))


def check_gates_known(gates: list[Gate], tasks: list[Task]) -> None:
    """Refuse with an `ArgumentError` a gate of a figure that none of the tasks makes."""
    for gate in gates:
        asked = [task for task in tasks if gate.task in (None, task.name)]
        if not asked:
            raise ArgumentError(f"--gate {gate.text}: evaluated are {', '.join(task.name for task in tasks)}.")
        known = [figure for task in asked for figure in task.figures_of(task.data.kind)]
        if gate.figure not in known and not any(task.more_figures for task in asked):
            raise ArgumentError(f"--gate {gate.text}: the figures are {', '.join(known)}.{nearest(gate.figure, known)}")
