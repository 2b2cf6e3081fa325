"""The flags of an evaluation, under the names that training has for the same, and lm-eval's elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from tuner.config.arguments import flag
from tuner.errors import ArgumentError, nearest

TASKS = ("perplexity", "generation", "classification", "qa", "preference", "safety", "harness")
DEFAULT_MODEL = "builtin:smollm2-135m-instruct"
# Flags that some tasks alone read.
READ_BY = {
    "stride": ("perplexity", "qa"),
    "max_length": ("perplexity", "classification", "qa", "preference", "harness"),
    "max_new_tokens": ("generation", "qa"),
    **dict.fromkeys(("temperature", "top_p", "top_k", "metrics"), ("generation",)),
    "safety_classifier": ("safety",),
    "harness_tasks": ("harness",),
    "num_fewshot": ("harness",),
    **dict.fromkeys(
        ("dataset_name", "dataset_config", "dataset_test_split", "test_split_size", "column_mapping", "cluster_column"),
        ("perplexity", "generation", "classification", "qa", "preference"),
    ),
}


@dataclass
class EvaluationArguments:
    """Evaluation."""

    # A flag of training would be ignored: it is refused.
    PASSED_ON: ClassVar[bool] = False

    model_name_or_path: str | None = flag(
        None, f"Model: a run's folder, an adapter, a Hub id, a GGUF or builtin:<name>. Without it, {DEFAULT_MODEL}."
    )
    models: list[str] = flag([], "Several models in its place, on the same rows: each is compared with the first.")
    tokenizer_name_or_path: str | None = flag(None, "Tokenizer, where it is not the model's.")
    chat_template_path: str | None = flag(None, "Chat template: 'chatml', a Jinja file, or a folder with a tokenizer.")
    model_revision: str = flag("main", "Branch, tag or commit of the model on the Hub.")
    trust_remote_code: bool = flag(False, "Allow code that comes with a model on the Hub.")
    dtype: Literal["float32", "bfloat16"] = flag("float32", "Weights, and products with them.")
    use_cpu: bool = flag(False, "Compute on the CPU, whatever accelerator there is.")
    tasks: list[str] = flag([], f"What to evaluate: {', '.join(TASKS)}. Without it, all that fit model and data.")
    dataset_name: str | None = flag(
        None, "A Hub id, a local file or folder, or builtin:<name>. Without it, a built-in one for each task."
    )
    dataset_config: str | None = flag(None, "Configuration of a Hub dataset.")
    column_mapping: str | None = flag(None, "Columns of other names, as question=prompt,answer=completion.")
    dataset_test_split: str = flag("test", "Split to evaluate on; of a file without splits, all of it.")
    test_split_size: float | None = flag(
        None, "Of a source without splits only what training sets aside: a share below 1, or a number of rows.", least=0
    )
    max_eval_samples: int | None = flag(None, "At most so many rows, evenly spread over what there is.", least=1)
    cluster_column: str | None = flag(
        None, "Column that says which rows share a source: intervals are then as wide as so many sources allow."
    )
    per_device_eval_batch_size: int = flag(8, "Sequences a device computes at once.", least=1)
    max_length: int | None = flag(
        None, "Longest sequence, in tokens; of perplexity the window. Without it: what the model reads, most 2048.", 2
    )
    stride: int | None = flag(
        None,
        "perplexity: tokens from one window to the next; without it max_length, as lm-eval; fewer give each token more "
        "context, for more time. qa: tokens that two windows share; without it a third of max_length.",
        least=1,
    )
    max_new_tokens: int = flag(64, "generation, qa: longest answer, in tokens.", least=1)
    temperature: float = flag(0.0, "generation: 0 is greedy.", least=0)
    top_p: float = flag(1.0, "generation: nucleus sampling.", least=0, most=1)
    top_k: int = flag(0, "generation: sample among so many tokens; 0 for all.", least=0)
    metrics: list[str] = flag([], "generation: more metrics of texts by name, those of the Hub too.")
    safety_classifier: str | None = flag(None, "safety: a text classifier whose scores of both sentences are compared.")
    harness_tasks: list[str] = flag([], "harness: tasks of lm-eval by name. Without it, ours on built-in data.")
    num_fewshot: int | None = flag(None, "harness: examples before each question.", least=0)
    gate: list[str] = flag(
        [], "Figures to reach, as 'accuracy>=0.9' or 'qa.f1>0.5' each; where one falls short, the exit code is 1."
    )
    seed: int = flag(42, "Seed of sampling and of the bootstrap.", least=0, most=2**32 - 1)
    output_dir: str | None = flag(
        None, "Folder for the report. Without it: the model's own, or runs/eval/<model> where that is no local folder."
    )

    def __post_init__(self) -> None:
        if self.models and self.model_name_or_path:
            raise ArgumentError("--models is in place of --model_name_or_path: pass one of them.")
        if len(set(self.models)) < len(self.models):
            raise ArgumentError(f"--models {' '.join(self.models)}: one of them is there twice.")
        for name in self.tasks:
            if name not in TASKS:
                raise ArgumentError(f"--tasks {name}: there are {', '.join(TASKS)}.{nearest(name, TASKS)}")
        for name in ("top_p", "top_k"):
            if getattr(self, name) != self._default(name) and not self.temperature:
                raise ArgumentError(f"--{name} chooses among tokens that are sampled: pass --temperature above 0.")
        if self.temperature and not self.top_p:
            raise ArgumentError("--top_p must be above 0.")
        if self.stride and self.max_length and self.stride > self.max_length:
            raise ArgumentError(f"--stride {self.stride} would leave out tokens: --max_length is {self.max_length}.")
        if self.tasks:
            self.check_read_by(self.tasks)

    def check_read_by(self, tasks: list[str]) -> None:
        """Refuse with an `ArgumentError` a flag that none of the tasks reads."""
        for name, readers in READ_BY.items():
            if getattr(self, name) != self._default(name) and not set(readers) & set(tasks):
                raise ArgumentError(f"--{name} is for {', '.join(readers)}; evaluated are {', '.join(tasks)}.")

    def _default(self, name: str) -> Any:
        item = next(item for item in fields(self) if item.name == name)
        return item.default_factory() if callable(item.default_factory) else item.default

    def names(self) -> list[str]:
        """The models to evaluate, as they were named."""
        return self.models or [self.model_name_or_path or DEFAULT_MODEL]

    def folder(self) -> Path:
        """Where the report goes."""
        if self.output_dir:
            return Path(self.output_dir).expanduser()
        if len(self.names()) > 1:
            return Path("runs/eval/comparison")
        name = self.names()[0]
        own = Path(name).expanduser()
        return own if own.is_dir() else Path("runs/eval") / name.removeprefix("builtin:").replace("/", "--")
