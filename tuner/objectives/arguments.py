"""The flags of each objective, as dataclasses that a recipe's arguments inherit. Light: nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tuner.config.adapters import AdapterArguments
from tuner.config.arguments import RecipeArguments, flag


@dataclass
class TextArguments(RecipeArguments):
    """Learning from raw text."""

    train_tokenizer: Literal["bpe", "wordpiece", "unigram"] = flag(
        "bpe", "How a tokenizer is trained where none is given; --vocab_size says how large."
    )
    clean: Literal["none", "light", "web"] = flag(
        "none",
        "light: characters, repeated and validation documents; web: boilerplate and Gopher's rules too. "
        "With --streaming, only per-document filters apply.",
    )
    streaming: bool = flag(False, "Read the text while training, for a corpus larger than the disk.")
    shuffle_buffer: int = flag(10_000, "Documents that a stream is shuffled among.", least=1)
    mlm_probability: float | None = flag(
        None, "Share of the tokens that mlm, rtd and denoise hide: 0.15 unless set, for infilling 0.3.", least=0, most=1
    )
    z_loss: float = flag(0.0, "Weight of the squared log of the softmax's sum; 1e-4 steadies long runs.", least=0)
    skip_spikes: bool = flag(True, "Leave out a step whose gradient norm is 6 sigma above the last 128.")


@dataclass
class MaskedLMArguments(TextArguments):
    """Masked tokens: mlm, mlm+nsp, rtd."""

    whole_word: bool = flag(False, "Hide whole words in mlm and rtd.")


@dataclass
class DenoiseArguments(TextArguments):
    """Hidden spans: denoise."""

    mean_noise_span_length: float = flag(3.0, "Tokens in a span of denoise, on average.", least=1, most=512)
    corruption: Literal["spans", "infilling"] = flag(
        "spans", "What denoise hides: spans, each for a sentinel (T5), or for one mask, all to be written (BART)."
    )


@dataclass
class ContrastiveArguments(TextArguments):
    """Embeddings of texts: contrastive."""

    views: Literal["neighbours", "dropout"] = flag(
        "neighbours", "What contrastive brings together: neighbouring lines, or a text and itself under other dropout."
    )
    temperature: float = flag(0.05, "Temperature of contrastive.", least=1e-4)


@dataclass
class PreferenceArguments(AdapterArguments):
    """Learning from preferences."""

    beta: float = flag(
        0.1, "How strongly the model is held to the reference (Rafailov et al. 2023, section 6).", least=1e-8
    )
    loss_type: Literal["sigmoid", "ipo", "kto"] = flag(
        "sigmoid", "sigmoid (DPO), ipo (Azar et al. 2023), or kto for unpaired rows (Ethayarajh et al. 2024)."
    )
    label_smoothing: float = flag(0.0, "Share of the pairs taken to be labelled wrongly (sigmoid).", least=0, most=0.5)
    desirable_weight: float = flag(1.0, "Weight of wanted completions in kto.", least=0)
    undesirable_weight: float = flag(1.0, "Weight of unwanted completions in kto.", least=0)
