"""`tuner plan` of a recipe's configuration: on how many tokens it trains, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedConfig, PreTrainedModel

from tuner.config.arguments import RecipeArguments
from tuner.errors import ModelError
from tuner.loading.checkpoints import overrides
from tuner.loading.objective_model import configuration_of
from tuner.model import PRESETS
from tuner.objectives.electra import GeneratorAndDiscriminator

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
    """Read a recipe's YAML.

    Raises:
        ModelError: no such file, no YAML of flags, or no model of this shape.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no flags.")
        flags: dict[str, Any] = {field.name: field.default for field in fields(RecipeArguments)} | found
        rows = flags["per_device_train_batch_size"] * flags["gradient_accumulation_steps"]
        steps, context = int(flags["max_steps"]), int(flags["max_length"])
        objective = found.get("objective", "clm")
        model = flags["model_name_or_path"]
        return Training(
            model,
            None if model else _new_config(flags, objective),
            context,
            steps * rows * context * (2 if objective == "contrastive" else 1) if steps > 0 else None,
            GeneratorAndDiscriminator if objective == "rtd" else None,
        )
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        raise ModelError(f"{path} cannot be planned: {' '.join(str(error).split())}") from error


def _new_config(flags: dict[str, Any], objective: str) -> PreTrainedConfig:
    shape: dict[str, Any] = {**PRESETS[flags["preset"]], **overrides(flags["config_overrides"] or "")}
    shape["vocab_size"] = flags["vocab_size"] or shape["vocab_size"]
    kind, chosen = configuration_of(objective, shape)
    return kind(**chosen)


def cost(training: Training, operations: float, processes: int) -> dict[str, str]:
    """Tokens, operations and hours of a run.

    Args:
        operations: of training, a token.
        processes: that share the work; a configuration's batch is each one's.
    """
    if training.tokens is None:
        return {"tokens": "as many as the data has: max_steps is not given"}
    tokens = training.tokens * processes
    total = tokens * operations
    hours = {
        f"{name} hours, at {SHARE:.0%} of its peak": total / (peak * SHARE) / 3600 for name, peak in DEVICES.items()
    }
    return {
        "tokens, at most": f"{tokens:,}",
        "operations": f"{total:.2g}",
        **{name: f"{value:,.1f}" if value >= 0.1 else f"{value:.2g}" for name, value in hours.items()},
    }
