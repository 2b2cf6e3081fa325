"""The flags that `tuner chat` and `tuner generate` share."""

from __future__ import annotations

import argparse

from tuner.config.flags import number


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Add which model answers, and how."""
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
