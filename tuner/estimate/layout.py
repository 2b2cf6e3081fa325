"""A model's configuration, and the model laid out without memory."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from tuner.errors import ModelError
from tuner.families import FAMILIES
from tuner.loading.checkpoints import resolve
from tuner.model import (
    PRESETS,
    TunerDecoderConfig,
    TunerDecoderForCausalLM,
    TunerEncoderConfig,
    TunerEncoderForMaskedLM,
    TunerSeq2SeqConfig,
    TunerSeq2SeqForConditionalGeneration,
)

HEADS: dict[Any, Any] = {
    TunerDecoderConfig: TunerDecoderForCausalLM,
    TunerEncoderConfig: TunerEncoderForMaskedLM,
    TunerSeq2SeqConfig: TunerSeq2SeqForConditionalGeneration,
}


def read_config(source: str) -> PreTrainedConfig:
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
        if type(config) in HEADS:
            return config
        if config.model_type not in FAMILIES:
            raise ValueError(f"a {config.model_type} model has no counterpart here; there are {', '.join(FAMILIES)}.")
        return FAMILIES[config.model_type].read_config(config)
    except Exception as error:  # a damaged file fails in every way that Python can
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{source} cannot be planned: {reason}") from error


def lay_out(config: PreTrainedConfig, kind: type[PreTrainedModel] | None = None) -> tuple[PreTrainedModel, int]:
    """A model on the meta device, and the longest sequence that it (of a pair, its decoder) is configured for.

    Args:
        kind: its class; by default the one that is pretrained with its configuration.
    """
    with torch.device("meta"):
        model = (kind or HEADS[type(config)])(config)
    model.tie_weights()
    decoder: Any = config.decoder if isinstance(config, TunerSeq2SeqConfig) else config
    return model, decoder.max_position_embeddings
