"""The `tuner` command: what is not training. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from tuner import __version__
from tuner.errors import run

# Each a file in tuner/commands with `add_parser(subparsers)` and `main(args)`, light to import.
COMMANDS = ("chat", "generate", "features", "compare", "feedback", "convert", "plan", "doctor")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    run(lambda: _main(list(sys.argv[1:] if argv is None else argv)))


def _main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="tuner", description="Fine-tuning toolkit: what is not training.")
    parser.add_argument("--version", action="version", version=f"tuner {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    modules = {name: importlib.import_module(f"tuner.commands.{name}") for name in COMMANDS}
    for module in modules.values():
        module.add_parser(subparsers)
    known = subparsers.choices
    words = next((count for count in (2, 1) if " ".join(argv[:count]) in known), 0)  # as in `feedback export`
    if not words:
        parser.parse_args(argv)  # --help, --version, or an error
    # Not by `parser.parse_args`: of `generate MODEL --seed 1 PROMPT`, only intermixed parsing finds the prompt, and
    # argparse has it for one parser at a time.
    modules[argv[0]].main(known[" ".join(argv[:words])].parse_intermixed_args(argv[words:]))


if __name__ == "__main__":
    main()
