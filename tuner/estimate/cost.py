"""`tuner plan` of a recipe's configuration: on how many tokens it trains, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel

from tuner.config.arguments import parse_arguments
from tuner.config.recipes import arguments_of, find_recipe
from tuner.errors import ModelError, one_line
from tuner.loading.checkpoints import overrides
from tuner.loading.electra import GeneratorAndDiscriminator
from tuner.loading.models import CLASSES, fields_of
from tuner.model import PRESETS
from tuner.objectives.registry import PRETRAINING

# Dense operations a second in bfloat16, by NVIDIA's data sheets; and the share of them that training is taken to reach.
DEVICES = {"A100": 312e12, "H100 (SXM)": 989e12}
SHARE = 0.35


@dataclass
class Training:
    """What a recipe's configuration says of a run.

    Attributes:
        model: what `tuner plan` takes, where it is a checkpoint.
        config: the configuration of a new model.
        tokens: read by one process in all its steps; None where their number hangs on the data.
        kind: its class, where it is not the one that comes with its configuration.
    """

    model: str | None
    config: PreTrainedConfig | None
    context: int
    tokens: int | None
    kind: type[PreTrainedModel] | None = None


def read_training(path: Path) -> Training:
    """Read a recipe's YAML, as the recipe itself does.

    Raises:
        ArgumentError: no such file, no recipe of it, or what the recipe would refuse; it names the line.
        ModelError: no model of this shape.
    """
    args: Any = parse_arguments(arguments_of(find_recipe(path)), ["--config", str(path)])
    objective = getattr(args, "objective", "clm")
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
    tokens = args.max_steps * rows * args.max_length * (2 if objective == "contrastive" else 1)
    return Training(
        args.model_name_or_path,
        None if args.model_name_or_path else _new_config(args, objective),
        args.max_length,
        tokens if args.max_steps > 0 else None,
        GeneratorAndDiscriminator if objective == "rtd" else None,
    )


def _new_config(args: Any, objective: str) -> PreTrainedConfig:
    shape: dict[str, Any] = {**PRESETS[args.preset or "tiny"], **overrides(args.config_overrides or "")}
    shape["vocab_size"] = args.vocab_size or shape["vocab_size"]
    kind = PRETRAINING[objective].model
    try:
        return CLASSES[kind].config_class(**fields_of(kind, shape))
    except (ValueError, StrictDataclassError) as error:
        raise ModelError(f"No model has this shape: {one_line(error)}") from error


def cost(training: Training, operations: float, processes: int) -> dict[str, str]:
    """Tokens, operations and hours of a run.

    Args:
        operations: of training, a token.
        processes: that share the work; a configuration's batch is each one's.
    """
    if training.tokens is None:
        return {"tokens": "as many as the data has: max_steps is not given"}
    tokens = training.tokens * processes
    rows = {"tokens, at most": f"{tokens:,}", "operations": f"{tokens * operations:.2g}"}
    for name, peak in DEVICES.items():
        hours = tokens * operations / (peak * SHARE) / 3600
        rows[f"{name} hours, at {SHARE:.0%} of its peak"] = f"{hours:,.1f}" if hours >= 0.1 else f"{hours:.2g}"
    return rows
