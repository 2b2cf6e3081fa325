"""What `tuner plan` is asked about: a configuration's model, laid out without memory, and what a recipe's run costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from tuner.config.arguments import parse_arguments
from tuner.config.recipes import arguments_of, find_recipe
from tuner.errors import ModelError, one_line
from tuner.families import FAMILIES
from tuner.loading.checkpoints import resolve
from tuner.loading.electra import GeneratorAndDiscriminator
from tuner.loading.models import CLASSES, fields_of
from tuner.loading.shapes import base_shape
from tuner.model import (
    PRESETS,
    TunerDecoderConfig,
    TunerDecoderForCausalLM,
    TunerEncoderForMaskedLM,
    TunerSeq2SeqForConditionalGeneration,
)
from tuner.objectives.arguments import Seq2SeqArguments
from tuner.objectives.registry import PRETRAINING

# What is pretrained with each configuration.
PRETRAINED: dict[Any, Any] = {
    kind.config_class: kind
    for kind in (TunerDecoderForCausalLM, TunerEncoderForMaskedLM, TunerSeq2SeqForConditionalGeneration)
}
# Dense operations a second in bfloat16, by NVIDIA's data sheets; and the share of them that training is taken to reach.
DEVICES = {"A100": 312e12, "H100 (SXM)": 989e12}
SHARE = 0.35


def read_plan(source: str) -> tuple[PreTrainedModel, int, int | None]:
    """Read what `read_config` reads, or a recipe's YAML as the recipe itself does.

    Returns:
        The model on the meta device; tokens of its longest sequence (of a pair, its decoder's), or of the run's; and
        those that one process reads in a run: 0 where their number hangs on the data, None without a recipe.

    Raises:
        ArgumentError: no such YAML, no recipe of it, or what the recipe would refuse; it names the line.
        ModelError: no model of this shape, none there, or no counterpart here.
    """
    if not source.endswith((".yaml", ".yml")):
        config = read_config(source)
        return _lay_out(config), getattr(config, "decoder", config).max_position_embeddings, None
    path = Path(source).expanduser()
    args: Any = parse_arguments(arguments_of(find_recipe(path)), ["--config", str(path)])
    # Its model is that of denoise: an encoder and a decoder.
    objective = getattr(args, "objective", "denoise" if isinstance(args, Seq2SeqArguments) else "clm")
    config = read_config(args.model_name_or_path) if args.model_name_or_path else _new_config(args, objective)
    model = _lay_out(config, GeneratorAndDiscriminator if objective == "rtd" else None)
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
    tokens = max(args.max_steps, 0) * rows * args.max_length * (2 if objective == "contrastive" else 1)
    return model, args.max_length, tokens


def read_config(source: str) -> Any:
    """Our configuration of a source, read as ours or translated.

    Args:
        source: a preset, a folder, a `config.json`, a Hub id, a GGUF file, or builtin:<name>; ours or of a family that
            has a counterpart here.

    Raises:
        ModelError: nothing there, or no counterpart here.
    """
    if source in PRESETS:
        return TunerDecoderConfig.from_preset(source)
    path, how = (source, {}) if source.endswith(".json") else resolve(source)
    try:
        config = AutoConfig.from_pretrained(path, **how)
        if type(config) in PRETRAINED:
            return config
        if config.model_type not in FAMILIES:
            raise ValueError(f"a {config.model_type} model has no counterpart here; there are {', '.join(FAMILIES)}.")
        return FAMILIES[config.model_type].read_config(config)
    except Exception as error:  # a damaged file fails in every way that Python can
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{source} cannot be planned: {reason}") from error


def _new_config(args: Any, objective: str) -> PreTrainedConfig:
    shape = base_shape(args)
    shape["vocab_size"] = args.vocab_size or shape.get("vocab_size") or PRESETS["tiny"]["vocab_size"]
    kind = PRETRAINING[objective].model
    try:
        return CLASSES[kind].config_class(**fields_of(kind, shape))
    except (ValueError, StrictDataclassError) as error:
        raise ModelError(f"No model has this shape: {one_line(error)}") from error


def _lay_out(config: PreTrainedConfig, kind: type[PreTrainedModel] | None = None) -> PreTrainedModel:
    with torch.device("meta"):
        model = (kind or PRETRAINED[type(config)])(config)
    model.tie_weights()
    return model


def cost(tokens: int, operations: float) -> dict[str, str]:
    """Tokens, operations and hours of a run.

    Args:
        tokens: of all processes; 0 where their number hangs on the data.
        operations: of training, a token.
    """
    if not tokens:
        return {"tokens": "as many as the data has: max_steps is not given"}
    rows = {"tokens, at most": f"{tokens:,}", "operations": f"{tokens * operations:.2g}"}
    for name, peak in DEVICES.items():
        hours = tokens * operations / (peak * SHARE) / 3600
        rows[f"{name} hours, at {SHARE:.0%} of its peak"] = f"{hours:,.1f}" if hours >= 0.1 else f"{hours:.2g}"
    return rows
