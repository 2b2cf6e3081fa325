"""`tuner compare`: checkpoints of one line beside each other, by a reward."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tuner.config.flags import number
from tuner.errors import ArgumentError

# Columns of the table in a file or a pipe.
WIDTH = 140


def add_parser(subparsers: Any) -> None:
    """Add the command's flags."""
    parser = subparsers.add_parser("compare", help="a base model and what became of it: perplexity, reward, win rate")
    text = "folders, Hub ids or builtin:<name>, each after what it came from; the last one's tokenizer is read"
    parser.add_argument("models", metavar="MODEL", nargs="+", help=text)
    text = "a reward model: a folder or a Hub id; several are added up"
    parser.add_argument("--reward_model_path", nargs="+", default=[], metavar="MODEL", help=text)
    text = "reward functions: file.py:function, or module.function"
    parser.add_argument("--reward_funcs", nargs="+", default=[], metavar="FUNCTION", help=text)
    text = "prompts, with answers or without: a local file, a Hub id or builtin:<name> (default: %(default)s)"
    parser.add_argument("--dataset_name", default="builtin:chitchat-small", metavar="DATA", help=text)
    text = "which of the models the divergence is measured from (default: the first)"
    parser.add_argument("--reference", metavar="MODEL", help=text)
    parser.add_argument("--untrained", action="store_true", help="also the first model with new weights")
    count = number(int, 1)
    text = "validation rows that are read (default: %(default)s)"
    parser.add_argument("--max_eval_samples", type=count, default=100, metavar="INT", help=text)
    text = "rows set aside for validation where the data has none: a share below 1, or a number (default: %(default)s)"
    parser.add_argument("--test_split_size", type=number(float, 0), default=0.05, metavar="NUMBER", help=text)
    text = "longer prompts are left out (default: all must fit)"
    parser.add_argument("--max_prompt_length", type=count, metavar="INT", help=text)
    text = "most tokens of a completion (default: %(default)s)"
    parser.add_argument("--response_length", type=count, default=53, metavar="INT", help=text)
    parser.add_argument("--seed", type=number(int, 0), default=42, metavar="INT", help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the table, as JSON")


def main(args: argparse.Namespace) -> None:
    """Print the table, a line for each model; an `ArgumentError` where there is no reward or no such reference."""
    if not args.reward_model_path and not args.reward_funcs:
        raise ArgumentError("There is no reward: --reward_model_path or --reward_funcs, or both.")
    if args.reference is not None and args.reference not in args.models:
        raise ArgumentError(f"--reference {args.reference} is none of the models: {', '.join(args.models)}.")
    if args.output is not None and not args.output.absolute().parent.is_dir():
        raise ArgumentError(f"--output {args.output}: there is no folder {args.output.parent}.")
    from rich.console import Console

    from tuner.hardware import device_type, use_all_cores
    from tuner.loading.checkpoints import resolve
    from tuner.loading.reward import RewardModel
    from tuner.rl.compare import Compared, compare, load_stage, prompts_with_answers
    from tuner.rl.rewards import Rewards, load_function
    from tuner.rl.setup import known_ends
    from tuner.text.load_tokenizer import load_pretrained_tokenizer
    from tuner.train.plan import table

    use_all_cores()
    device = device_type()
    path, how = resolve(args.models[-1])
    tokenizer = load_pretrained_tokenizer(path, **how)
    reference = load_stage(args.reference or args.models[0], tokenizer, device)
    given = (args.dataset_name, args.test_split_size, args.max_eval_samples, args.max_prompt_length)
    rows = prompts_with_answers(*given, tokenizer, reference, args.response_length)
    judges: list[Any] = [RewardModel.load(name, device) for name in args.reward_model_path]
    judges += [load_function(name) for name in args.reward_funcs]
    rewards = Rewards(judges, None, [None] * len(judges), tokenizer, 64)

    def stages() -> Iterator[tuple[str, Any]]:
        if args.untrained:
            yield f"new, as {args.models[0]}", load_stage(args.models[0], tokenizer, device, new=True, seed=args.seed)
        for name in args.models:
            yield name, load_stage(name, tokenizer, device)

    ends = known_ends(reference, tokenizer)
    found: list[Compared] = []
    for one in compare(
        stages(), reference, tokenizer, rows, rewards, ends, response_length=args.response_length, seed=args.seed
    ):
        print(f"{one.name}: reward {one.reward}", flush=True)
        found.append(one)
    lines = [one.cells() for one in found]
    title = f"{len(rows)} prompts of {args.dataset_name}, up to {args.response_length} tokens"
    columns = ("", "perplexity", "reward", "KL", "said", "tokens", "win rate", "p")
    print(
        "perplexity: of the rows' answers; said: of its completions under the reference; win rate: over the one above."
    )
    wide = None if sys.stdout.isatty() else WIDTH
    Console(highlight=False, width=wide).print(table(title, columns, lines))
    if args.output is not None:
        args.output.write_text(json.dumps([dataclasses.asdict(one) for one in found], indent=1), encoding="utf-8")
