"""The three shapes, each one configuration: encoder, decoder, encoder-decoder."""

# No `from __future__ import annotations` here: it turns the field types into strings, which `strict` does not check.
from typing import Any, ClassVar, Literal, Self

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .components import TunerConfig
from .registration import register_with_peft

# One dial sets the rest. Depth and width keep `hidden_size / num_hidden_layers` between 40 and 64, the range in which
# Kaplan et al. 2020 (https://arxiv.org/abs/2001.08361, figure 5) found the loss flat; the key/value heads are half or a
# third of the query heads (Ainslie et al. 2023, https://arxiv.org/abs/2305.13245).
PRESETS: dict[str, dict[str, int]] = {
    "tiny": {  # 5.5 M parameters with its vocabulary
        "vocab_size": 4096,
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "small": {  # 30 M
        "vocab_size": 16384,
        "hidden_size": 512,
        "intermediate_size": 1280,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
    "base": {  # 126 M
        "vocab_size": 32768,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
    },
}


@strict
class TunerDecoderConfig(TunerConfig):
    """A decoder: causal blocks over one sequence.

    Args:
        use_cache: return keys and values from `forward` by default.
        add_cross_attention: a sublayer in each block that looks at an encoder's output.
    """

    model_type = "tuner_decoder"
    keys_to_ignore_at_inference = ["past_key_values"]

    use_cache: bool = True
    add_cross_attention: bool = False

    def validate_architecture(self) -> None:
        """Refuse what cannot be built."""
        super().validate_architecture()
        if self.attention_type == "linformer":
            raise ValueError(
                "attention_type linformer mixes all positions: it is for encoders, not for a causal decoder."
            )

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> Self:
        """The preset `tiny`, `small` or `base`, with any field replaced.

        Raises:
            KeyError: no such preset.
        """
        return cls(**{**PRESETS[name], **overrides})


@strict
class TunerEncoderConfig(TunerConfig):
    """An encoder: blocks that see the whole sequence.

    Args:
        type_vocab_size: kinds of segments that are embedded, 0 for none (Devlin et al. 2018,
            https://arxiv.org/abs/1810.04805).
        embedding_size: width of the embeddings, projected to `hidden_size` (Clark et al. 2020,
            https://arxiv.org/abs/2003.10555). Defaults to `hidden_size`.
        classifier_dropout: dropout before a classification head. Defaults to `hidden_dropout`.
        pooler_act: activation of the pooled first token; `head_act`: of the other heads' hidden layer.
        classifier_pooling: what a classification head sees of a sequence: `cls`, its first token through a dense layer,
            or `mean`, the mean of its tokens (Reimers & Gurevych 2019, https://arxiv.org/abs/1908.10084).
    """

    model_type = "tuner_encoder"

    type_vocab_size: int = 0
    embedding_size: int | None = None
    classifier_dropout: float | int | None = None
    pooler_act: str = "tanh"
    classifier_pooling: Literal["cls", "mean"] = "cls"
    head_act: str = "gelu"

    def __post_init__(self, **kwargs: Any) -> None:
        if self.embedding_size is None:
            self.embedding_size = self.hidden_size
        super().__post_init__(**kwargs)


def _of_parts(name: str, *parts: str) -> property:
    """A field of the parts under a common name: the decoder's is read, that of all `parts` is set."""

    def read(config: Any) -> Any:
        return getattr(config.decoder, name)

    def write(config: Any, value: Any) -> None:
        for part in parts:
            setattr(getattr(config, part), name, value)

    return property(read, write)


SHARED = ("vocab_size", "hidden_size")
COMMON = (*SHARED, "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")


@strict
class TunerSeq2SeqConfig(PreTrainedConfig):
    """An encoder and a decoder that looks at its output, over one vocabulary.

    Args:
        encoder: a `TunerEncoderConfig` or its fields.
        decoder: a `TunerDecoderConfig` or its fields; its blocks get cross-attention.
        tie_word_embeddings: one matrix for both embeddings and the head. The embeddings of encoder and decoder are
            always one.
        decoder_start_token_id: what the decoder's input begins with. Defaults to the padding token.
        kwargs: fields of the parts that other libraries look for here: `vocab_size` and `hidden_size` of both,
            `num_hidden_layers`, `num_attention_heads`, `num_key_value_heads`, `head_dim` of the decoder.

    Raises:
        ValueError: an impossible combination, with the reason.
    """

    model_type = "tuner_seq2seq"
    keys_to_ignore_at_inference = ["past_key_values"]
    sub_configs = {"encoder": TunerEncoderConfig, "decoder": TunerDecoderConfig}
    is_encoder_decoder = True
    auto_classes: ClassVar[dict[str, str]] = {}
    vocab_size = _of_parts("vocab_size", "encoder", "decoder")
    hidden_size = _of_parts("hidden_size", "encoder", "decoder")
    num_hidden_layers = _of_parts("num_hidden_layers", "decoder")
    num_attention_heads = _of_parts("num_attention_heads", "decoder")
    num_key_value_heads = _of_parts("num_key_value_heads", "decoder")
    head_dim = _of_parts("head_dim", "decoder")

    encoder: Any = None
    decoder: Any = None
    tie_word_embeddings: bool = True
    use_cache: bool = True
    initializer_range: float = 0.02
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    decoder_start_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        common = {name: kwargs.pop(name) for name in COMMON if name in kwargs}
        for name, kind in self.sub_configs.items():
            part = getattr(self, name) or {}
            if isinstance(part, dict):
                own = {key: value for key, value in common.items() if name == "decoder" or key in SHARED}
                setattr(
                    self, name, kind(**{**own, **{key: value for key, value in part.items() if key != "model_type"}})
                )
        self.decoder.add_cross_attention = True
        for name, value in common.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name} is {value}, and that of the decoder is {getattr(self, name)}.")
        if self.decoder_start_token_id is None:
            self.decoder_start_token_id = self.pad_token_id
        self.is_encoder_decoder = True
        super().__post_init__(**kwargs)
        self.validate_architecture()

    def to_dict(self) -> dict[str, Any]:
        """As inherited, with the common fields. PEFT asks for it before it looks for the layers to adapt."""
        register_with_peft(self.model_type)
        return {**super().to_dict(), **{name: getattr(self, name) for name in COMMON}}

    def validate_architecture(self) -> None:
        """Refuse what cannot be built."""
        for name in SHARED:
            one, other = getattr(self.encoder, name), getattr(self.decoder, name)
            if one != other:
                raise ValueError(f"encoder and decoder share their embeddings: {name} cannot be {one} and {other}.")
        if self.encoder.embedding_size != self.encoder.hidden_size:
            raise ValueError("encoder and decoder share their embeddings: embedding_size must be the hidden_size.")
