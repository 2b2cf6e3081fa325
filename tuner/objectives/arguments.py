"""The flags of each objective, as dataclasses that a recipe's arguments inherit. Light: nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tuner.config.adapters import AdapterArguments
from tuner.config.arguments import RecipeArguments, flag
from tuner.errors import ArgumentError


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

    views: Literal["neighbours", "dropout", "order", "synonyms", "deletion"] = flag(
        "neighbours",
        "What contrastive brings together: neighbouring lines; or a text and itself: under other dropout, with its "
        "sentences in another order, with synonyms (English) for some words, or with words left out.",
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


@dataclass
class RewardArguments(AdapterArguments):
    """A reward for an answer, from preferences. Names and defaults are those of TRL's `RewardConfig`."""

    center_rewards_coefficient: float | None = flag(
        None, "Weight of the squared sum of a pair's rewards, which holds their mean at 0 (0.01 in TRL's examples).", 0
    )
    label_smoothing: float = flag(0.0, "Share of the pairs taken to be labelled wrongly.", least=0, most=0.5)
    disable_dropout: bool = flag(True, "Train without the model's dropout; an adapter's own stays.")
    ensemble: int = flag(
        1, "Models to train, with as many seeds from --seed, each in output_dir/member-<n>; beyond 1 an ensemble.", 1
    )
    ensemble_spread: float = flag(
        1.0, "What an ensemble takes off the mean of its members' rewards: so many standard deviations.", least=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dropout and self.disable_dropout:
            raise ArgumentError("--dropout: a reward model is trained without. Pass --disable_dropout false.")
        if self.ensemble > 1 and self.push_to_hub:
            raise ArgumentError("--push_to_hub: an ensemble is several models. Push each by itself.")


@dataclass
class Seq2SeqArguments(RecipeArguments):
    """Learning to write a text out of another. Names are those of transformers' examples."""

    source_lang: str | None = flag(None, "Language to read: in a column 'translation', and by tokenizers of several.")
    target_lang: str | None = flag(None, "Language to write.")
    source_prefix: str = flag("", "What stands before every source, as T5 has it: 'summarize: '.")
    max_length: int = flag(512, "Longest source and target, in tokens, where the next two do not say.", least=2)
    max_source_length: int | None = flag(None, "Longest source, in tokens.", least=2)
    max_target_length: int | None = flag(None, "Longest target, and longest generated text.", least=2)
    truncation_mode: Literal["keep_start", "error"] = flag(
        "keep_start", "What becomes of longer ones: cut at the end, or refused."
    )
    train_sampling_strategy: Literal["random", "group_by_length", "sequential"] = flag(
        "group_by_length", "Order of the training examples; group_by_length puts sources of like length together."
    )
    num_beams: int | None = flag(None, "Beams to generate with. Without it: what the model is set to.", least=1)
    max_predict_samples: int = flag(256, "Validation rows that a text is generated for at the end.", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.max_source_length = self.max_source_length or self.max_length
        self.max_target_length = self.max_target_length or self.max_length
        self.max_length = max(self.max_source_length, self.max_target_length)


@dataclass
class ClassifyArguments(AdapterArguments):
    """Labels of texts, tokens or answers."""

    # Epochs, peak learning rate and batch of each strategy where nothing is said.
    STRATEGIES: ClassVar[dict[str, tuple[float, float, int]]] = {
        **{"full": (3, 5e-5, 16), "lora": (5, 5e-4, 16), "head": (30, 5e-3, 128), "fewshot": (100, 1e-2, 32)},
    }

    strategy: Literal["full", "head", "lora", "fewshot"] = flag(
        "full",
        "What is trained: all weights; a head over features computed once; an adapter and a head; or, of few texts "
        "a class, the encoder by which of them are of one class, and then a head.",
    )
    problem_type: (
        Literal[
            "single_label_classification",
            "multi_label_classification",
            "regression",
            "token_classification",
            "question_answering",
        ]
        | None
    ) = flag(None, "What the labels are. Without it, what the columns hold.")
    class_weights: Literal["none", "balanced"] = flag("none", "balanced: rare classes count more in the loss.")
    classifier_pooling: Literal["cls", "mean"] | None = flag(
        None, "What a head of our encoder (or ModernBERT) reads of a text: its first token, or the mean of all."
    )
    doc_stride: int | None = flag(
        None, "Tokens that two windows of a long context share (questions). Without it 128.", least=0
    )
    max_answer_length: int | None = flag(None, "Longest answer given, in tokens (questions). Without it 30.", least=1)
    null_score_diff_threshold: float | None = flag(
        None, "By how much no answer must score higher than the best one to be given (questions). Without it 0."
    )
    split_seed: int = flag(0, "Which rows are set aside for validation, where there are none.", least=0)
    layerwise_lr_decay: float = flag(
        1.0, "What the learning rate is multiplied with at each layer below the last.", least=0, most=1
    )
    calibrate: bool = flag(False, "Divide the saved head by the temperature that fits the validation rows best.")
    num_train_epochs: float | None = flag(  # type: ignore[assignment]
        None, "Passes over the training data. Without it 3; lora 5, head 30, the head of fewshot 100.", least=0
    )
    max_length: int = flag(
        256, "Longest text, in tokens; what is longer is cut, the context of a question into windows.", least=2
    )
    truncation_mode: Literal["keep_start", "error"] = flag("keep_start", "Longer texts are cut, or refused.")
    per_device_train_batch_size: int | None = flag(  # type: ignore[assignment]
        None, "Texts a device computes at once in training. Without it 16; head 128, fewshot 32.", least=1
    )
    per_device_eval_batch_size: int = flag(32, "Texts a device computes at once in evaluation.", least=1)
    test_split_size: float = flag(0.2, "Rows set aside for validation: a share below 1, or a number of rows.", least=0)

    def __post_init__(self) -> None:
        if self.use_peft and self.strategy != "lora":
            raise ArgumentError("--use_peft: here it is --strategy lora.")
        self.use_peft = self.strategy == "lora"
        epochs, rate, batch = self.STRATEGIES[self.strategy]
        self.per_device_train_batch_size = self.per_device_train_batch_size or batch
        self.num_train_epochs = epochs if self.num_train_epochs is None else self.num_train_epochs
        said = self.learning_rate
        super().__post_init__()
        if said is None and self.model_name_or_path:
            self.learning_rate = rate
        if self.strategy != "full" and self.layerwise_lr_decay != 1:
            raise ArgumentError("--layerwise_lr_decay is for --strategy full.")
        if self.strategy == "fewshot" and self.max_minutes is not None:
            raise ArgumentError("--max_minutes: a head cannot be trained on half of --strategy fewshot's encoder.")
