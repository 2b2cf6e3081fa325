"""Our Transformer as `PreTrainedModel` subclasses. Importing this package registers them with the Auto classes."""

from typing import Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from .components import TunerConfig
from .configuration import PRESETS, TunerDecoderConfig, TunerEncoderConfig, TunerSeq2SeqConfig
from .decoder import TunerDecoderForCausalLM, TunerDecoderForSequenceClassification, TunerDecoderModel
from .encoder import (
    TunerEncoderForMaskedLM,
    TunerEncoderForPreTraining,
    TunerEncoderForQuestionAnswering,
    TunerEncoderForReplacedTokenDetection,
    TunerEncoderForSequenceClassification,
    TunerEncoderForTokenClassification,
    TunerEncoderModel,
)
from .seq2seq import TunerSeq2SeqForConditionalGeneration, TunerSeq2SeqModel
from .stack import TunerPreTrainedModel

CLASSES: dict[Any, dict[Any, Any]] = {
    TunerDecoderConfig: {
        AutoModel: TunerDecoderModel,
        AutoModelForCausalLM: TunerDecoderForCausalLM,
        AutoModelForSequenceClassification: TunerDecoderForSequenceClassification,
    },
    TunerEncoderConfig: {
        AutoModel: TunerEncoderModel,
        AutoModelForMaskedLM: TunerEncoderForMaskedLM,
        AutoModelForPreTraining: TunerEncoderForPreTraining,
        AutoModelForQuestionAnswering: TunerEncoderForQuestionAnswering,
        AutoModelForSequenceClassification: TunerEncoderForSequenceClassification,
        AutoModelForTokenClassification: TunerEncoderForTokenClassification,
    },
    TunerSeq2SeqConfig: {
        AutoModel: TunerSeq2SeqModel,
        AutoModelForSeq2SeqLM: TunerSeq2SeqForConditionalGeneration,
    },
}
for _config, _classes in CLASSES.items():
    AutoConfig.register(_config.model_type, _config)
    for _auto, _model in _classes.items():
        _auto.register(_config, _model)
        # A saved folder carries these files, and loads with trust_remote_code where this package is not installed.
        _model.register_for_auto_class(_auto.__name__)
    _config.register_for_auto_class()
TunerEncoderForReplacedTokenDetection.register_for_auto_class("AutoModelForPreTraining")

__all__ = [
    "PRESETS",
    "TunerConfig",
    "TunerDecoderConfig",
    "TunerDecoderForCausalLM",
    "TunerDecoderForSequenceClassification",
    "TunerDecoderModel",
    "TunerEncoderConfig",
    "TunerEncoderForMaskedLM",
    "TunerEncoderForPreTraining",
    "TunerEncoderForQuestionAnswering",
    "TunerEncoderForReplacedTokenDetection",
    "TunerEncoderForSequenceClassification",
    "TunerEncoderForTokenClassification",
    "TunerEncoderModel",
    "TunerPreTrainedModel",
    "TunerSeq2SeqConfig",
    "TunerSeq2SeqForConditionalGeneration",
    "TunerSeq2SeqModel",
]
