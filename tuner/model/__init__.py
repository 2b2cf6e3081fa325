"""Our Transformer as `PreTrainedModel` subclasses. Importing this package registers them with the Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .blocked import BLOCKED, can_be_blocked
from .configuration import PRESETS, TunerDecoderConfig
from .convert import decoder_config_from_llama, decoder_from_llama
from .decoder import TunerDecoderForCausalLM, TunerDecoderModel, TunerDecoderPreTrainedModel

AutoConfig.register(TunerDecoderConfig.model_type, TunerDecoderConfig)
AutoModel.register(TunerDecoderConfig, TunerDecoderModel)
AutoModelForCausalLM.register(TunerDecoderConfig, TunerDecoderForCausalLM)

__all__ = [
    "BLOCKED",
    "PRESETS",
    "TunerDecoderConfig",
    "TunerDecoderForCausalLM",
    "TunerDecoderModel",
    "TunerDecoderPreTrainedModel",
    "can_be_blocked",
    "decoder_config_from_llama",
    "decoder_from_llama",
]
