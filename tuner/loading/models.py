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
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from tuner.config.arguments import ModelArguments, RecipeArguments
from tuner.data.labels import Labels
from tuner.errors import ModelError
from tuner.hardware import device_type
from tuner.loading.checkpoints import (
    as_ours,
    load_pretrained,
    new_model,
    pretrained_decoder,
    require_positions,
    require_vocabulary,
    resolve,
    set_ends,
)
from tuner.loading.classifiers import HEADS, build_with_head
from tuner.loading.electra import GeneratorAndDiscriminator
from tuner.loading.shapes import SPECIAL_IDS, new_shape
from tuner.loading.transfer import take_weights
from tuner.model import (
    TunerDecoderForCausalLM,
    TunerEncoderForMaskedLM,
    TunerEncoderForPreTraining,
    TunerEncoderForReplacedTokenDetection,
    TunerEncoderModel,
    TunerPreTrainedModel,
    TunerSeq2SeqForConditionalGeneration,
)
from tuner.ops.block_attention import BLOCK_ATTENTION, can_use_block_attention
from tuner.optim.split_adamw import halve_parameters

# Our class of each kind of model.
CLASSES: dict[str, type[TunerPreTrainedModel]] = {
    "decoder": TunerDecoderForCausalLM,
    "masked": TunerEncoderForMaskedLM,
    "pretraining": TunerEncoderForPreTraining,
    "electra": GeneratorAndDiscriminator,
    "encoder": TunerEncoderModel,
    "seq2seq": TunerSeq2SeqForConditionalGeneration,
    "encoder-decoder": TunerSeq2SeqForConditionalGeneration,
}
# Kinds whose loss keeps experts in balance.
BALANCED = ("decoder", "masked", "pretraining")
# What loads a checkpoint with its heads, by the end of its architecture's name; of any other, the encoder is taken.
LOADERS = {
    "ForMaskedLM": AutoModelForMaskedLM,
    "ForPreTraining": AutoModelForPreTraining,
    "ForReplacedTokenDetection": TunerEncoderForReplacedTokenDetection,
}


def build_model(
    args: RecipeArguments, kind: str, tokenizer: PreTrainedTokenizerBase, labels: Labels | None = None
) -> tuple[PreTrainedModel, str]:
    """A model of a kind (a key of `CLASSES`, or with `labels` of `HEADS`), new ones drawn from the seed alone, ready to
    be trained.

    Returns:
        The model, and a sentence about what of it is new beside a checkpoint's weights, or nothing.

    Raises:
        ModelError: see `tuner.loading.checkpoints`; a checkpoint without a counterpart, or of another shape; flags that
            only a new model takes, with a checkpoint.
    """
    for name in ("preset", "model_config", "config_overrides", "dropout") if args.model_name_or_path else ():
        if getattr(args, name):
            raise ModelError(f"--{name} is for a new model: a checkpoint's configuration is its own.")
    new = ""
    if kind in HEADS:
        model, new = build_with_head(args, kind, tokenizer, labels or Labels())
    elif not args.model_name_or_path:
        set_seed(args.seed)
        fields = new_shape(args, tokenizer)
        class_ = CLASSES[kind]
        model = new_model(class_, class_.config_class, fields_of(kind, fields), args.attn_implementation)
    elif kind == "decoder":
        options = {**_source(args), "attn_implementation": args.attn_implementation}
        model = pretrained_decoder(args.model_name_or_path, tokenizer, args.own_model, **options)
    elif kind == "encoder-decoder":
        options = {**_source(args), "attn_implementation": args.attn_implementation}
        model = load_pretrained(AutoModelForSeq2SeqLM, args.model_name_or_path, torch.float32, **options)
        model = as_ours(model, f"--own_model true: {args.model_name_or_path}") if args.own_model else model
        require_vocabulary(model, tokenizer, args.model_name_or_path)
    else:
        model, new = _from_checkpoint(args, kind, tokenizer)
    if kind in ("decoder", "encoder-decoder"):
        set_ends(model, tokenizer)
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
        # Some families look into their masks, or into the memory of what attention gives. A pair's inputs are its own.
        if not isinstance(model, TunerPreTrainedModel) and not model.config.is_encoder_decoder and not _runs(model):
            model.set_attn_implementation("sdpa")
    if args.dtype == "bfloat16":
        halve_parameters(model)
        model.config.dtype = torch.bfloat16
    return model


@torch.no_grad()
def _runs(model: PreTrainedModel) -> bool:
    with torch.random.fork_rng(devices=[]):  # dropout draws, where it is on
        try:
            model(**{name: value.to(model.device) for name, value in model.dummy_inputs.items()})
        except Exception:  # whatever a family's code raises
            return False
    return True


def use_plain_ops(model: PreTrainedModel) -> None:
    """Have a model computed by torch and transformers alone: SDPA for attention by blocks, and in our own models norm,
    gate and rotation as autograd differentiates them. The loss is plain where the layout says so."""
    for module in model.modules():
        if hasattr(type(module), "recompute"):
            module.recompute = False
    if model.config._attn_implementation == BLOCK_ATTENTION:
        model.set_attn_implementation("sdpa")


def fields_of(kind: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of the configuration of a new model of a kind, from those of one stack."""
    if kind == "pretraining":
        return {**fields, "type_vocab_size": 2}
    if kind not in ("seq2seq", "encoder-decoder"):
        return fields
    # Half of the blocks each, so that a preset's size stays what it says.
    half = {**fields, "num_hidden_layers": max(fields["num_hidden_layers"] // 2, 1)}
    return {"encoder": half, "decoder": dict(half), **{name: fields.get(name) for name in SPECIAL_IDS}}


def _from_checkpoint(
    args: RecipeArguments, kind: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedModel, str]:
    name, class_, source = str(args.model_name_or_path), CLASSES[kind], _source(args)
    loader = AutoModelForSeq2SeqLM if kind == "seq2seq" else _loader_of(name, source)
    attention = args.attn_implementation or "sdpa"
    checkpoint = load_pretrained(loader, name, torch.float32, attn_implementation=attention, **source)
    checkpoint = as_ours(checkpoint, name)
    require_vocabulary(checkpoint, tokenizer, name)
    if type(checkpoint) is class_:
        return checkpoint, ""
    if not isinstance(checkpoint.config, class_.config_class):
        shape = class_.config_class.__name__.removesuffix("Config")
        raise ModelError(f"{name} is no {shape}, which this method trains.")
    set_seed(args.seed)
    model, new = _with_new_parts(checkpoint, class_)
    parts = ", ".join(dict.fromkeys(new))
    return model, f"{name} lacks parts of what is trained; these are new: {parts}." if new else ""


def _source(args: ModelArguments) -> dict[str, Any]:
    return {"revision": args.model_revision, "trust_remote_code": args.trust_remote_code}


def _loader_of(name_or_path: str, source: dict[str, Any]) -> Any:
    path, how = resolve(name_or_path)
    try:
        names = AutoConfig.from_pretrained(path, **source, **how).architectures or []
    except (OSError, ValueError):
        names = []  # loading it says what is wrong
    return next((loader for end, loader in LOADERS.items() for name in names if name.endswith(end)), AutoModel)


def _with_new_parts(checkpoint: Any, kind: Any) -> tuple[PreTrainedModel, list[str]]:
    """A model with a checkpoint's weights in it, and which parts are new; a generator begins as its first blocks."""
    config = copy.deepcopy(checkpoint.config)
    if kind is TunerEncoderForPreTraining:
        config.type_vocab_size = max(config.type_vocab_size, 2)
    shallow = {"shallow": True} if kind is GeneratorAndDiscriminator else {}
    model = kind._from_config(config, attn_implementation=config._attn_implementation, **shallow)
    if not shallow:
        return model, take_weights(model, checkpoint)
    generator = [f"generator.{name}" for name in take_weights(model.generator, checkpoint)]
    return model, [*take_weights(model.discriminator, checkpoint), *generator]
