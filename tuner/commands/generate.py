"""`tuner generate`: one answer a prompt."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from tuner.config.flags import number


def add_parser(subparsers: Any) -> None:
    """Add the command's flags."""
    parser = subparsers.add_parser("generate", help="answer prompts given as arguments or on standard input")
    add_sampling(parser)
    text = "a prompt; without one, each line of standard input is"
    parser.add_argument("prompt", nargs="*", metavar="PROMPT", help=text)
    parser.add_argument("--raw", action="store_true", help="continue the text as it is, without the chat template")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `tuner chat` shares: which model answers, and how."""
    parser.add_argument("model", metavar="MODEL", help="a run's folder, a Hub id, a GGUF file or builtin:<name>")
    parser.add_argument("--system", help="a system message to begin with")
    for name, kind, bounds, default, text in (
        ("max_new_tokens", int, (1,), 128, "longest answer"),
        ("temperature", float, (0,), 0.7, "0 is greedy"),
        ("top_p", float, (0, 1), 0.9, "nucleus sampling"),
        ("top_k", int, (0,), 0, "sample among so many tokens; 0 for all"),
    ):
        convert, shown = number(kind, *bounds), f"{text} (default: {default})"
        parser.add_argument(f"--{name}", type=convert, default=default, metavar=kind.__name__.upper(), help=shown)
    parser.add_argument("--seed", type=number(int, 0, 2**32 - 1), metavar="INT", help="repeat an answer exactly")


def main(args: argparse.Namespace) -> None:
    """Answer each prompt, one after the other, on standard output."""
    from tuner.loading.chat_model import load_chat_model

    model = load_chat_model(args)
    if not args.raw:
        model.require_template()
    for prompt in args.prompt or (line.rstrip("\n") for line in sys.stdin if line.strip()):
        turns = [{"role": "system", "content": args.system}] if args.system else []
        inputs = model.text(prompt) if args.raw else model.prompt([*turns, {"role": "user", "content": prompt}])
        print(model.generate(inputs, stream=False).strip(), flush=True)
