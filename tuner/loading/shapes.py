"""The shape of a new model: a preset's or a file's fields, and what replaces some of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedTokenizerBase

from tuner.errors import ModelError, nearest, one_line
from tuner.model import PRESETS, TunerDecoderConfig, TunerEncoderConfig
from tuner.model.components import TunerConfig

SPECIAL_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")
FIELDS = {field.name for field in dataclasses.fields(TunerConfig)}
# What a saved configuration says beside its model's fields: of a checkpoint, and not of a shape.
BESIDE = {*TunerDecoderConfig().to_dict(), *TunerEncoderConfig().to_dict(), "auto_map"} - FIELDS


def base_shape(args: Any) -> dict[str, Any]:
    """The fields that `--preset`, `--model_config` and `--config_overrides` give; a `ModelError` for what is none, and
    for the first two together."""
    if args.model_config is None:
        return {**PRESETS[args.preset or "tiny"], **overrides(args.config_overrides or "")}
    if args.preset is not None:
        raise ModelError("--preset and --model_config are two shapes of one model: pass one of them.")
    return {**_read(Path(args.model_config)), **overrides(args.config_overrides or "")}


def new_shape(args: Any, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """As `base_shape`, with what tokenizer, `--max_length` and `--dropout` say."""
    shape = base_shape(args)
    return {
        "max_position_embeddings": max(args.max_length, 2048),
        **shape,
        **{name: getattr(tokenizer, name) for name in SPECIAL_IDS},
        "vocab_size": len(tokenizer),
        **({"hidden_dropout": args.dropout, "attention_dropout": args.dropout} if args.dropout else {}),
    }


def overrides(text: str) -> dict[str, Any]:
    """The fields of `--config_overrides hidden_act=relu2,mlp_type=plain`, values read as YAML; a `ModelError` for one
    that is no field's."""
    found = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or name not in FIELDS or name == "vocab_size":
            hint = nearest(name, FIELDS)
            raise ModelError(f"--config_overrides {part}: field=value of a configuration, but vocab_size.{hint}")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ModelError(f"--config_overrides {part}: {one_line(error)}") from error
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"--model_config {file}: cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ModelError(f"--model_config {file}: not JSON: {one_line(error)}") from error
    if not isinstance(found, dict):
        raise ModelError(f"--model_config {file}: an object of fields is expected.")
    shape = {name: value for name, value in found.items() if name not in BESIDE}
    for name in shape.keys() - FIELDS:
        raise ModelError(f"--model_config {file}: {name!r} is no field of our models.{nearest(name, FIELDS)}")
    return shape
