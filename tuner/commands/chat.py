"""`tuner chat`: a streaming conversation with a model in the terminal."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from tuner.commands.generate import add_sampling

HELP = "Type to talk. /reset forgets the conversation, /adapter NAME changes it, /quit (or Ctrl-D) leaves."


def add_parser(subparsers: Any) -> None:
    """Add the command's flags."""
    parser = subparsers.add_parser("chat", help="talk to a model in the terminal")
    add_sampling(parser)
    text = "a folder with an adapter of the model, which goes by the folder's name; may be given several times"
    parser.add_argument("--adapter", action="append", default=[], metavar="FOLDER", help=text)


def main(args: argparse.Namespace) -> None:
    """A conversation until /quit or the end of input."""
    from rich.console import Console

    from tuner.loading.chat_model import load_chat_model

    model = load_chat_model(args)
    model.require_template()
    console = Console(highlight=False)
    console.print(HELP, style="dim")
    beginning = [{"role": "system", "content": args.system}] if args.system else []
    messages = list(beginning)
    while True:
        try:
            said = console.input("[bold green]you[/]  " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if said in ("/quit", "/exit"):
            return
        if said == "/reset":
            messages = list(beginning)
            console.print("The conversation is forgotten.", style="dim")
        elif said.startswith("/adapter"):
            console.print(model.switch(said.removeprefix("/adapter").strip()), style="dim")
        elif said.startswith("/"):
            console.print(f"There is no {said.split()[0]}. {HELP}", style="dim")
        elif said:
            messages.append({"role": "user", "content": said})
            console.print("[bold cyan]model[/] ", end="")
            try:
                answer = model.generate(model.fitting(messages, len(beginning)), stream=True)
            except KeyboardInterrupt:  # enough of this answer, not of the conversation
                console.print()
                messages.pop()
                continue
            messages.append({"role": "assistant", "content": answer})
