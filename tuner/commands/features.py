"""`tuner features`: texts as vectors, of a model's hidden states."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tuner.config.flags import number
from tuner.errors import ArgumentError


def add_parser(subparsers: Any) -> None:
    """Add the command's flags."""
    parser = subparsers.add_parser("features", help="write the embeddings of texts, or a model that makes them")
    parser.add_argument("model", metavar="MODEL", help="a folder, a Hub id, a GGUF file or builtin:<name>")
    text = "texts to embed: a local file, a Hub id or builtin:<name> with a column text; all rows of the split"
    parser.add_argument("data", metavar="DATA", nargs="?", help=text)
    text = "the file to write: .parquet (the rows with a column embedding) or .npy (rows x hidden size, float32)"
    parser.add_argument("--output", metavar="FILE", help=text)
    parser.add_argument("--split", default="train", help="split of DATA (default: train)")
    text = "the mean of a text's tokens, its first, or its last (default: mean)"
    parser.add_argument("--pooling", choices=("mean", "cls", "last"), default="mean", help=text)
    parser.add_argument("--normalize", action="store_true", help="vectors of length 1, for cosines")
    text = "tokens of a text that are read (default: 256)"
    parser.add_argument("--max_length", type=number(int, 2), default=256, metavar="INT", help=text)
    text = "also write the model with this pooling to a new folder, which sentence-transformers loads"
    parser.add_argument("--save_model", metavar="FOLDER", help=text)


def main(args: argparse.Namespace) -> None:
    """Embed the texts, from what is kept of an earlier run where there is that; and save the model."""
    if bool(args.data) != bool(args.output) or not (args.output or args.save_model):
        raise ArgumentError("Give texts and --output FILE, or --save_model FOLDER, or all three.")
    output = Path(args.output or "x.npy").expanduser()
    if output.suffix not in (".parquet", ".npy"):
        raise ArgumentError(f"--output {output}: a file .parquet or .npy.")
    if not output.parent.is_dir():
        raise ArgumentError(f"--output {output}: there is no folder {output.parent}.")
    from tuner.loading.embeddings import Embedder, save_sentence_model

    embedder = Embedder(args.model, args.pooling, args.max_length, args.normalize)
    if args.save_model:
        save_sentence_model(embedder, Path(args.save_model).expanduser())
        print(f"Written to {args.save_model}: SentenceTransformer({args.save_model!r}) loads it.")
    if args.data:
        rows, cut = embedder.write(args.data, args.split, output)
        print(f"Written to {output}: {rows:,} vectors; {cut:,} texts were cut to {args.max_length} tokens.")
