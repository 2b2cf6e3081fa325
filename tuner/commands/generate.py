"""`tuner generate`: one answer a prompt."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from tuner.commands.sampling import add_sampling


def add_parser(subparsers: Any) -> None:
    """Add the command's flags."""
    parser = subparsers.add_parser("generate", help="answer prompts given as arguments or on standard input")
    add_sampling(parser)
    text = "a prompt; without one, each line of standard input is"
    parser.add_argument("prompt", nargs="*", metavar="PROMPT", help=text)
    parser.add_argument("--raw", action="store_true", help="continue the text as it is, without the chat template")


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
