"""A family that has a counterpart here: its classes, its configuration's fields, its parameters' names.

What a configuration says is translated field by field, and then translated back: a field that does not return as it was
has no counterpart, and is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from .rules import Rule

SIDES = ("encoder", "decoder")
# Fields that change nothing that is computed here.
BOOKKEEPING = {
    *(
        "transformers_version",
        "architectures",
        "output_hidden_states",
        "return_dict",
        "dtype",
        "chunk_size_feed_forward",
    ),
    *("id2label", "label2id", "problem_type", "initializer_range", "use_cache", "is_encoder_decoder", "sep_token_id"),
    *("performer_seed", "linformer_k", "performer_features"),
}


@dataclass(frozen=True)
class Head:
    """One of their classes, ours, and what the head's parameters are called. `prefix`: where their backbone lies."""

    theirs: str
    ours: str
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True)
class Family:
    """One of transformers' families.

    Attributes:
        name: its `model_type`.
        heads: its classes, the one with the most in it first.
        rules: names of the backbone's parameters, for one of our configurations.
        fields: of its configuration to ours; of a pair, `encoder.x`, `decoder.x`, or `both.x` where they agree.
        fixed: our fields that are always the same for it.
        read: further fields of ours from its configuration; `write`: of its from ours.
        ignored: fields of its configuration that need no counterpart.
        dropped: names of parameters that are copies of others.
        kind: which of our configurations it is: `tuner_decoder`, `tuner_encoder`, `tuner_seq2seq`.
    """

    name: str
    heads: tuple[Head, ...]
    rules: Callable[[PreTrainedConfig], tuple[Rule, ...]]
    fields: dict[str, str]
    fixed: dict[str, Any]
    read: Callable[[PreTrainedConfig], dict[str, Any]] = lambda _: {}
    write: Callable[[PreTrainedConfig], dict[str, Any]] = lambda _: {}
    ignored: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    kind: str = "tuner_decoder"

    def read_config(self, theirs: PreTrainedConfig) -> PreTrainedConfig:
        """Our configuration of the same model.

        Raises:
            ValueError: a field without a counterpart.
        """
        ours = self._ours(theirs)
        self._compare(theirs, self._theirs(ours), set(self.ignored), self.kind)
        return ours

    def write_config(self, ours: PreTrainedConfig) -> PreTrainedConfig:
        """Their configuration of the same model.

        Raises:
            ValueError: a field without a counterpart.
        """
        theirs = self._theirs(ours)
        self._compare(ours, self._ours(theirs), set(), self.name)
        return theirs

    def _ours(self, theirs: PreTrainedConfig) -> PreTrainedConfig:
        known = {ours: getattr(theirs, name, None) for name, ours in self.fields.items()}
        known = nested({**self.fixed, **known, **self.read(theirs)})
        return CONFIG_MAPPING[self.kind](**known, **_labels(theirs))

    def _theirs(self, ours: PreTrainedConfig) -> PreTrainedConfig:
        known = {name: attrgetter(path.replace("both.", "encoder."))(ours) for name, path in self.fields.items()}
        return CONFIG_MAPPING[self.name](**{**known, **_labels(ours), **self.write(ours)})

    def _compare(self, one: PreTrainedConfig, back: PreTrainedConfig, ignored: set[str], target: str) -> None:
        for field in fields(one):
            wanted, found = getattr(one, field.name, None), getattr(back, field.name, None)
            if field.name in BOOKKEEPING | ignored | _unused(one) or wanted is None:
                continue
            if isinstance(wanted, PreTrainedConfig):
                self._compare(wanted, found, ignored, target)
            elif wanted != found:
                raise ValueError(
                    f"{field.name} {wanted!r} of a {one.model_type} model has no counterpart in a {target} one."
                )


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """`{"encoder.a": 1, "both.b": 2}` to `{"encoder": {"a": 1, "b": 2}, "decoder": {"b": 2}}`."""
    found: dict[str, Any] = {}
    for path, value in flat.items():
        part, _, name = path.rpartition(".")
        if not part:
            found[name] = value
        for side in SIDES if part == "both" else (part,) if part else ():
            found.setdefault(side, {})[name] = value
    return found


def _unused(config: PreTrainedConfig) -> set[str]:
    """Fields that say nothing about a model with these positions."""
    positions = getattr(config, "position_embedding_type", None)
    return {"max_position_embeddings"} if positions in ("alibi", "relative", "none", "sinusoidal") else set()


def _labels(config: PreTrainedConfig) -> dict[str, Any]:
    labels = dict(config.id2label or {})
    return {"id2label": labels, "label2id": dict(config.label2id or {})} if labels else {}
