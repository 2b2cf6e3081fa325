"""`tuner feedback`: people compare completions on a page; their answers become a data set of preferences."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tuner.commands.generate import add_sampling
from tuner.config.flags import number
from tuner.errors import ArgumentError, from_extra, nearest, notice

SUFFIXES = (".jsonl", ".parquet")
# What of the flags decides which completions are sampled, beside the models and the rows.
SAMPLING = ("max_new_tokens", "temperature", "top_p", "top_k", "seed", "system")


def add_parser(subparsers: Any) -> None:
    """Add the command, and those that follow its name."""
    parser = subparsers.add_parser("feedback", help="a page on which people compare two completions of a prompt")
    add_sampling(parser, nargs="*")
    text = "rows with a column prompt (a text, or messages) or messages, whose last answer is dropped; without MODEL "
    text += "also two completions (chosen and rejected): a local file, a Hub id or builtin:<name>"
    parser.add_argument("--prompts", metavar="DATA", help=text)
    parser.add_argument("--split", default="train", help="split of DATA (default: train)")
    parser.add_argument("--max_rows", type=number(int, 1), metavar="INT", help="the first so many rows (default: all)")
    text = "completions that are sampled at once (default: 8)"
    parser.add_argument("--batch_size", type=number(int, 1), default=8, metavar="INT", help=text)
    text = "the SQLite file of pairs and answers; the same command goes on with it, and without --prompts it is shown "
    parser.add_argument(
        "--output", type=Path, default="feedback.sqlite", metavar="FILE", help=f"{text}(default: %(default)s)"
    )
    parser.add_argument("--guidelines", type=Path, metavar="FILE", help="a Markdown file for the annotators")
    text = "annotators that answer a pair, not counting who skips it (default: all)"
    parser.add_argument("--annotators_per_pair", type=number(int, 1), metavar="INT", help=text)
    text = "address to listen on; another than this machine's own needs a token (default: %(default)s)"
    parser.add_argument("--host", default="127.0.0.1", help=text)
    text = "port to listen on, 0 for a free one (default: %(default)s)"
    parser.add_argument("--port", type=number(int, 0, 65535), default=7860, metavar="INT", help=text)
    parser.add_argument("--token", help="answer only who brings it (default: none, or one that is made up with --host)")
    goes_with = {"MODEL": (*SAMPLING, "batch_size"), "--prompts DATA": ("split", "max_rows")}
    unset = {name: (parser.get_default(name), what) for what, names in goes_with.items() for name in names}
    parser.set_defaults(action=_ask, unset=unset)

    parser = subparsers.add_parser("feedback export", help="the answers as a data set of preferences")
    parser.add_argument("file", metavar="FILE", type=Path, help="the SQLite file of 'tuner feedback'")
    _add_output(parser)
    parser.set_defaults(action=_export)

    parser = subparsers.add_parser("feedback report", help="who answered what, and how far annotators agree")
    parser.add_argument("file", metavar="FILE", type=Path, help="the SQLite file of 'tuner feedback'")
    parser.set_defaults(action=_report)

    parser = subparsers.add_parser("feedback import", help="preferences from Argilla's flat export")
    parser.add_argument("file", metavar="FILE", type=Path, help="jsonl, json, csv or parquet")
    _add_output(parser)
    parser.add_argument("--question", help="which question holds the preferences (default: the only one)")
    parser.add_argument("--prompt", default="prompt", metavar="FIELD", help="the prompt's field (default: %(default)s)")
    text = "what a response stands for, a field or tie; given once for each label of a label question"
    parser.add_argument("--label", action="append", default=[], metavar="LABEL=FIELD", help=text)
    parser.set_defaults(action=_import)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", metavar="OUT", type=Path, required=True, help="the .jsonl or .parquet file to write"
    )
    text = "write ties and both bad too, as rows with tie true in a column that is not there otherwise"
    parser.add_argument("--ties", action="store_true", help=text)


def main(args: argparse.Namespace) -> None:
    """What follows the command's name."""
    args.action(args)


def _ask(args: argparse.Namespace) -> None:
    if len(args.model) > 2:
        raise ArgumentError(f"At most two models are compared, not {', '.join(args.model)}.")
    if args.model and not args.prompts:
        raise ArgumentError("MODEL needs --prompts DATA, to answer.")
    if len(set(args.model)) == 1 and args.temperature == 0:
        raise ArgumentError("--temperature 0 gives the same completion twice; sample, or name two models.")
    given = {"MODEL": bool(args.model), "--prompts DATA": args.prompts is not None}
    for name, (value, what) in args.unset.items():
        if getattr(args, name) != value and not given[what]:
            raise ArgumentError(f"--{name} goes with {what}.")
    output = args.output.expanduser()
    if not output.parent.is_dir():
        raise ArgumentError(f"--output {output}: there is no folder {output.parent}.")
    from_extra("gradio", "ui")  # before completions are sampled that nobody could look at
    guidelines = _text(args.guidelines.expanduser()) if args.guidelines else ""
    from tuner.feedback.page import build_page
    from tuner.feedback.server import listen, serve
    from tuner.feedback.store import Store

    with listen(args.host, args.port) as socket:
        pairs = _read(args) if args.prompts is not None else None
        store = Store(output, new=pairs is not None, most=args.annotators_per_pair)
        if pairs is not None:
            _fill(store, pairs, args)
        if not store.count():
            raise ArgumentError(f"{output} has no pair to show.")
        serve(build_page(store, guidelines), socket, args.host, args.token)
    notice(
        f"The answers are in {output}; 'tuner feedback --output {output}' goes on, 'tuner feedback export' writes them."
    )


def _read(args: argparse.Namespace) -> list[Any]:
    from tuner.data.sources import load_rows
    from tuner.errors import DataError
    from tuner.feedback.pairs import read_pairs

    try:
        rows = load_rows(args.prompts, args.split)
    except DataError as error:
        raise DataError(str(error).replace("--dataset_name", "--prompts")) from None
    rows = rows.select(range(min(args.max_rows or len(rows), len(rows))))
    return read_pairs(rows, args.prompts, bool(args.model), args.system)


def _fill(store: Any, pairs: list[Any], args: argparse.Namespace) -> None:
    """Put the pairs into the store, and the completions that it lacks."""
    from hashlib import sha256

    models = [args.model[0], args.model[-1]] if args.model else None
    begun = {"prompts": args.prompts, "rows": sha256(repr(pairs).encode()).hexdigest()[:16], "models": models}
    store.begin(begun | ({name: getattr(args, name) for name in SAMPLING} if models else {}), pairs)
    if models:
        from tuner.feedback.sample import complete
        from tuner.loading.chat_model import load_chat_model

        def load(model: str) -> Any:
            return load_chat_model(argparse.Namespace(**{**vars(args), "model": model}))

        how = {name: getattr(args, name) for name in ("max_new_tokens", "top_p", "top_k", "batch_size")}
        complete(store, models, load, args.seed or 0, **how)


def _export(args: argparse.Namespace) -> None:
    output = _new(args.output)
    from tuner.feedback.export import preferences, write_preferences
    from tuner.feedback.store import Store

    _say(output, write_preferences(preferences(Store(args.file.expanduser())), output, args.ties), args.ties)


def _report(args: argparse.Namespace) -> None:
    from tuner.feedback.agreement import report
    from tuner.feedback.store import Store

    lines = report(Store(args.file.expanduser()))
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        print(f"{name:<{width}}  {value}")


def _import(args: argparse.Namespace) -> None:
    output, file = _new(args.output), args.file.expanduser()
    wrong = next((label for label in args.label if not all(label.partition("="))), None)
    if wrong is not None:
        raise ArgumentError(f"--label {wrong}: expected LABEL=FIELD.")
    if not file.is_file():
        raise ArgumentError(f"{file}: no such file.{nearest(file.name, (path.name for path in file.parent.glob('*')))}")
    from tuner.data.local_files import EXTENSIONS, file_format
    from tuner.data.read_files import read_rows
    from tuner.feedback.argilla import read_argilla
    from tuner.feedback.export import write_preferences

    if file_format(file) is None:
        raise ArgumentError(f"{file}: unknown extension; expected one of {EXTENSIONS}.")
    labels = dict(label.split("=", 1) for label in args.label)
    rows, statuses = read_argilla(read_rows(file), str(file), args.question, args.prompt, labels)
    counts = ", ".join(f"{count:,} {status}" for status, count in statuses.most_common())
    print(f"Responses: {counts or 'none'}. Only those that are submitted count.")
    _say(output, write_preferences(rows, output, args.ties), args.ties)


def _say(output: Path, counts: Any, ties: bool) -> None:
    kinds = [f"{counts[kind]:,} {kind.replace('_', ' ')}" for kind in ("tie", "both_bad") if counts[kind]]
    among = f"; {' and '.join(kinds)} {'among them' if ties else 'left out (--ties)'}" if kinds else ""
    print(f"Written to {output}: {counts['written']:,} rows{among}.")


def _new(output: Path) -> Path:
    output = output.expanduser()
    if output.suffix not in SUFFIXES:
        raise ArgumentError(f"--output {output}: a file {' or '.join(SUFFIXES)}.")
    if output.exists():
        raise ArgumentError(f"--output {output} is there already. Delete it, or choose another.")
    if not output.parent.is_dir():
        raise ArgumentError(f"--output {output}: there is no folder {output.parent}.")
    return output


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"--guidelines {file}: {getattr(error, 'strerror', None) or error}.") from None
