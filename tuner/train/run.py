"""A run: its arguments resolved for this machine, its method, its folder, and where it stands.

`run.yaml` in the folder holds the resolved arguments, so that `--config <folder>/run.yaml` is the same run again. A
folder is one run's: another run is refused, and so is continuing one with another model or other data.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import yaml
from accelerate import PartialState
from transformers import PreTrainedModel, TrainingArguments, set_seed
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from tuner.config.arguments import DataArguments, ModelArguments, RecipeArguments
from tuner.data.labels import Labels
from tuner.errors import ArgumentError, CheckpointError, Interrupted, nearest, one_line
from tuner.hardware import device_type, has_fast_bf16, use_all_cores
from tuner.objectives.base import Objective
from tuner.optim.check import check_training
from tuner.train.callbacks import StopOnRequest
from tuner.train.checkpoint import defect, discard_staging, last_checkpoint, list_checkpoints

# Arguments that may differ when a run is continued: none of them changes a weight.
FREE_TO_CHANGE = {
    *("resume_from_checkpoint", "overwrite_output_dir", "output_dir", "dry_run", "dataset_num_proc"),
    *("logging_steps", "report_to", "push_to_hub", "hub_model_id"),
    *("eval_strategy", "eval_steps", "eval_on_start", "per_device_eval_batch_size"),
    *("save_strategy", "save_steps", "save_total_limit", "max_minutes"),
}
# Those of recipes that make it another run, beside all that name data and model.
FIXED = {
    *("objective", "train_tokenizer", "clean", "streaming", "shuffle_buffer", "loss_type", "advantage", "value"),
    *("source_lang", "target_lang", "source_prefix", "max_source_length", "max_target_length"),
}
LOCK = ".lock"

A = TypeVar("A", bound=RecipeArguments)


@dataclass
class Run(Generic[A]):
    """What `open_run` found and decided."""

    args: A
    method: type[Objective[Any]]
    training: TrainingArguments  # resolved: mixed precision, trackers
    checkpoint: Path | None = None  # the whole one to continue from
    labels: Labels | None = None  # of rows with labels

    @property
    def folder(self) -> Path:
        return Path(self.args.output_dir)


def open_run(args: A, method: type[Objective[Any]]) -> Run[A]:
    """Check the flags and the folder, find the checkpoint to continue from, and write `run.yaml` (not in a dry run).

    Raises:
        CheckpointError: the folder holds another run, or one that is running, or the named checkpoint is not whole.
        ArgumentError: flags that the method or transformers refuses.
    """
    use_all_cores()
    on_cpu = args.use_cpu or device_type() == "cpu"  # else torchrun's processes on CPUs would count as one
    method.check(args, _processes(args, on_cpu))
    training = resolved(args, method.training)
    check_training(training)
    if training.full_determinism:  # CUDA's products ask for it once, at the first of them, which is before the trainer
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    set_seed(args.seed)
    if args.dtype == "bfloat16":
        say("Weights in bfloat16, their next bits in the optimizer.")
    else:
        precision = "bf16" if training.bf16 else "fp16" if training.fp16 else "off"
        why = " (the hardware is fast in it; --bf16 false turns it off)" if training.bf16 and args.bf16 is None else ""
        say(f"Mixed precision: {precision} on {training.device.type}{why}")
    check_folder(args)
    checkpoint = find_checkpoint(args)
    if not args.dry_run:
        with PartialState().main_process_first():
            if PartialState().is_main_process:
                prepare_folder(args)
    return Run(args, method, training, checkpoint)


def _processes(args: RecipeArguments, on_cpu: bool) -> int:
    """How many there are. Their group is opened here, and once: with the flags that are for it.

    Raises:
        ArgumentError: `--ddp_backend` is not for these processes, or this one is alone.
    """
    backend, timeout = args.extra.get("ddp_backend"), timedelta(seconds=float(args.extra.get("ddp_timeout", 1800)))
    try:
        return PartialState(cpu=on_cpu, backend=backend, timeout=timeout).num_processes
    except (ValueError, ImportError) as error:
        if backend is None:
            raise
        raise ArgumentError(f"--ddp_backend {backend}: {one_line(error)}") from error


def resolved(args: RecipeArguments, kind: type[TrainingArguments] = TrainingArguments) -> TrainingArguments:
    """transformers' arguments for this machine, of this kind; an ArgumentError for those that do not go together."""
    on_cpu = args.use_cpu or device_type() == "cpu"
    half = args.dtype == "bfloat16"  # then there is nothing to cast: products are in bfloat16 as they stand
    if half and args.bf16:
        raise ArgumentError("--dtype bfloat16 needs no mixed precision: leave --bf16 out.")
    if half and not args.optim.startswith("adamw_torch"):
        raise ArgumentError(f"--dtype bfloat16 is trained with AdamW, not with --optim {args.optim}.")
    bf16 = args.bf16
    if bf16 is None:
        bf16 = not half and has_fast_bf16("cpu" if on_cpu else None) and not args.extra.get("fp16")
    early: dict[str, Any] = {}
    if args.early_stopping_patience is not None:
        if args.eval_strategy == "no":
            raise ArgumentError("--early_stopping_patience needs evaluations: --eval_strategy epoch or steps.")
        early = {"load_best_model_at_end": True, "save_strategy": args.eval_strategy}
        early["save_steps"] = args.eval_steps or args.logging_steps
    return args.to_training_arguments(
        kind,
        **early,
        bf16=bf16,
        use_cpu=on_cpu,
        resume_from_checkpoint=None,  # resolved by `find_checkpoint`
        report_to=_working_trackers(args.report_to),
        logging_nan_inf_filter=False,
        push_to_hub=False,  # one push of the finished model, by the trainer's own `push_to_hub`
        remove_unused_columns=False,
        label_smoothing_factor=0.0,  # the objective's loss has it
        dataloader_drop_last=False,
    )


def _working_trackers(names: list[str]) -> list[str]:
    """The trackers that can be built here. One that cannot is no reason not to train; one that transformers does not
    know is an `ArgumentError`."""
    working = []
    for name in get_available_reporting_integrations() if "all" in names else names:
        if name not in (*INTEGRATION_TO_CALLBACK, "none"):
            raise ArgumentError(f"--report_to: unknown tracker {name!r}.{nearest(name, INTEGRATION_TO_CALLBACK)}")
        try:
            if name != "none":
                INTEGRATION_TO_CALLBACK[name]()
                working.append(name)
        except Exception as error:  # each tracker has its own way to say that it is not installed
            warnings.warn(f"--report_to {name} is left out: {one_line(error)}", stacklevel=2)
    return working


def say(message: str | None) -> None:
    """Print on the main process, if there is anything to say."""
    if message and PartialState().is_main_process:
        print(message, flush=True)


def report_stop(stop: StopOnRequest, folder: Path, step: int, most: int, unit: str = "step") -> None:
    """Say where a run stopped that was asked to, and how to go on; raise `Interrupted` where a signal asked."""
    if not stop.received and not (stop.out_of_time and step < most):
        return
    where = last_checkpoint(folder)
    goes_on = f"Saved {where}. The same command with --resume_from_checkpoint true continues."
    rest = f"at {unit} {step:,} of {most:,}. {goes_on if where else 'Nothing was saved (--save_strategy no).'}"
    if stop.received:
        raise Interrupted(f"Stopped by a signal {rest}", stop.received)
    say(f"Stopped by --max_minutes {stop.minutes:g} {rest}")


def product_dtype(training: TrainingArguments, model: PreTrainedModel) -> torch.dtype:
    """The dtype that a run's products are in."""
    return torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else model.dtype


def resumes(args: RecipeArguments) -> bool:
    """Whether a run may be continued."""
    return args.resume_from_checkpoint.lower() not in ("false", "no", "0", "")


def check_folder(args: RecipeArguments) -> None:
    """Refuse with a `CheckpointError` a folder that holds another run."""
    folder = Path(args.output_dir)
    earlier = folder / "run.yaml"
    if args.overwrite_output_dir or not earlier.is_file():
        return
    if not resumes(args):
        if list_checkpoints(folder) or (folder / "metrics.json").exists():
            raise CheckpointError(
                f"{folder} already holds a run. Continue it with --resume_from_checkpoint true, discard it with "
                "--overwrite_output_dir true, or choose another --output_dir."
            )
        return
    before, now = yaml.safe_load(earlier.read_text(encoding="utf-8")) or {}, plain(args)
    changed = {k for k in before.keys() | now.keys() if before.get(k) != now.get(k)} - FREE_TO_CHANGE
    shown = "\n".join(f"  {name}: {before.get(name)} there, {now.get(name)} here" for name in sorted(changed))
    if changed & (FIXED | {f.name for kind in (DataArguments, ModelArguments) for f in fields(kind)}):
        raise CheckpointError(
            f"{folder} holds another run, which cannot be continued with these arguments:\n{shown}\n"
            "Choose another --output_dir, or discard that run with --overwrite_output_dir true."
        )
    if changed:
        what = "is continued with other arguments; the result will not equal an uninterrupted run's"
        warnings.warn(f"{folder} {what}:\n{shown}", stacklevel=2)


def find_checkpoint(args: RecipeArguments) -> Path | None:
    """The whole checkpoint that a run continues from, or None. A `CheckpointError` where the named one is not whole, or
    holds a model alone."""
    folder, named = Path(args.output_dir), args.resume_from_checkpoint
    if not resumes(args) or args.overwrite_output_dir:
        return None
    if named.lower() in ("true", "yes", "1"):
        found = last_checkpoint(folder)
        if found is None:
            say(f"No checkpoint in {folder} yet: starting at step 0.")
            return None
    else:
        found = Path(named)
        reason = defect(found) if found.is_dir() else "there is no such folder"
        if reason is not None:
            raise CheckpointError(f"--resume_from_checkpoint {found} is not a whole checkpoint: {reason}.")
    if not any(path.name.startswith(("optimizer", "global_step")) for path in found.iterdir()):
        raise CheckpointError(
            f"{found} holds a model without the optimizer's state (--save_only_model true), so the run cannot be "
            f"continued. Train on from it as a model: --model_name_or_path {found} and another --output_dir."
        )
    say(f"Continuing from {found}.")
    return found


def prepare_folder(args: RecipeArguments) -> None:
    """Make the folder and write `run.yaml`; a `CheckpointError` where that fails, or another process trains in it."""
    folder, recipe = Path(args.output_dir), Path(sys.argv[0])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            if args.overwrite_output_dir and (folder / "run.yaml").is_file():
                for path in folder.iterdir():
                    if path.name != LOCK:
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
            discard_staging(folder)
            launch = f"# accelerate launch {recipe.parent.name}/{recipe.name} --config {folder}/run.yaml\n"
            text = launch + yaml.safe_dump(plain(args), allow_unicode=True)
            (folder / "run.yaml").write_text(text, encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"--output_dir {folder} cannot be written: {error.strerror}.") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for one process, or raise a `CheckpointError`. The lock goes with the process, however it ends."""
    with (folder / LOCK).open("a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise CheckpointError(
                f"Another run (process {file.read().strip() or 'unknown'}) is training in {folder}: wait for it, end "
                "it, or choose another --output_dir."
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def plain(args: RecipeArguments) -> dict[str, Any]:
    """The arguments as YAML gives them back; what is None is left out."""
    return {k: v for k, v in yaml.safe_load(yaml.safe_dump(args.saved())).items() if v is not None}
