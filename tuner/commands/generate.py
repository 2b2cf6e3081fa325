"""`tuner generate`: one answer a prompt."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from tuner.config.flags import number
from tuner.errors import ArgumentError, nearest


def add_parser(subparsers: Any) -> None:
    """Add the command's flags."""
    text = "answer prompts given as arguments, on standard input or in a file"
    parser = subparsers.add_parser("generate", help=text)
    add_sampling(parser)
    text = "a prompt; without one, each line of standard input is"
    parser.add_argument("prompt", nargs="*", metavar="PROMPT", help=text)
    parser.add_argument("--raw", action="store_true", help="continue the text as it is, without the chat template")
    text = (
        "a file of prompts (jsonl, json, csv, parquet, txt): the column prompt (a text, or messages), messages, text "
    )
    text += "(continued as it is) or source (for an encoder-decoder)"
    parser.add_argument("--prompts", metavar="FILE", help=text)
    text = "with --prompts: the JSON lines to write, each a row with its completion; a run that was killed goes on"
    parser.add_argument("--output", metavar="FILE", help=text)
    text = "with --prompts: prompts that are answered at once (default: 8)"
    parser.add_argument("--batch_size", type=number(int, 1), metavar="INT", help=text)


def add_sampling(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    """Add the flags that commands share: which model answers, or which `nargs` models, and how."""
    text = "a run's folder, a Hub id, a GGUF file or builtin:<name>"
    parser.add_argument("model", metavar="MODEL", nargs=nargs, help=text)
    parser.add_argument("--system", help="a system message to begin with")
    for name, kind, bounds, default, text in (
        ("max_new_tokens", int, (1,), 128, "longest answer"),
        ("temperature", float, (0,), None, "0 is greedy (default: 0.7, of an encoder-decoder 0)"),
        ("top_p", float, (0, 1), 0.9, "nucleus sampling"),
        ("top_k", int, (0,), 0, "sample among so many tokens; 0 for all"),
    ):
        convert, shown = number(kind, *bounds), text if default is None else f"{text} (default: {default})"
        parser.add_argument(f"--{name}", type=convert, default=default, metavar=kind.__name__.upper(), help=shown)
    parser.add_argument("--seed", type=number(int, 0, 2**32 - 1), metavar="INT", help="repeat answers exactly")


def main(args: argparse.Namespace) -> None:
    """Answer each prompt, one after the other, on standard output; or a file of them."""
    if args.raw and args.system is not None:
        raise ArgumentError("--system is for the chat template, which --raw leaves out.")
    if args.prompts is not None:
        return _answer_file(args)
    for flag in ("output", "batch_size"):
        if getattr(args, flag) is not None:
            raise ArgumentError(f"--{flag} goes with --prompts FILE.")
    from tuner.loading.chat_model import load_chat_model

    model = load_chat_model(args)
    plain = args.raw or model.is_pair
    if not plain:
        model.require_template()
    elif args.system is not None:
        raise ArgumentError("--system is for a chat template, which an encoder-decoder has no use for.")
    for prompt in args.prompt or (line.rstrip("\n") for line in sys.stdin if line.strip()):
        turns = [{"role": "system", "content": args.system}] if args.system else []
        inputs = model.text(prompt) if plain else model.prompt([*turns, {"role": "user", "content": prompt}])
        print(model.generate(inputs, stream=False).strip(), flush=True)


def _answer_file(args: argparse.Namespace) -> None:
    from tuner.data.local_files import EXTENSIONS, file_format

    file, output = Path(args.prompts).expanduser(), Path(args.output or "").expanduser()
    if args.prompt:
        raise ArgumentError(f"--prompts {file} and the prompt {args.prompt[0]!r}: give one of them.")
    if not args.output:
        raise ArgumentError("--prompts needs --output FILE, for the answers.")
    if not file.is_file():
        beside = [path.name for path in file.parent.glob("*")]
        raise ArgumentError(f"--prompts {file}: no such file.{nearest(file.name, beside)}")
    if file_format(file) is None:
        raise ArgumentError(f"--prompts {file}: unknown extension; expected one of {EXTENSIONS}.")
    if output.exists():
        raise ArgumentError(f"--output {output} is there already. Delete it, or choose another.")
    if not output.parent.is_dir():
        raise ArgumentError(f"--output {output}: there is no folder {output.parent}.")
    from tuner.loading.chat_model import load_chat_model
    from tuner.loading.prompt_file import SAMPLING, answer_file

    args.batch_size, args.seed = args.batch_size or 8, args.seed or 0
    model = load_chat_model(args)
    how = {name: getattr(args, name) for name in SAMPLING}
    answer_file(model, file, output, args.model, args.system, args.raw, how)
    print(f"Written to {output}.")
