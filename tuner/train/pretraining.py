"""The steps of the pretraining recipe: documents, tokenizer, objective, examples."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from tuner.corpus import clean
from tuner.corpus.clean import CleaningOptions, CleaningReport, clean_corpus, clean_text, fault
from tuner.corpus.corrupt import sentinels
from tuner.corpus.duplicates import word_hashes
from tuner.corpus.reading import open_stream, set_aside
from tuner.corpus.segments import to_documents
from tuner.data.cache_key import cache_key
from tuner.data.sources import has_text
from tuner.errors import ArgumentError, ModelError
from tuner.model import PRESETS
from tuner.objectives.base import Objective
from tuner.objectives.pretraining import OBJECTIVES
from tuner.text.load_tokenizer import load_pretrained_tokenizer
from tuner.text.train_tokenizer import train_tokenizer
from tuner.train.prepare import load_rows, load_tokenizer, was_trained
from tuner.train.run import Run, say

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
    if not args.packing or args.truncation_mode != "split":
        raise ArgumentError("--streaming true cuts the text into blocks: leave out --packing and --truncation_mode.")
    if args.train_sampling_strategy != "random":
        raise ArgumentError("--streaming true shuffles in --shuffle_buffer: leave out --train_sampling_strategy.")
    splits, count = (args.dataset_train_split, args.dataset_test_split), int(args.test_split_size)
    train, held_out = open_stream(args.dataset_name, args.dataset_config, splits, args.seed, args.shuffle_buffer)
    if held_out is not None:
        return Documents(train, Dataset.from_list(list(held_out.take(count))))
    return Documents(*set_aside(train, count, args.dataset_name))


def _cleaned(train: Dataset, held_out: Dataset, args: Any) -> tuple[Dataset, Dataset, CleaningReport]:
    """What is validated on is cleaned by the same rules on texts, but keeps all documents that have some left."""
    options = _options(args)
    texts = _clean_texts(held_out, options)
    findable = any(len(word_hashes(text)) >= options.contamination_words for text in texts["text"])
    if not findable:
        say(
            f"No validation document has {options.contamination_words} words to be found by: training documents that "
            "share text with one stay."
        )
    cleaned, report = clean_corpus(train, options, texts if findable else None, args.dataset_num_proc)
    return cleaned, texts, report


def _options(args: Any) -> CleaningOptions:
    plain = CleaningOptions(boilerplate=False, min_words=0, max_words=sys.maxsize, quality=False, repetition=False)
    return CleaningOptions() if args.clean == "web" else plain


def _clean_one(text: str, options: CleaningOptions) -> str | None:
    """What a stream can do: a document by itself."""
    cleaned = clean_text(text, options)
    return None if fault(cleaned, options) else cleaned


def _clean_texts(documents: Dataset, options: CleaningOptions) -> Dataset:
    """Documents that are cleaned and all stay, but those that nothing is left of."""
    how = {"options": options, "cache_key": cache_key(clean.__file__)}
    cleaned = documents.map(_clean_batch, batched=True, fn_kwargs=how, desc="Cleaning")
    return cleaned.filter(has_text, input_columns=["text"], desc="Leaving out blank documents")


def _clean_batch(batch: dict[str, list[Any]], options: CleaningOptions, cache_key: str) -> dict[str, list[Any]]:
    """`cache_key` is for the cache alone."""
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
    if args.objective == "denoise" and args.corruption == "spans" and len(sentinels(tokenizer)) < 2:
        raise ModelError("--corruption spans needs a tokenizer with the special tokens <extra_id_0>, <extra_id_1>, ...")
    return tokenizer


def load_objective(args: Any, tokenizer: PreTrainedTokenizerBase) -> Objective:
    """The objective of `--objective`, with the flags that are its own.

    Raises:
        ArgumentError: flags that it has no use for, or with which there would be nothing to learn.
    """
    kind = OBJECTIVES[args.objective]
    if args.max_length < kind.least_length:
        raise ArgumentError(f"--objective {args.objective} needs --max_length {kind.least_length} or more.")
    together = {"mlm+nsp": 1, "contrastive": PartialState().num_processes}.get(args.objective)
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size"):
        if together is not None and together * getattr(args, name) < 2:
            raise ArgumentError(f"--objective {args.objective} takes others of the batch as wrong: --{name} 2 or more.")
    if args.z_loss and args.objective in ("rtd", "contrastive"):
        raise ArgumentError(f"--z_loss is for losses over the vocabulary: --objective {args.objective} has none.")
    names = [*("mlm_probability", "mean_noise_span_length", "whole_word", "corruption", "views", "temperature")]
    names += ["z_loss", "packing", "truncation_mode", "max_labels_lost", "streaming"]
    options = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return kind(tokenizer, args.max_length, args.seed, **options)


def make_examples(args: Any, documents: Documents, objective: Objective) -> Examples:
    """The objective's examples of both splits.

    Raises:
        DataError: too little text for one.
    """
    if args.streaming:
        cleans = None if args.clean == "none" else partial(_clean_one, options=_options(args))
        held_out = _clean_texts(documents.eval, _options(args)) if cleans else documents.eval
        return Examples(
            objective.stream(documents.train, cleans), objective.rows(held_out, None, "the documents set aside")
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
