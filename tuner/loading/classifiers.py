"""A model with a head that tells classes, tags or answers apart, or gives a reward: ours, or any class of transformers
that has one."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from tuner.config.arguments import RecipeArguments
from tuner.data.labels import Labels
from tuner.errors import ModelError, first_line
from tuner.loading.checkpoints import (
    as_ours,
    load_pretrained,
    new_model,
    require_vocabulary,
    resolve,
    without_dropout,
)
from tuner.loading.shapes import new_shape
from tuner.loading.transfer import take_weights
from tuner.model import (
    TunerDecoderForSequenceClassification,
    TunerEncoderForQuestionAnswering,
    TunerEncoderForSequenceClassification,
    TunerEncoderForTokenClassification,
)
from tuner.text.load_tokenizer import PAD

# What loads a model of a kind, and our class for a new one.
HEADS: dict[str, tuple[Any, Any]] = {
    "classifier": (AutoModelForSequenceClassification, TunerEncoderForSequenceClassification),
    "tagger": (AutoModelForTokenClassification, TunerEncoderForTokenClassification),
    "reader": (AutoModelForQuestionAnswering, TunerEncoderForQuestionAnswering),
    "reward": (AutoModelForSequenceClassification, TunerDecoderForSequenceClassification),
}


def build_with_head(
    args: RecipeArguments, kind: str, tokenizer: PreTrainedTokenizerBase, labels: Labels
) -> tuple[PreTrainedModel, str]:
    """A model of a kind (a key of `HEADS`) that has these labels: a new one, or a checkpoint with its own head where
    that has classes of the same names, else with a new one.

    Returns:
        The model, and a sentence about what of it is new beside a checkpoint's weights, or nothing.

    Raises:
        ModelError: a checkpoint that cannot be read, or has no class with such a head; flags that do not go with it.
    """
    auto, ours = HEADS[kind]
    pooling = {"classifier_pooling": args.values()["classifier_pooling"]} if kind == "classifier" else {}
    pooling = {name: value for name, value in pooling.items() if value}
    name, new = args.model_name_or_path, list[str]()
    set_seed(args.seed)
    if not name:
        shape = new_shape(args, tokenizer)
        fields = {**shape, **pooling, **_fields(labels, kind)}
        return new_model(ours, ours.config_class, fields, args.attn_implementation), ""
    options: dict[str, Any] = {"revision": args.model_revision, "trust_remote_code": args.trust_remote_code}
    options["attn_implementation"] = args.attn_implementation or "sdpa"
    known = _config(name, options)
    if args.own_model:
        backbone = as_ours(load_pretrained(AutoModel, name, torch.float32, **options), f"--own_model true: {name}")
        config = _with_labels(backbone.config, labels, kind, pooling, name)
        model = auto.from_config(config, attn_implementation=options["attn_implementation"])
        new = take_weights(model, backbone)
    else:
        has_head = any(architecture.endswith(auto_suffix(auto)) for architecture in known.architectures or ())
        same = has_head and _names(known) == set(labels.names)
        config = known if same else _with_labels(known, labels, kind, pooling, name)
        model = load_pretrained(
            auto, name, torch.float32, config=config, new=new, ignore_mismatched_sizes=True, **options
        )
        if has_head and not same and labels.names:
            # By their names, and not by how many they are: a head for other classes begins anew.
            new += [part for part, module in model.named_children() if _reset(model, module)]
    if kind == "reward":
        new += _prepare_reward(model, tokenizer, args.values()["disable_dropout"])
    require_vocabulary(model, tokenizer, name)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    parts = ", ".join(dict.fromkeys(part.removeprefix("model.") for part in new))
    return model, f"{name} lacks parts of what is trained; these are new: {parts}." if new else ""


def _prepare_reward(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, disable_dropout: bool) -> list[str]:
    """Have a decoder's reward be read where the conversation ends. Its head takes that to be the last token which is
    not the one to pad with: that must not be the end token, and the saved configuration must name it.

    Returns:
        What is new: a token to pad with, where the vocabulary has none to spare.
    """
    new, rows = [], model.get_input_embeddings().weight.shape[0]
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": PAD})
    if rows <= tokenizer.pad_token_id == len(tokenizer) - 1:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        new = [f"the token {tokenizer.pad_token}"]
    model.config.get_text_config().pad_token_id = model.config.pad_token_id = tokenizer.pad_token_id
    if disable_dropout:
        without_dropout(model)
    return new


def auto_suffix(auto: Any) -> str:
    """How the names of an Auto class's models end."""
    return str(auto.__name__).removeprefix("AutoModel")


def _config(name: str, options: dict[str, Any]) -> PreTrainedConfig:
    path, how = resolve(name)
    kept = {key: value for key, value in options.items() if key != "attn_implementation"}
    try:
        return AutoConfig.from_pretrained(path, **kept, **how)
    except Exception as error:  # a damaged file fails in every way that Python can
        raise ModelError(f"{name} could not be loaded: {first_line(error)}") from error


def _names(config: PreTrainedConfig) -> set[str]:
    """The names of a configuration's classes; those that nobody named are known by their numbers."""
    return {str(label).removeprefix("LABEL_") for label in (config.id2label or {}).values()}


def _fields(labels: Labels, kind: str) -> dict[str, Any]:
    found: dict[str, Any] = {"problem_type": labels.problem} if kind == "classifier" else {}
    if not labels.names:
        return {**found, "num_labels": 1 if kind in ("classifier", "reward") else 2}
    names = dict(enumerate(labels.names))
    return {**found, "id2label": names, "label2id": {label: number for number, label in names.items()}}


def _with_labels(
    config: PreTrainedConfig, labels: Labels, kind: str, pooling: dict[str, str], name: str
) -> PreTrainedConfig:
    for field, value in {**_fields(labels, kind), **pooling}.items():
        if field in pooling and not hasattr(config, field):
            raise ModelError(
                f"--{field} {value}: {name} pools as its class does. With --own_model true it is a choice."
            )
        setattr(config, field, value)
    return config


def _reset(model: PreTrainedModel, module: torch.nn.Module) -> bool:
    """Draw the weights of a head anew; False for what is none."""
    if module is model.base_model:
        return False
    resets = [layer.reset_parameters for layer in module.modules() if hasattr(layer, "reset_parameters")]
    for reset in resets:
        reset()  # type: ignore[operator]
    return bool(resets)
