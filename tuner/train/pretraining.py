"""The steps of the pretraining recipe: documents, tokenizer, objective, examples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from transformers import (
    PreTrainedTokenizerBase,
)

from tuner.data.clean import CleaningOptions, CleaningReport, clean_corpus, clean_text, fault
from tuner.data.corpus import to_documents
from tuner.data.stream import open_stream, set_aside
from tuner.errors import ArgumentError, ModelError
from tuner.model import (
    PRESETS,
)
from tuner.text.tokenizer import load_pretrained_tokenizer
from tuner.text.vocabulary import train_tokenizer
from tuner.train.objective import Objective
from tuner.train.objectives import OBJECTIVES
from tuner.train.prepare import load_rows, load_tokenizer, was_trained
from tuner.train.run import Run

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
        ArgumentError: flags that a stream does not go with.
    """
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
    names = [*("mlm_probability", "mean_noise_span_length", "whole_word", "corruption", "views", "temperature")]
    names += ["z_loss", "packing", "truncation_mode", "max_labels_lost"]
    options = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
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
