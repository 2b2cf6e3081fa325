"""What would fail once the Trainer is built, long after the data is read, is found at the start."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import SchedulerType, Trainer, TrainingArguments, get_scheduler
from transformers.trainer_optimizer import is_optimizer_factory
from transformers.training_args import ParallelMode

from tuner.errors import ArgumentError, nearest, one_line

# Share of the steps in which `warmup_stable_decay` decays (Hu et al. 2024, https://arxiv.org/abs/2404.06395: a tenth is
# enough; Hägele et al. 2024, https://arxiv.org/abs/2405.18392: up to a fifth helps).
DECAY = 0.2
# Steps to try a schedule with where their number hangs on the data.
TRIED_STEPS = 100
# The least that a number may be, and what it must be below.
LIMITS = {
    "learning_rate": (0, math.inf),
    "adam_beta1": (0, 1),
    "adam_beta2": (0, 1),
    "adam_epsilon": (0, math.inf),
    "label_smoothing_factor": (0, 1),
    "neftune_noise_alpha": (0, math.inf),
    "dataloader_num_workers": (0, math.inf),
    "dataloader_prefetch_factor": (1, math.inf),
    "eval_accumulation_steps": (1, math.inf),
    "torch_empty_cache_steps": (1, math.inf),
}


def check_training(training: TrainingArguments) -> None:
    """Refuse with an `ArgumentError` what transformers and torch refuse only when they build what trains."""
    for name, (least, below) in LIMITS.items():
        value = getattr(training, name)
        if value is not None and not least <= value < below:
            limit = f" and below {below}" if below < math.inf else ""
            raise ArgumentError(f"--{name}: expected a number of at least {least}{limit}, not {value}.")
    for name in ("lr_scheduler_kwargs", "gradient_checkpointing_kwargs"):
        if not isinstance(getattr(training, name), dict | None):
            raise ArgumentError(f'--{name}: expected JSON as {{"name": 1}}, not {getattr(training, name)!r}.')
    if training.fp16 and training.device.type == "cpu":
        raise ArgumentError("--fp16 needs an accelerator; on a CPU, bf16 is the mixed precision there is (--bf16).")
    if training.fsdp and training.parallel_mode != ParallelMode.DISTRIBUTED:
        raise ArgumentError("--fsdp needs several processes: start them with accelerate launch --num_processes N.")
    if training.torch_compile:
        known = torch.compiler.list_backends(exclude_tags=())
        backend = training.torch_compile_backend
        if backend not in known:
            raise ArgumentError(f"--torch_compile_backend {backend}: not here.{nearest(str(backend), known)}")
    _check_optimizer(training)
    _check_schedule(training)


def _check_optimizer(training: TrainingArguments) -> None:
    """Build the optimizer over one small matrix."""
    model: Any = nn.Linear(8, 8)
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(training, model)
        given = [options.pop(name) for name in ("params", "model", "optimizer_dict") if name in options]
        if is_optimizer_factory(kind):
            kind()(model, **options)
        else:
            kind(given[-1] if given else model.parameters(), **options)
    except Exception as error:  # each optimizer has its own way to refuse
        if training.optim_target_modules and isinstance(error, ValueError):
            return  # the names of modules, which only the model has
        shown = f"--optim {getattr(training.optim, 'value', training.optim)}"
        shown += f" --optim_args {training.optim_args}" if training.optim_args else ""
        raise ArgumentError(f"{shown}: {one_line(error)}") from error


def _check_schedule(training: TrainingArguments) -> None:
    """Build the learning rate's schedule, and look at its beginning, middle and end."""
    steps = training.max_steps if training.max_steps > 0 else max(TRIED_STEPS, 2 * math.ceil(training.warmup_steps))
    name = getattr(training.lr_scheduler_type, "value", training.lr_scheduler_type)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=training.learning_rate)
    try:
        warmup, options = training.get_warmup_steps(steps), schedule_kwargs(training, steps)
        schedule = get_scheduler(name, optimizer, warmup, steps, options)
        rates = [rate(step) for rate in getattr(schedule, "lr_lambdas", []) for step in (0, 1, steps // 2, steps)]
        if not all(map(math.isfinite, rates)):
            raise ValueError("the learning rate is no number.")
    except Exception as error:  # a schedule is a function of what is given, and fails in every way that Python can
        given = training.lr_scheduler_kwargs
        shown = f" --lr_scheduler_kwargs {given}" if given else " (its options go into --lr_scheduler_kwargs)"
        raise ArgumentError(f"--lr_scheduler_type {name}{shown}: {one_line(error)}") from error


def schedule_kwargs(training: TrainingArguments, steps: int) -> dict[str, Any]:
    """`--lr_scheduler_kwargs`, with the steps that `warmup_stable_decay` decays in where they are not given."""
    given: dict[str, Any] = training.lr_scheduler_kwargs or {}
    if training.lr_scheduler_type == SchedulerType.WARMUP_STABLE_DECAY:
        given = {"num_decay_steps": round(DECAY * steps), **given}
    return given
