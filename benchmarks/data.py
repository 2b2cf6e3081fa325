"""Raw text to blocks of tokens: ours against the way of transformers' causal-LM example, on the same text.

The example's way is `datasets.map` twice, in batches of 1,000: tokenize, then join all columns and cut them into
blocks; as it does by default, and with as many processes as there are cores. All start from the same rows and the same
fast tokenizer. Every round has new rows, so that no cache knows them, and every measurement a process of its own, so
that none pays for what another left in memory.

    make bench-data
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.harness import finish, spread
from tuner.corpus.segments import to_documents
from tuner.data.schema import canonicalize
from tuner.data.sources import load_splits
from tuner.data.tokens import token_blocks
from tuner.objectives.arguments import TextArguments
from tuner.objectives.causal_lm import CausalLM
from tuner.objectives.records import Layout
from tuner.text.train_tokenizer import train_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--copies", type=int, default=1, help="of the corpus; more repeat its words, which flatters us")
    parser.add_argument("--length", type=int, default=1024)
    args = parser.parse_args()
    datasets.disable_progress_bars()
    kind, rows, _ = canonicalize(load_splits("builtin:chitchat")[0], "chitchat")
    documents = to_documents(rows, kind)
    tokenizer = train_tokenizer(documents["text"], "bpe", 4096, "clm")
    texts = [f"{number} {text}" for number in range(args.copies) for text in documents["text"]]
    size = sum(len(text.encode()) for text in texts)
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for number in range(args.rounds):
        for name in WAYS:
            with tempfile.TemporaryDirectory() as folder:
                Dataset.from_dict({"text": [f"{number} {text}" for text in texts]}).to_parquet(f"{folder}/rows.parquet")
                with ProcessPoolExecutor(1, get_context("spawn")) as process:
                    seconds[name].append(process.submit(time_of, name, folder, tokenizer, args.length).result())
                print(f"{name}: {size / 1e6 / seconds[name][-1]:.1f} MB/s", flush=True)
    ratios = {
        f"{ours} over {theirs}": spread([b / a for a, b in zip(seconds[ours], seconds[theirs], strict=True)])
        for ours in list(WAYS)[2:]
        for theirs in list(WAYS)[:2]
    }
    finish("data", ratios, megabytes=size / 1e6, seconds=seconds)


def time_of(name: str, folder: str, tokenizer: PreTrainedTokenizerBase, length: int) -> float:
    """Seconds that one way takes with the rows of a folder."""
    datasets.disable_progress_bars()
    rows = Dataset.from_parquet(f"{folder}/rows.parquet", cache_dir=folder)
    start = time.perf_counter()
    WAYS[name](rows, tokenizer, length)
    return time.perf_counter() - start


def as_the_example_does(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, length: int, num_proc: int | None = None
) -> Dataset:
    """transformers' run_clm.py: tokenize, then group."""

    def tokenize(examples: dict[str, list[Any]]) -> Any:
        return tokenizer(examples["text"])

    def group(examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        joined = {name: list(chain(*examples[name])) for name in examples}
        total = len(joined[next(iter(examples))]) // length * length
        result = {name: [t[i : i + length] for i in range(0, total, length)] for name, t in joined.items()}
        result["labels"] = result["input_ids"].copy()
        return result

    tokenized = rows.map(tokenize, batched=True, remove_columns=["text"], num_proc=num_proc)
    return tokenized.map(group, batched=True, num_proc=num_proc)


def packed_documents(rows: Dataset, tokenizer: PreTrainedTokenizerBase, length: int) -> Dataset:
    """Our next-token objective."""
    args = TextArguments(max_length=length, dataset_num_proc=os.cpu_count())
    return CausalLM(args, tokenizer, Layout(packing=True)).examples(rows, "rows")[0]


def one_stream(rows: Dataset, tokenizer: PreTrainedTokenizerBase, length: int) -> Dataset:
    """Ours, documents cut where a block ends, as the example cuts them."""
    return token_blocks(rows, tokenizer, length, None, 1, os.cpu_count())


WAYS = {
    "the example's way": as_the_example_does,
    "the example's way, all cores": partial(as_the_example_does, num_proc=os.cpu_count()),
    "ours, packed documents": packed_documents,
    "ours, one stream": one_stream,
}


if __name__ == "__main__":
    main()
