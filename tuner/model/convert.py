"""Other families' weights in our classes, and ours in theirs, with equal logits.

Converting in and out again gives the same bits. What has no counterpart is refused by name.
"""

from __future__ import annotations

import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from tuner.families import FAMILIES
from tuner.families.family import Family, Head
from tuner.families.rules import Rule, export_weights, import_weights

from . import decoder, encoder, seq2seq

_MODULES = {"TunerDecoder": decoder, "TunerEncoder": encoder, "TunerSeq2Seq": seq2seq}


def from_transformers(model: PreTrainedModel) -> PreTrainedModel:
    """Our model with the weights of another family's; tensors whose layout is the same are shared, not copied.

    Raises:
        ValueError: a family, class, field or parameter without a counterpart here, by name.
    """
    family = _family(model.config.model_type)
    head = next((head for head in family.heads if head.theirs == type(model).__name__), None)
    if head is None:
        known = ", ".join(head.theirs for head in family.heads)
        raise ValueError(f"a {type(model).__name__} has no counterpart here; there are {known}.")
    config = family.read_config(model.config)
    return _filled(_our_class(head), config, model, head, family, outwards=False)


def to_transformers(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """The model as one of transformers' family `name`, the way back of `from_transformers`.

    Raises:
        ValueError: a family that is none of ours, or what it has no counterpart for, by name.
    """
    family = _family(name)
    head = next((head for head in family.heads if head.ours == type(model).__name__), None)
    if head is None:
        raise ValueError(f"a {type(model).__name__} has no counterpart in a {name} model.")
    config = family.write_config(model.config)
    return _filled(getattr(transformers, head.theirs), config, model, head, family, outwards=True)


def _filled(
    kind: type[PreTrainedModel],
    config: PreTrainedConfig,
    source: PreTrainedModel,
    head: Head,
    family: Family,
    outwards: bool,
) -> PreTrainedModel:
    config._attn_implementation = source.config._attn_implementation
    target = kind._from_config(config, dtype=source.dtype)
    theirs, ours = (target, source) if outwards else (source, target)
    rules = _rules(theirs, ours, head, family)
    if outwards:
        weights = export_weights(source.state_dict(), rules)
    else:
        kept = {name: t for name, t in source.state_dict().items() if name not in family.dropped}
        weights = import_weights(kept, rules, _sizes(config))
    missing, unexpected = target.load_state_dict(weights, strict=False, assign=True)
    left_out = set(missing) - set(target.all_tied_weights_keys) - set(family.dropped)
    if left_out or unexpected:
        raise ValueError(f"{sorted([*left_out, *unexpected])[0]} has no counterpart.")
    target.tie_weights()
    target.train(source.training)
    if getattr(source, "generation_config", None) is not None:
        target.generation_config = source.generation_config
    return target


def _family(name: str) -> Family:
    if name not in FAMILIES:
        raise ValueError(f"a {name} model has no counterpart here; there are {', '.join(FAMILIES)}.")
    return FAMILIES[name]


def _our_class(head: Head) -> type[PreTrainedModel]:
    return next(getattr(module, head.ours) for prefix, module in _MODULES.items() if head.ours.startswith(prefix))


def _rules(theirs: PreTrainedModel, ours: PreTrainedModel, head: Head, family: Family) -> list[Rule]:
    """The head's rules, and the backbone's with the prefixes that it has in these two classes."""
    outer = f"{theirs.base_model_prefix}." if hasattr(theirs, theirs.base_model_prefix) else ""
    inner = "model." if hasattr(ours, "model") else ""
    backbone = [
        Rule(outer + rule.theirs, tuple(inner + name for name in rule.ours), rule.transposed, rule.row)
        for rule in family.rules(ours.config)
    ]
    return [*head.rules, *backbone]


def _sizes(config: PreTrainedConfig) -> dict[str, int]:
    part = getattr(config, "decoder", config)
    heads = {"q_proj": part.num_attention_heads, "k_proj": part.num_key_value_heads, "v_proj": part.num_key_value_heads}
    return {name: count * part.head_dim for name, count in heads.items()}
