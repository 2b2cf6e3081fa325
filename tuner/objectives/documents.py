"""The documents that a run is trained and validated on, by its flags: read at once or as a stream, cleaned or not."""

from __future__ import annotations

from typing import Any

from datasets import Dataset, IterableDataset

from tuner.corpus import clean
from tuner.corpus.clean import CleaningStep, clean_corpus, clean_text, fault
from tuner.corpus.duplicates import HELD_OUT_WORDS, held_out_ngrams
from tuner.corpus.reading import open_stream, set_aside
from tuner.data.cache_key import map_batches
from tuner.data.mixture import data_sources
from tuner.data.sources import has_text
from tuner.errors import ArgumentError
from tuner.objectives.arguments import TextArguments


def open_documents(args: TextArguments) -> tuple[IterableDataset, Dataset]:
    """Documents that are read while training, and those to validate on, in memory.

    Raises:
        ArgumentError: flags that a stream does not go with.
        DataError: nothing there.
    """
    if len(args.dataset_name) > 1 or args.dataset_weights:
        raise ArgumentError("--streaming true reads one data set: leave out the others, and --dataset_weights.")
    [source] = data_sources(args)
    if args.test_split_size < 1 or args.max_steps < 1:
        raise ArgumentError("--streaming true needs --max_steps, and --test_split_size as a number of documents.")
    if args.extra.get("dataloader_num_workers"):  # its place would be known in another process
        raise ArgumentError("--streaming true is read by the trainer itself: leave out --dataloader_num_workers.")
    if args.packing is False or args.truncation_mode != "split":
        raise ArgumentError("--streaming true cuts the text into blocks: leave out --packing and --truncation_mode.")
    if args.train_sampling_strategy != "random":
        raise ArgumentError("--streaming true shuffles in --shuffle_buffer: leave out --train_sampling_strategy.")
    splits, count = (args.dataset_train_split, args.dataset_test_split), int(args.test_split_size)
    where = (source.name, source.config, splits)
    train, held_out = open_stream(*where, args.seed, args.shuffle_buffer, source.column_mapping)
    if held_out is not None:
        return train, Dataset.from_list(list(held_out.take(count)))
    return set_aside(train, count, source.name)


def clean_documents(
    train: Dataset, held_out: Dataset, args: TextArguments
) -> tuple[Dataset, Dataset, list[CleaningStep], str]:
    """Both splits cleaned as `--clean` says, the report, and a sentence about what could not be looked for, or nothing.

    Validation documents are cleaned by the same rules on texts, but all that have some text left stay.
    """
    web = args.clean == "web"
    texts = clean_texts(held_out, web)
    ngrams = held_out_ngrams(texts["text"])
    cleaned, report = clean_corpus(train, web, ngrams, args.dataset_num_proc)
    said = (
        f"No validation document has {HELD_OUT_WORDS} words to be found by: "
        "training documents that share text with one stay."
    )
    return cleaned, texts, report, "" if len(ngrams) else said


def clean_one(text: str, web: bool) -> str | None:
    """A document of a stream by itself, cleaned, or None where a filter removes it."""
    cleaned = clean_text(text, web)
    return None if fault(cleaned, web) else cleaned


def clean_texts(documents: Dataset, web: bool) -> Dataset:
    """Documents that are cleaned and all stay, but those that nothing is left of."""
    cleaned = map_batches(documents, _clean_batch, [clean.__file__], {"web": web}, desc="Cleaning")
    return cleaned.filter(has_text, input_columns=["text"], desc="Leaving out blank documents")


def _clean_batch(batch: dict[str, list[Any]], web: bool) -> dict[str, list[Any]]:
    return {"text": [clean_text(text, web) for text in batch["text"]]}
