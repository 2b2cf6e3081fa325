"""`tuner convert`: a checkpoint of ours as one of transformers' families, and one of those as ours."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add the command's flags."""
    parser = subparsers.add_parser("convert", help="a model of ours as another family's, and the other way round")
    parser.add_argument("model", metavar="MODEL", help="a run's folder, a Hub id, a GGUF file or builtin:<name>")
    parser.add_argument("--to", required=True, metavar="FAMILY", help="llama, qwen3, bert, t5, ... or tuner for ours")
    parser.add_argument("output", metavar="OUT", type=Path, help="the folder to write, which must be new")


def main(args: argparse.Namespace) -> None:
    """Convert, and say what was written."""
    from tuner.loading.conversion import convert

    print(convert(args.model, args.to, args.output.expanduser()))
