"""The `tuner` command: what is not training. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tuner import __version__
from tuner.errors import ArgumentError, run


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    run(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> None:
    args = _parser().parse_args(argv)
    if args.command == "doctor":
        from tuner.commands.doctor import examine

        examine()
        return
    if args.command == "plan":
        from tuner.commands.plan import plan

        plan(args.model, args.context, Path(args.output), args.processes)
        return
    if args.command == "convert":
        from tuner.commands.convert import convert

        convert(args.model, args.to, Path(args.output))
        return
    from tuner.commands import chat

    model = chat.load_chat_model(args.model, args)
    if args.command == "chat":
        chat.chat(model, args.system)
    else:
        chat.complete(model, args.prompt, args.system, args.raw)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tuner", description="Fine-tuning toolkit: what is not training.")
    parser.add_argument("--version", action="version", version=f"tuner {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    sampling = argparse.ArgumentParser(add_help=False)
    sampling.add_argument("model", metavar="MODEL", help="a run's folder, a Hub id or builtin:<name>")
    sampling.add_argument("--system", help="a system message to begin with")
    sampling.add_argument(
        "--max_new_tokens", type=_positive, default=128, metavar="INT", help="longest answer (default: 128)"
    )
    sampling.add_argument("--temperature", type=float, default=0.7, metavar="FLOAT", help="0 is greedy (default: 0.7)")
    sampling.add_argument("--top_p", type=float, default=0.9, metavar="FLOAT", help="nucleus sampling (default: 0.9)")
    sampling.add_argument(
        "--top_k", type=int, default=0, metavar="INT", help="sample among so many tokens; 0 for all (default: 0)"
    )
    sampling.add_argument("--seed", type=int, metavar="INT", help="repeat an answer exactly")

    commands.add_parser("chat", parents=[sampling], help="talk to a model in the terminal")
    generate = commands.add_parser(
        "generate", parents=[sampling], help="answer prompts given as arguments or on standard input"
    )
    generate.add_argument(
        "prompt", nargs="*", metavar="PROMPT", help="a prompt; without one, each line of standard input is"
    )
    generate.add_argument("--raw", action="store_true", help="continue the text as it is, without the chat template")
    convert = commands.add_parser("convert", help="a model of ours as another family's, and the other way round")
    convert.add_argument("model", metavar="MODEL", help="a run's folder, a Hub id, a GGUF file or builtin:<name>")
    convert.add_argument("--to", required=True, metavar="FAMILY", help="llama, qwen3, bert, t5, ... or tuner for ours")
    convert.add_argument("output", metavar="OUT", help="the folder to write, which must be new")
    anatomy = commands.add_parser("plan", help="parameters, operations and memory of a configuration")
    anatomy.add_argument(
        "model",
        metavar="CONFIG",
        help="a preset, a folder, a config.json, a Hub id, builtin:<name>, or a recipe's YAML for its cost too",
    )
    anatomy.add_argument("--context", type=_positive, metavar="INT", help="tokens of context (default: the longest)")
    anatomy.add_argument(
        "--processes", type=_positive, default=1, metavar="INT", help="that train by a recipe's YAML (default: 1)"
    )
    anatomy.add_argument(
        "--output", default="parameters.png", metavar="FILE", help="the picture (default: parameters.png)"
    )
    commands.add_parser("doctor", help="versions, hardware, and what is fast here")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ArgumentError(f"expected a number of at least 1, not {text}.")
    return number


if __name__ == "__main__":
    main()
