"""A run: its arguments resolved for this machine, its method, and where it stands (`tuner.train.folder`)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, TrainingArguments, set_seed
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from tuner.config.arguments import RecipeArguments
from tuner.errors import ArgumentError, nearest, one_line
from tuner.hardware import device_type, has_fast_bf16, use_all_cores
from tuner.objectives.base import Objective
from tuner.optim.check import check_training
from tuner.train.folder import check_folder, find_checkpoint, prepare_folder

A = TypeVar("A", bound=RecipeArguments)


@dataclass
class Run(Generic[A]):
    """What `open_run` found and decided.

    Attributes:
        args: the recipe's arguments.
        method: the class of its objective.
        training: transformers' arguments, resolved (mixed precision among them).
        checkpoint: the whole checkpoint to continue from, or None to start afresh.
    """

    args: A
    method: type[Objective[Any]]
    training: TrainingArguments
    checkpoint: Path | None = None

    @property
    def folder(self) -> Path:
        return Path(self.args.output_dir)


def open_run(args: A, method: type[Objective[Any]]) -> Run[A]:
    """Check the flags and the output folder, find the checkpoint to continue from, and write `run.yaml` (not in a dry
    run).

    Raises:
        CheckpointError: the folder holds another run, or one that is running, or the named checkpoint is not whole.
        ArgumentError: flags that the method or transformers refuses.
    """
    use_all_cores()
    method.check(args, PartialState(cpu=args.use_cpu).num_processes)
    training = _resolved(args)
    check_training(training)
    set_seed(args.seed)
    chosen = " (the hardware is fast in it; --bf16 false turns it off)" if training.bf16 and args.bf16 is None else ""
    say(
        "Weights in bfloat16, their next bits in the optimizer."
        if args.dtype == "bfloat16"
        else f"Mixed precision: {_precision(training)} on {training.device.type}{chosen}"
    )
    run = Run(args, method, training)
    check_folder(args)
    run.checkpoint, message = find_checkpoint(args)
    if message:
        say(message)
    if not args.dry_run:
        with PartialState().main_process_first():
            if PartialState().is_main_process:
                prepare_folder(args)
    return run


def _resolved(args: RecipeArguments) -> TrainingArguments:
    on_cpu = args.use_cpu or device_type() == "cpu"
    half = args.dtype == "bfloat16"  # then there is nothing to cast: products are in bfloat16 as they stand
    if half and args.bf16:
        raise ArgumentError("--dtype bfloat16 needs no mixed precision: leave --bf16 out.")
    if half and not args.optim.startswith("adamw_torch"):
        raise ArgumentError(f"--dtype bfloat16 is trained with AdamW, not with --optim {args.optim}.")
    bf16 = args.bf16
    if bf16 is None:
        bf16 = not half and has_fast_bf16("cpu" if on_cpu else None) and not args.extra.get("fp16")
    return args.to_training_arguments(
        bf16=bf16,
        use_cpu=on_cpu,
        resume_from_checkpoint=None,  # resolved by `find_checkpoint`
        report_to=_working_trackers(args.report_to),
        logging_nan_inf_filter=False,
        push_to_hub=False,  # one push of the finished model, by the trainer's own `push_to_hub`
        remove_unused_columns=False,
        prediction_loss_only=True,
        label_smoothing_factor=0.0,  # the objective's loss has it
        dataloader_drop_last=False,
        disable_tqdm=args.extra.get("disable_tqdm"),
    )


def _precision(training: TrainingArguments) -> str:
    return "bf16" if training.bf16 else "fp16" if training.fp16 else "off"


def _working_trackers(names: list[str]) -> list[str]:
    """The trackers that can be built here. One that cannot is no reason not to train.

    Raises:
        ArgumentError: a tracker that transformers does not know.
    """
    working: list[str] = []
    for name in names:
        if name in ("none", "all"):
            working += get_available_reporting_integrations() if name == "all" else []
        elif name not in INTEGRATION_TO_CALLBACK:
            raise ArgumentError(f"--report_to: unknown tracker {name!r}.{nearest(name, INTEGRATION_TO_CALLBACK)}")
        else:
            try:
                INTEGRATION_TO_CALLBACK[name]()
                working.append(name)
            except Exception as error:  # each tracker has its own way to say that it is not installed
                warnings.warn(f"--report_to {name} is left out: {one_line(error)}", stacklevel=2)
    return working


def say(message: str) -> None:
    """Print on the main process."""
    if PartialState().is_main_process:
        print(message, flush=True)


def product_dtype(training: TrainingArguments, model: PreTrainedModel) -> torch.dtype:
    """The dtype that a run's products are in."""
    return torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else model.dtype
