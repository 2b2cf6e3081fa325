"""Our Transformer as `PreTrainedModel` subclasses. Importing this package registers them with the Auto classes."""

from transformers import AutoConfig

from .components import TunerConfig
from .configuration import PRESETS, TunerDecoderConfig, TunerEncoderConfig, TunerSeq2SeqConfig
from .decoder import (
    TunerDecoderForCausalLM,
    TunerDecoderForQuestionAnswering,
    TunerDecoderForSequenceClassification,
    TunerDecoderForTokenClassification,
    TunerDecoderModel,
)
from .encoder import (
    TunerEncoderForMaskedLM,
    TunerEncoderForMultipleChoice,
    TunerEncoderForNextSentencePrediction,
    TunerEncoderForPreTraining,
    TunerEncoderForQuestionAnswering,
    TunerEncoderForReplacedTokenDetection,
    TunerEncoderForSequenceClassification,
    TunerEncoderForTokenClassification,
    TunerEncoderModel,
)
from .seq2seq import (
    TunerSeq2SeqForConditionalGeneration,
    TunerSeq2SeqForSequenceClassification,
    TunerSeq2SeqModel,
)
from .stack import TunerPreTrainedModel

for _config in (TunerDecoderConfig, TunerEncoderConfig, TunerSeq2SeqConfig):
    AutoConfig.register(_config.model_type, _config)
    _config.register_for_auto_class()

__all__ = [
    "PRESETS",
    "TunerConfig",
    "TunerDecoderConfig",
    "TunerDecoderForCausalLM",
    "TunerDecoderForQuestionAnswering",
    "TunerDecoderForSequenceClassification",
    "TunerDecoderForTokenClassification",
    "TunerDecoderModel",
    "TunerEncoderConfig",
    "TunerEncoderForMaskedLM",
    "TunerEncoderForMultipleChoice",
    "TunerEncoderForNextSentencePrediction",
    "TunerEncoderForPreTraining",
    "TunerEncoderForQuestionAnswering",
    "TunerEncoderForReplacedTokenDetection",
    "TunerEncoderForSequenceClassification",
    "TunerEncoderForTokenClassification",
    "TunerEncoderModel",
    "TunerPreTrainedModel",
    "TunerSeq2SeqConfig",
    "TunerSeq2SeqForConditionalGeneration",
    "TunerSeq2SeqForSequenceClassification",
    "TunerSeq2SeqModel",
]
