"""The model that a method trains: a new one, or a checkpoint of any family that the method can take.

A method names the kind of model; what a checkpoint lacks of it (a head, a generator beside it) is new, and said.
"""

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

from tuner.config.arguments import ModelArguments, RecipeArguments
from tuner.errors import ModelError
from tuner.hardware import device_type
from tuner.loading.checkpoints import (
    SPECIAL_IDS,
    as_ours,
    load_pretrained,
    new_model,
    new_shape,
    pretrained_decoder,
    require_positions,
    require_vocabulary,
    resolve,
)
from tuner.loading.electra import GeneratorAndDiscriminator
from tuner.model import (
    TunerDecoderConfig,
    TunerDecoderForCausalLM,
    TunerEncoderConfig,
    TunerEncoderForMaskedLM,
    TunerEncoderForPreTraining,
    TunerEncoderForReplacedTokenDetection,
    TunerEncoderModel,
    TunerPreTrainedModel,
    TunerSeq2SeqConfig,
    TunerSeq2SeqForConditionalGeneration,
)
from tuner.ops.block_attention import BLOCK_ATTENTION, can_use_block_attention
from tuner.ops.plain import use_plain_ops
from tuner.optim.split_adamw import halve_parameters

# What each kind of model is: our class, and the Auto class that finds a checkpoint for it.
CLASSES: dict[str, tuple[type[TunerPreTrainedModel], Any]] = {
    "masked": (TunerEncoderForMaskedLM, AutoModelForMaskedLM),
    "pretraining": (TunerEncoderForPreTraining, AutoModelForPreTraining),
    "electra": (GeneratorAndDiscriminator, AutoModel),
    "encoder": (TunerEncoderModel, AutoModel),
    "seq2seq": (TunerSeq2SeqForConditionalGeneration, AutoModelForSeq2SeqLM),
}
# Kinds whose loss keeps experts in balance.
BALANCED = ("decoder", "masked", "pretraining")
# What loads an encoder's checkpoint, by the end of its architecture's name.
ENCODERS = {
    "Model": AutoModel,
    "ForMaskedLM": AutoModelForMaskedLM,
    "ForPreTraining": AutoModelForPreTraining,
    "ForReplacedTokenDetection": TunerEncoderForReplacedTokenDetection,
}


def build_model(args: RecipeArguments, kind: str, tokenizer: PreTrainedTokenizerBase) -> tuple[PreTrainedModel, str]:
    """A model of a kind ("decoder", or a key of `CLASSES`), new ones drawn from the seed alone, ready to be trained.

    Returns:
        The model, and a sentence about what of it is new beside a checkpoint's weights, or nothing.

    Raises:
        ModelError: see `tuner.loading.checkpoints`; a checkpoint without a counterpart, or of another shape; flags that
            only a new model takes, with a checkpoint.
    """
    for name in ("preset", "config_overrides", "dropout") if args.model_name_or_path else ():
        if getattr(args, name):
            raise ModelError(f"--{name} is for a new model: a checkpoint's configuration is its own.")
    new = ""
    if not args.model_name_or_path:
        set_seed(args.seed)
        fields = new_shape(args.preset or "tiny", tokenizer, args.max_length, args.dropout, args.config_overrides)
        class_ = TunerDecoderForCausalLM if kind == "decoder" else CLASSES[kind][0]
        model = new_model(class_, *configuration_of(kind, fields), args.attn_implementation)
    elif kind == "decoder":
        options = {**_source(args), "attn_implementation": args.attn_implementation}
        model = pretrained_decoder(args.model_name_or_path, tokenizer, args.own_model, **options)
    else:
        model, new = _from_checkpoint(args, kind, tokenizer)
    configs = [part.config for part in model.modules() if isinstance(part, TunerPreTrainedModel)]
    if kind not in BALANCED and any(getattr(config, "num_local_experts", None) for config in configs):
        raise ModelError("This method has no loss that balances experts: take a model without them.")
    return prepare_model(args, model), new


def prepare_model(args: RecipeArguments, model: PreTrainedModel) -> PreTrainedModel:
    """A model with the attention that is fast here and its weights in `--dtype`; a `ModelError` where `--max_length` is
    beyond its positions."""
    require_positions(model, args.max_length)
    on_cpu = args.use_cpu or device_type() == "cpu"
    if not args.fast_ops:
        use_plain_ops(model)
    elif on_cpu and not args.attn_implementation and can_use_block_attention(model):
        model.set_attn_implementation(BLOCK_ATTENTION)
    if args.dtype == "bfloat16":
        halve_parameters(model)
        model.config.dtype = torch.bfloat16
    return model


def configuration_of(kind: str, fields: dict[str, Any]) -> tuple[type[PreTrainedConfig], dict[str, Any]]:
    """The configuration of a new model of a kind, and its fields, from those of one stack."""
    if kind == "decoder":
        return TunerDecoderConfig, fields
    if kind != "seq2seq":
        return TunerEncoderConfig, {**fields, "type_vocab_size": 2 if kind == "pretraining" else 0}
    # Half of the blocks each, so that a preset's size stays what it says.
    half = {**fields, "num_hidden_layers": max(fields["num_hidden_layers"] // 2, 1)}
    ids = {name: fields.get(name) for name in SPECIAL_IDS}
    return TunerSeq2SeqConfig, {"encoder": half, "decoder": dict(half), **ids}


def _from_checkpoint(
    args: ModelArguments, kind: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedModel, str]:
    class_, auto = CLASSES[kind]
    name = str(args.model_name_or_path)
    source = _source(args)
    loader = auto if kind == "seq2seq" else _loader_of(name, source) or auto
    attention = args.attn_implementation or "sdpa"
    checkpoint = load_pretrained(loader, name, torch.float32, attn_implementation=attention, **source)
    checkpoint = as_ours(checkpoint, name)
    require_vocabulary(checkpoint, tokenizer, name)
    if type(checkpoint) is class_:
        return checkpoint, ""
    if not isinstance(checkpoint.config, class_.config_class):
        shape = class_.config_class.__name__.removesuffix("Config")
        raise ModelError(f"{name} is no {shape}, which this method trains.")
    model, new = _with_new_parts(args, checkpoint, class_)
    parts = ", ".join(dict.fromkeys(new))
    return model, f"{name} lacks parts of what is trained; these are new: {parts}." if new else ""


def _source(args: ModelArguments) -> dict[str, Any]:
    return {"revision": args.model_revision, "trust_remote_code": args.trust_remote_code}


def _loader_of(name_or_path: str, source: dict[str, Any]) -> Any:
    path, how = resolve(name_or_path)
    try:
        names = AutoConfig.from_pretrained(path, **source, **how).architectures or []
    except (OSError, ValueError):
        return None  # loading it says what is wrong
    return next((loader for end, loader in ENCODERS.items() for name in names if name.endswith(end)), None)


def _with_new_parts(args: Any, checkpoint: Any, kind: Any) -> tuple[PreTrainedModel, list[str]]:
    """A model with a checkpoint's weights in it, and which parts are new; a generator begins as its first blocks."""
    set_seed(args.seed)
    config = copy.deepcopy(checkpoint.config)
    if kind is TunerEncoderForPreTraining:
        config.type_vocab_size = max(config.type_vocab_size, 2)
    how = {"attn_implementation": config._attn_implementation}
    if kind is not GeneratorAndDiscriminator:
        model = kind._from_config(config, **how)
        return model, _take(model, checkpoint)
    pair = kind._from_config(config, shallow=True, **how)
    generator = [f"generator.{name}" for name in _take(pair.generator, checkpoint)]
    return pair, [*_take(pair.discriminator, checkpoint), *generator]


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
