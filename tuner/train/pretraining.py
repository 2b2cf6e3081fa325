"""The steps of the pretraining recipe: documents, tokenizer, objective, examples, model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from tuner.data.clean import CleaningOptions, CleaningReport, clean_corpus, clean_text, fault
from tuner.data.corpus import to_documents
from tuner.data.stream import open_stream, set_aside
from tuner.errors import ArgumentError, ModelError
from tuner.load import load_pretrained, new_model, new_shape, resolve
from tuner.model import (
    PRESETS,
    TunerDecoderConfig,
    TunerEncoderConfig,
    TunerEncoderForMaskedLM,
    TunerEncoderForPreTraining,
    TunerEncoderModel,
    TunerPreTrainedModel,
    TunerSeq2SeqConfig,
    TunerSeq2SeqForConditionalGeneration,
)
from tuner.model.convert import from_transformers
from tuner.text.tokenizer import load_pretrained_tokenizer
from tuner.text.vocabulary import train_tokenizer
from tuner.train.objective import Objective
from tuner.train.objectives import OBJECTIVES
from tuner.train.prepare import fit_model, load_model, load_rows, load_tokenizer, require_new, was_trained
from tuner.train.replaced import GeneratorAndDiscriminator
from tuner.train.run import Run, say

# What each objective trains: our class, and the Auto class that finds a checkpoint for it.
CLASSES: dict[str, tuple[type[TunerPreTrainedModel], Any]] = {
    "mlm": (TunerEncoderForMaskedLM, AutoModelForMaskedLM),
    "mlm+nsp": (TunerEncoderForPreTraining, AutoModelForPreTraining),
    "rtd": (GeneratorAndDiscriminator, None),
    "contrastive": (TunerEncoderModel, AutoModel),
    "denoise": (TunerSeq2SeqForConditionalGeneration, AutoModelForSeq2SeqLM),
}

# Documents of a stream that a tokenizer learns from.
LEARNT_FROM = 20_000


@dataclass
class Documents:
    """Raw text to train and to validate on: rows of `text`."""

    train: Any  # a Dataset, or of a stream an IterableDataset
    eval: Dataset
    cleaning: CleaningReport | None = None

    def texts(self) -> Iterator[str]:
        """Every training text, or the first of a stream, for a tokenizer to learn from."""
        documents = self.train if isinstance(self.train, Dataset) else self.train.take(LEARNT_FROM)
        for batch in documents.iter(batch_size=1000):
            yield from batch["text"]


@dataclass
class Examples:
    """What the objective made of the documents."""

    train: Any  # a Dataset or a TokenStream
    eval: Dataset


def load_documents(args: Any) -> Documents:
    """Load `--dataset_name` as raw text, cleaned as `--clean` says; of a conversation each turn is a line.

    Raises:
        DataError: see `tuner.data.sources` and `tuner.data.schema`.
        ArgumentError: a checkpoint for an objective that has none.
    """
    if args.objective == "rtd" and args.model_name_or_path:
        raise ArgumentError("--objective rtd begins with a new pair of models: leave out --model_name_or_path.")
    if args.streaming:
        return _streamed(args)
    rows = load_rows(args)
    with PartialState().main_process_first():
        train, held_out = to_documents(rows.train, rows.kind), to_documents(rows.eval, rows.kind)
        if args.clean == "none":
            return Documents(train, held_out)
        return Documents(*_cleaned(train, held_out, args))


def _streamed(args: Any) -> Documents:
    if args.test_split_size < 1 or args.max_steps < 1:
        raise ArgumentError("--streaming true needs --max_steps, and --test_split_size as a number of documents.")
    if args.extra.get("dataloader_num_workers"):  # its place would be known in another process
        raise ArgumentError("--streaming true is read by the trainer itself: leave out --dataloader_num_workers.")
    documents = open_stream(
        args.dataset_name, args.dataset_config, args.dataset_train_split, args.seed, args.shuffle_buffer
    )
    return Documents(*set_aside(documents, int(args.test_split_size)))


def _cleaned(train: Dataset, held_out: Dataset, args: Any) -> tuple[Dataset, Dataset, CleaningReport]:
    """What is validated on is cleaned by the same rules on texts, but keeps its documents."""
    options = _options(args)
    texts = held_out.map(_clean_batch, batched=True, fn_kwargs={"options": options}, desc="Cleaning")
    cleaned, report = clean_corpus(train, options, texts, args.dataset_num_proc)
    return cleaned, texts, report


def _options(args: Any) -> CleaningOptions:
    plain = CleaningOptions(boilerplate=False, min_words=0, quality=False, repetition=False)
    return CleaningOptions() if args.clean == "web" else plain


def _clean_one(text: str, options: CleaningOptions) -> str | None:
    """What a stream can do: a document by itself."""
    cleaned = clean_text(text, options)
    return None if fault(cleaned, options) else cleaned


def _clean_batch(batch: dict[str, list[Any]], options: CleaningOptions) -> dict[str, list[Any]]:
    return {"text": [clean_text(text, options) for text in batch["text"]]}


def load_pretraining_tokenizer(run: Run, documents: Documents) -> PreTrainedTokenizerBase:
    """The named tokenizer, or the model's, or one trained on the documents by `--train_tokenizer`.

    Raises:
        ModelError: nothing to load, a vocabulary too small to train, or a tokenizer without the tokens it takes.
    """
    args: Any = run.args
    if args.model_name_or_path or args.tokenizer_name_or_path:
        tokenizer = load_tokenizer(run, documents, needs_end=args.objective in ("clm", "denoise"))
    else:
        with PartialState().main_process_first():
            if was_trained(run.folder) and (run.checkpoint is not None or not PartialState().is_main_process):
                tokenizer = load_pretrained_tokenizer(str(run.folder), needs_end=False)
            else:
                size = args.vocab_size or PRESETS[args.preset]["vocab_size"]
                tokenizer = train_tokenizer(
                    list(documents.texts()), args.train_tokenizer, size, args.objective, max(args.max_length, 2048)
                )
                if not args.dry_run:
                    tokenizer.save_pretrained(run.folder)
    hides = ("eos_token", "mask_token") if args.corruption == "infilling" else ("eos_token",)
    needed = {"clm": (), "denoise": hides}.get(args.objective, ("cls_token", "sep_token", "mask_token"))
    missing = [name for name in needed if getattr(tokenizer, name) is None]
    if missing:
        raise ModelError(
            f"--objective {args.objective} needs a tokenizer with {', '.join(missing)}; this one has none."
        )
    if args.objective == "denoise" and args.corruption == "spans" and "<extra_id_1>" not in tokenizer.get_vocab():
        raise ModelError(
            "--corruption spans needs a tokenizer with <extra_id_0>, <extra_id_1>, ...; this one has none."
        )
    return tokenizer


def load_objective(args: Any, tokenizer: PreTrainedTokenizerBase) -> Objective:
    """The objective of `--objective`, with the flags that are its own."""
    if args.z_loss and args.objective in ("rtd", "contrastive"):
        raise ArgumentError(f"--z_loss is for losses over the vocabulary: --objective {args.objective} has none.")
    names = [*("mlm_probability", "whole_word", "corruption", "views", "temperature", "z_loss")]
    names += ["packing", "truncation_mode", "max_labels_lost"]
    options = {name: getattr(args, name) for name in names}
    return OBJECTIVES[args.objective](tokenizer, args.max_length, args.seed, **options)


def make_examples(args: Any, documents: Documents, objective: Objective) -> Examples:
    """The objective's examples of both splits.

    Raises:
        DataError: too little text for one.
    """
    if args.streaming:
        clean = None if args.clean == "none" else partial(_clean_one, options=_options(args))
        held_out = (
            documents.eval.map(_clean_batch, batched=True, fn_kwargs={"options": _options(args)})
            if clean
            else documents.eval
        )
        return Examples(
            objective.stream(documents.train, clean), objective.rows(held_out, None, "the documents set aside")
        )
    with PartialState().main_process_first():
        made = [
            objective.rows(split, args.dataset_num_proc, name)
            for split, name in (
                (documents.train, args.dataset_name),
                (documents.eval, f"{args.dataset_name} (validation)"),
            )
        ]
    return Examples(*made)


def load_pretraining_model(args: Any, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The model that the objective trains: a new one, or a checkpoint of any family that has a counterpart here.

    Raises:
        ModelError: see `tuner.load`.
    """
    if args.objective == "clm":
        return load_model(args, tokenizer)
    kind, auto = CLASSES[args.objective]
    if not args.model_name_or_path:
        set_seed(args.seed)
        return fit_model(args, _new_model(args, kind, tokenizer))
    require_new(args)
    attention = args.attn_implementation or "sdpa"
    bare = args.objective in ("mlm", "mlm+nsp") and _is_bare(args.model_name_or_path)
    model = load_pretrained(
        AutoModel if bare else auto, args.model_name_or_path, torch.float32, attn_implementation=attention
    )
    if not isinstance(model, TunerPreTrainedModel):
        try:
            model = from_transformers(model)
        except ValueError as error:
            raise ModelError(f"{args.model_name_or_path} cannot be ours: {error}") from error
    return fit_model(args, _with_new_heads(args, model, kind) if bare else model)


def _is_bare(name_or_path: str) -> bool:
    """Whether a checkpoint is an encoder without heads."""
    path, how = resolve(name_or_path)
    try:
        names = AutoConfig.from_pretrained(path, **how).architectures or []
    except (OSError, ValueError):
        return False  # loading it says what is wrong
    return bool(names) and all(name.endswith("Model") for name in names)


def _with_new_heads(args: Any, encoder: Any, kind: Any) -> PreTrainedModel:
    set_seed(args.seed)
    model = kind._from_config(encoder.config, attn_implementation=encoder.config._attn_implementation)
    missing, _ = model.model.load_state_dict(encoder.state_dict(), strict=False)
    if missing:
        raise ModelError(f"{args.model_name_or_path} lacks weights for --objective {args.objective}: {missing[0]}.")
    say(f"{args.model_name_or_path} has no heads for {args.objective}: they are new.")
    return model


def _new_model(args: Any, kind: Any, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    fields = new_shape(args.preset, tokenizer, args.max_length, args.dropout, args.config_overrides)
    return new_model(kind, *configuration_of(args.objective, fields), args.attn_implementation)


def configuration_of(objective: str, fields: dict[str, Any]) -> tuple[type[PreTrainedConfig], dict[str, Any]]:
    """Which configuration an objective trains a new model of, and its fields, by those of one stack."""
    if objective == "clm":
        return TunerDecoderConfig, fields
    if objective != "denoise":
        return TunerEncoderConfig, {**fields, "type_vocab_size": 2 if objective == "mlm+nsp" else 0}
    # Half of the blocks each, so that a preset's size stays what it says.
    half = {**fields, "num_hidden_layers": max(fields["num_hidden_layers"] // 2, 1)}
    ids = {name: fields.get(name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    return TunerSeq2SeqConfig, {"encoder": half, "decoder": dict(half), **ids}
