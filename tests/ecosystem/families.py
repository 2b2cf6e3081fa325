"""Our three shapes, and beside each stock families of the same tiny size, which every test here runs as its control."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from tuner.model import TunerDecoderConfig, TunerEncoderConfig, TunerSeq2SeqConfig

VOCAB_SIZE = 64
IDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
PART: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 128,
}  # fmt: skip
SIZE: dict[str, Any] = {**PART, **IDS}
GROUPED: dict[str, Any] = {**SIZE, "num_key_value_heads": 2}
BART: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE, "d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_layers": 2,
    "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 128,
    "decoder_start_token_id": 2, "forced_eos_token_id": None,
}  # fmt: skip
T5: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
    "decoder_start_token_id": 0,
}  # fmt: skip

DECODERS = ("llama", "tuner decoder")
MIXTURES = ("mixtral", "tuner experts")
ENCODERS = ("bert", "tuner encoder")
PAIRS = ("bart", "tuner seq2seq")


def config(family: str, **fields: Any) -> PreTrainedConfig:
    """A configuration of the family: `llama`, `tuner decoder`, and so on."""
    part = {name: fields.get(name, value) for name, value in PART.items()}
    made: dict[str, Any] = {
        "llama": lambda: transformers.LlamaConfig(**{**GROUPED, **fields}),
        "tuner decoder": lambda: TunerDecoderConfig(**{**GROUPED, **fields}),
        "mixtral": lambda: transformers.MixtralConfig(**{**GROUPED, "num_local_experts": 4, **fields}),
        "tuner experts": lambda: TunerDecoderConfig(**{**GROUPED, "num_local_experts": 4, **fields}),
        "bert": lambda: transformers.BertConfig(**{**SIZE, **fields}),
        "electra": lambda: transformers.ElectraConfig(**{**SIZE, "embedding_size": 32, **fields}),
        "tuner encoder": lambda: TunerEncoderConfig(**{**SIZE, "type_vocab_size": 2, **fields}),
        "bart": lambda: transformers.BartConfig(**{**BART, **IDS, **fields}),
        "t5": lambda: transformers.T5Config(**{**T5, **IDS, **fields}),
        "tuner seq2seq": lambda: TunerSeq2SeqConfig(encoder={**part}, decoder={**part}, **{**IDS, **fields}),
    }
    return made[family]()


def model(family: str, auto: str, seed: int = 0, **fields: Any) -> PreTrainedModel:
    """A new model of the family, of the class that the Auto class (`AutoModelForCausalLM`, ...) has for it."""
    torch.manual_seed(seed)
    return getattr(transformers, auto).from_config(config(family, **fields)).eval()


def token_ids(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random ids from 3 up, which are no padding and no end."""
    return torch.randint(3, VOCAB_SIZE, shape, generator=torch.Generator().manual_seed(seed))
