"""The model that a pretraining objective trains: a new one, or a checkpoint of any family with a counterpart here."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from tuner.errors import ModelError
from tuner.loading.checkpoints import load_pretrained, new_model, new_shape, require_vocabulary, resolve
from tuner.model import (
    TunerDecoderConfig,
    TunerEncoderConfig,
    TunerEncoderForMaskedLM,
    TunerEncoderForPreTraining,
    TunerEncoderForReplacedTokenDetection,
    TunerEncoderModel,
    TunerPreTrainedModel,
    TunerSeq2SeqConfig,
    TunerSeq2SeqForConditionalGeneration,
)
from tuner.model.convert import from_transformers
from tuner.objectives.electra import GeneratorAndDiscriminator
from tuner.ops.chunked_loss import can_be_chunked
from tuner.train.prepare import load_model, prepare_model, require_new
from tuner.train.run import say

# What each objective trains: our class, and the Auto class that finds a checkpoint for it.
CLASSES: dict[str, tuple[type[TunerPreTrainedModel], Any]] = {
    "mlm": (TunerEncoderForMaskedLM, AutoModelForMaskedLM),
    "mlm+nsp": (TunerEncoderForPreTraining, AutoModelForPreTraining),
    "rtd": (GeneratorAndDiscriminator, AutoModel),
    "contrastive": (TunerEncoderModel, AutoModel),
    "denoise": (TunerSeq2SeqForConditionalGeneration, AutoModelForSeq2SeqLM),
}
# What loads an encoder's checkpoint, by the end of its architecture's name.
ENCODERS = {
    "Model": AutoModel,
    "ForMaskedLM": AutoModelForMaskedLM,
    "ForPreTraining": AutoModelForPreTraining,
    "ForReplacedTokenDetection": TunerEncoderForReplacedTokenDetection,
}


def load_pretraining_model(args: Any, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The model that the objective trains: a new one, or a checkpoint of any family that has a counterpart here.

    Raises:
        ModelError: see `checkpoints`; a checkpoint without a counterpart, or of another shape than the objective's; a
            model that lacks what the objective or a flag asks of it.
    """
    model = load_model(args, tokenizer) if args.objective == "clm" else _load_ours(args, tokenizer)
    configs = [part.config for part in model.modules() if isinstance(part, PreTrainedModel)]
    experts = any(getattr(config, "num_local_experts", None) for config in configs)
    if experts and args.objective in ("rtd", "denoise", "contrastive"):
        raise ModelError(f"--objective {args.objective} has no loss that balances experts: take a model without them.")
    drops = any(getattr(model.config, name, 0) for name in ("hidden_dropout", "attention_dropout"))
    if args.objective == "contrastive" and args.views == "dropout" and not drops:
        raise ModelError("--views dropout needs a model with dropout (a new one: --dropout 0.1): both views are one.")
    if args.z_loss and args.objective == "clm" and not can_be_chunked(model):
        raise ModelError(f"--z_loss is not for {type(model).__name__}, which transforms its logits.")
    return model


def _load_ours(args: Any, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    kind, auto = CLASSES[args.objective]
    if not args.model_name_or_path:
        set_seed(args.seed)
        return prepare_model(args, _new_model(args, kind, tokenizer))
    require_new(args)
    source = {"revision": args.model_revision, "trust_remote_code": args.trust_remote_code}
    loader = auto if args.objective == "denoise" else _loader_of(args.model_name_or_path, source) or auto
    source["attn_implementation"] = args.attn_implementation or "sdpa"
    checkpoint = load_pretrained(loader, args.model_name_or_path, torch.float32, **source)
    if not isinstance(checkpoint, TunerPreTrainedModel):
        try:
            checkpoint = from_transformers(checkpoint)
        except ValueError as error:
            raise ModelError(f"{args.model_name_or_path} cannot be ours: {error}") from error
    require_vocabulary(checkpoint, tokenizer, args.model_name_or_path)
    if type(checkpoint) is kind:
        return prepare_model(args, checkpoint)
    if not isinstance(checkpoint.config, kind.config_class):
        shape = kind.config_class.__name__.removesuffix("Config")
        raise ModelError(f"{args.model_name_or_path} is no {shape}: --objective {args.objective} trains one.")
    return prepare_model(args, _with_new_parts(args, checkpoint, kind))


def _loader_of(name_or_path: str, source: dict[str, Any]) -> Any:
    path, how = resolve(name_or_path)
    try:
        names = AutoConfig.from_pretrained(path, **source, **how).architectures or []
    except (OSError, ValueError):
        return None  # loading it says what is wrong
    return next((loader for end, loader in ENCODERS.items() for name in names if name.endswith(end)), None)


def _with_new_parts(args: Any, checkpoint: Any, kind: Any) -> PreTrainedModel:
    """What the objective trains, with a checkpoint's weights in it; a generator begins as its first blocks."""
    set_seed(args.seed)
    config = copy.deepcopy(checkpoint.config)
    if args.objective == "mlm+nsp":
        config.type_vocab_size = max(config.type_vocab_size, 2)
    how = {"attn_implementation": config._attn_implementation}
    if kind is GeneratorAndDiscriminator:
        model = kind._from_config(config, shallow=True, **how)
        generator = [f"generator.{name}" for name in _take(model.generator, checkpoint)]
        new = [*_take(model.discriminator, checkpoint), *generator]
    else:
        model = kind._from_config(config, **how)
        new = _take(model, checkpoint)
    if new:
        parts = ", ".join(dict.fromkeys(new))
        say(f"{args.model_name_or_path} lacks parts of what {args.objective} trains; these are new: {parts}.")
    return model


def _take(target: Any, checkpoint: Any) -> list[str]:
    """Put a checkpoint's weights where they belong: the encoder's, and a head's where it is the same.

    Returns:
        The parts of `target` that it lacks.
    """
    new = []
    if not isinstance(checkpoint, type(target)) and not isinstance(target, type(checkpoint)):
        if hasattr(target, "model"):
            new = [name for name, _ in target.named_children() if name != "model"]
            target = target.model
        checkpoint = getattr(checkpoint, "model", checkpoint)
    state = checkpoint.state_dict()
    for name, own in target.state_dict().items():
        if name in state and own.dim() == 2 and len(state[name]) < len(own):  # a table with too few rows: those it has
            new.append(f"{len(own) - len(state[name])} of {name.removeprefix('model.').removesuffix('.weight')}")
            state[name] = torch.cat([state[name], own[len(state[name]) :]])
    missing, _ = target.load_state_dict(state, strict=False)
    return new + [name.removeprefix("model.").split(".")[0] for name in missing]


def _new_model(args: Any, kind: Any, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    fields = new_shape(args.preset, tokenizer, args.max_length, args.dropout, args.config_overrides)
    return new_model(kind, *configuration_of(args.objective, fields), args.attn_implementation)


def configuration_of(objective: str, fields: dict[str, Any]) -> tuple[type[PreTrainedConfig], dict[str, Any]]:
    """Which configuration an objective trains a new model of, and its fields, by those of one stack."""
    if objective == "clm":
        return TunerDecoderConfig, fields
    if objective != "denoise":
        return TunerEncoderConfig, {**fields, "type_vocab_size": 2 if objective == "mlm+nsp" else 0}
    # Half of the blocks each, so that a preset's size stays what it says.
    half = {**fields, "num_hidden_layers": max(fields["num_hidden_layers"] // 2, 1)}
    ids = {name: fields.get(name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    return TunerSeq2SeqConfig, {"encoder": half, "decoder": dict(half), **ids}
