"""lm-eval's harness on a loaded model (Gao et al. 2021, https://github.com/EleutherAI/lm-evaluation-harness).

Its own tasks read their data from the Hub. Those of the folder `lm_eval` here are the same harness over built-in data,
for a machine without a network. A row of this task is a task of the harness; its samples are that one's documents.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import set_seed

from tuner.config.evaluation import EvaluationArguments
from tuner.data.sources import load_splits
from tuner.errors import ArgumentError, DataError, from_extra, nearest, one_line
from tuner.evaluation.statistics import Estimate, bootstrap
from tuner.evaluation.subject import Subject
from tuner.evaluation.tasks.base import Data, Figures, Row, Samples, Task, without_interval

FOLDER = Path(__file__).parent / "lm_eval"
OURS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
# Documents of a task, at most: a sample's number is its task's times this, and its own.
MOST = 10_000_000
ROLLING = ("word_perplexity", "byte_perplexity", "bits_per_byte")


def builtin(name: str, test_split_size: float = 0.05, **_: Any) -> dict[str, Dataset]:
    """Built-in rows as the harness takes them, for the tasks in `lm_eval`."""
    train, held_out = load_splits(name, test_split_size=test_split_size)
    return {"train": train, "test": held_out}


def answerable(rows: Dataset) -> Dataset:
    """The questions that have an answer."""
    return rows.filter(lambda row: bool(row["answers"]["text"]))


class Harness(Task):
    """Tasks of lm-eval."""

    name = "harness"
    more_figures = True
    block = 1

    @classmethod
    def own_data(cls, args: EvaluationArguments) -> Data:
        names = args.harness_tasks or OURS
        rows: list[Row] = [{"harness_task": name} for name in names]
        return Data("lm-eval", None, rows, f"tasks of lm-eval: {', '.join(names)}")

    def check(self) -> None:
        from_extra("lm_eval", "eval")
        from lm_eval.tasks import TaskManager

        logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of what is meant here
        names = [row["harness_task"] for row in self.data.rows]
        manager = TaskManager(include_path=str(FOLDER), include_defaults=not set(names) <= set(OURS))
        for name in names:
            if name not in manager.all_tasks and not Path(name).is_file():
                known = f"ours are {', '.join(OURS)}; lm-eval's are listed by `lm-eval ls tasks`."
                raise ArgumentError(f"--harness_tasks {name}: {known}{nearest(name, manager.all_tasks)}")
        self.loaded = [self._load(manager, name) for name in names]

    def _load(self, manager: Any, name: str) -> Any:
        """A task or a group, with its data; as lm-eval's `simple_evaluate` makes it ready."""
        try:
            found = manager.load([name])
        except Exception as error:  # whatever a task's own code or the connection raises
            raise DataError(f"--harness_tasks {name} could not be loaded: {one_line(error)}") from error
        for task in found["tasks"].values():
            if self.args.num_fewshot is not None or task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=self.args.num_fewshot or 0)
            task.set_fewshot_seed(seed=self.args.seed)
        return found

    def begin(self, subject: Subject) -> None:
        from lm_eval.models.huggingface import HFLM

        self.length = subject.longest(self.args.max_length)
        ids = subject.tokenizer("a")["input_ids"]
        # A tokenizer may end each text, as ours do: nothing could follow a prompt.
        ends = len(ids) > 1 and ids[-1] in subject.tokenizer.all_special_ids
        self.lm = HFLM(
            subject.model, tokenizer=subject.tokenizer, max_length=self.length, add_bos_token=False if ends else None,
            batch_size=self.args.per_device_eval_batch_size,
        )  # fmt: skip

    def score(self, subject: Subject, rows: list[Row]) -> list[Row]:
        from lm_eval.evaluator import evaluate

        samples: list[Row] = []
        for place in (self.data.rows.index(row) for row in rows):
            set_seed(self.args.seed)
            try:
                # Not `simple_evaluate`, which returns nothing in other processes than the first.
                found: Any = evaluate(
                    self.lm, self.loaded[place], limit=self.args.max_eval_samples, bootstrap_iters=1000
                )  # fmt: skip
            except Exception as error:  # whatever a task's own code raises
                raise DataError(f"{rows[0]['harness_task']}: lm-eval says: {one_line(error)}") from error
            samples += self._samples(place, found)
        return samples

    def _samples(self, place: int, found: Row) -> Iterator[Row]:
        """A sample for each document; the first of a task with what the harness makes of all of them."""
        number = place * MOST
        for name, documents in found["samples"].items():
            whole = found["results"][name]
            for document in documents:
                scores = {}
                for metric in document["metrics"]:
                    value = document[metric]
                    if metric in ROLLING:
                        scores["nll"], scores[metric] = -value[0], value[1]
                    elif isinstance(value, bool | int | float):
                        scores[f"{name}/{metric}"] = float(value)
                asked = {key: document[key] for key in ("target", "arguments", "filtered_resps", "filter")}
                yield {"number": number, "task": name, "row": document["doc_id"], **asked, "scores": scores} | (
                    {"results": {k: v for k, v in whole.items() if isinstance(v, int | float)}} if whole else {}
                )
                number, whole = number + 1, {}

    def summarise(self, samples: Samples) -> Figures:
        figures: Figures = {}
        wholes = {sample["task"]: sample["results"] for sample in samples if "results" in sample}
        tasks = np.array([sample["task"] for sample in samples])
        for name, whole in wholes.items():
            inside = np.flatnonzero(tasks == name)
            for key, value in whole.items():
                metric, _, chosen = key.partition(",")
                if not chosen or metric.endswith("_stderr"):
                    continue
                figure = f"{name}/{metric}" if chosen == "none" else f"{name}/{metric}/{chosen}"
                error = whole.get(f"{metric}_stderr,{chosen}")
                figures[figure] = self._estimate(samples, inside, figure, metric, value, error)
        return figures

    def _estimate(
        self, samples: Samples, inside: np.ndarray, figure: str, metric: str, value: float, error: float | None
    ) -> Estimate:
        scores = samples.scores.get(figure)
        if scores is not None and math.isclose(np.nanmean(scores), value, rel_tol=1e-6, abs_tol=1e-9):
            return self.mean(samples, figure)
        if metric in ROLLING:
            nll, size = samples.scores["nll"][inside], samples.scores[metric][inside]

            def of_rows(rows: np.ndarray) -> float:
                nats = float(nll[rows].sum() / size[rows].sum())
                return nats / math.log(2) if metric == "bits_per_byte" else float(np.exp(nats))

            return bootstrap(of_rows, len(inside), seed=self.args.seed)
        if error is None or not math.isfinite(error):
            return without_interval(value, len(inside), "lm-eval has none")
        return Estimate(value, value - 1.96 * error, value + 1.96 * error, len(inside), "lm-eval's standard error")

    def by_row_of(self, samples: Samples) -> dict[str, str]:
        return {score: score for score in samples.scores if "/" in score}

    def settings(self) -> Row:
        shots = self.args.num_fewshot
        return {"max_length": self.length, "num_fewshot": "the task's" if shots is None else shots}

    def notes(self) -> list[str]:
        limit = f" Of each task the first {self.args.max_eval_samples} documents." if self.args.max_eval_samples else ""
        return [f"Prompts are the tasks' own, without a chat template.{limit}"]
