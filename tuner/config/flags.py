"""Flags: how a dataclass of arguments is read from a strict YAML file and the command line.

A YAML line is a flag: `learning_rate: 1e-3` in the file named by `--config` means `--learning_rate 1e-3`, goes through
the same parser and is overridden by the command line. YAML's own types are not asked: in `eval_strategy: no`, the value
is the word `no`. A name that does not exist is refused in both places, with the nearest one that does.

Fields of transformers' `TrainingArguments` are accepted too; they are looked up only when one is used, because
transformers takes seconds to import and `--help` should not.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, Literal, NoReturn, Union

import yaml

from tuner.errors import ArgumentError, nearest, one_line, unreadable


def read_flags(kind: type[Any], argv: list[str]) -> dict[str, Any]:
    """What the command line, and the YAML file that `--config` names, say of the fields of the dataclass `kind` and,
    where its `PASSED_ON` is true, of transformers' `TrainingArguments`. A flag on the command line also overrides what
    it stands for in the file under other names: `INSTEAD` of the dataclass.

    Raises:
        ArgumentError: an unknown name, a value of the wrong type or out of bounds, or an unreadable file; it names the
            file and the line.
    """
    parser = _parser(kind)
    values = _parse(parser, argv)
    files = values.pop("config", [])
    if len(files) > 1:
        raise ArgumentError(f"--config: one file, not {len(files)}: {', '.join(files)}.")
    if not files:
        return values
    said = _read_yaml(parser, Path(files[0]).expanduser())
    for flag, others in getattr(kind, "INSTEAD", {}).items():
        if flag in values:
            said = {name: value for name, value in said.items() if name not in others}
    return said | values


def _parse(parser: _Parser, argv: list[str]) -> dict[str, Any]:
    """The values of our own flags, and of those that are transformers'."""
    namespace, rest = parser.parse_known_args(argv)
    if not rest:
        return vars(namespace)
    if not rest[0].startswith("--"):
        raise ArgumentError(f"unexpected {rest[0]!r}: a flag begins with --.")
    for word in rest:
        if word.startswith("--"):
            _refuse_unknown(word.removeprefix("--").split("=")[0], parser)
    if not parser.others:
        parser.parse_args(argv)  # which refuses the rest
    from transformers import TrainingArguments

    return vars(namespace) | vars(_parser(TrainingArguments).parse_args(rest))


def _refuse_unknown(name: str, ours: _Parser) -> None:
    known = {action.dest for action in ours._actions}
    if name not in known and ours.others:
        from transformers import TrainingArguments

        known |= {f.name for f in fields(TrainingArguments) if f.init}
    if name not in known:
        raise ArgumentError(f"unknown flag or key {name!r}.{nearest(name, known)}")


class _Parser(argparse.ArgumentParser):
    others = False  # whether it takes transformers' flags beside its own

    def error(self, message: str) -> NoReturn:
        raise ArgumentError(message.removeprefix("argument "))


def _parser(kind: type[Any]) -> _Parser:
    main, others = sys.modules.get("__main__"), getattr(kind, "PASSED_ON", False)
    parser = _Parser(
        description=getattr(main, "__doc__", None) or kind.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Every other field of transformers.TrainingArguments is accepted as a flag too." if others else None,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--config", action="append", metavar="FILE", help="YAML file of flags; the command line overrides it."
    )
    parser.others = others
    hints = typing.get_type_hints(kind)
    groups = {}
    for item in (item for item in fields(kind) if item.init):
        owner = next(base for base in reversed(kind.__mro__) if item.name in getattr(base, "__annotations__", {}))
        if owner not in groups:
            groups[owner] = parser.add_argument_group((owner.__doc__ or owner.__name__).split("\n")[0].rstrip("."))
        groups[owner].add_argument(f"--{item.name}", **_options(item, hints[item.name]))
    return parser


def _options(item: Field[Any], hint: Any) -> dict[str, Any]:
    """What argparse needs to know of a field."""
    default = item.default if item.default is not MISSING else item.default_factory()  # type: ignore[operator]
    shown = " ".join(map(str, default)) if isinstance(default, list) else default
    if isinstance(default, bool):
        shown = str(default).lower()
    text = item.metadata.get("help", "").replace("%", "%%")
    options: dict[str, Any] = {"help": text if default is None else f"{text} (default: {shown})"}
    if typing.get_origin(hint) in (Union, types.UnionType):
        kinds = [h for h in typing.get_args(hint) if h is not type(None)]
        hint = next((h for h in (bool, str) if h in kinds), kinds[0])  # transformers parses texts itself
    if typing.get_origin(hint) is Literal or "choices" in item.metadata:
        return options | {"choices": item.metadata.get("choices") or typing.get_args(hint)}
    if typing.get_origin(hint) is list:
        return options | {"nargs": "*", "action": "extend", "type": typing.get_args(hint)[0], "metavar": "NAME"}
    if hint is bool:
        return options | {"type": _boolean, "nargs": "?", "const": True, "metavar": "BOOL"}
    if hint in (int, float):
        return options | {"type": number(hint, *item.metadata.get("bounds", ())), "metavar": hint.__name__.upper()}
    return options | {"type": hint, "metavar": "TEXT"}


def _boolean(text: str) -> bool:
    values = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"expected true or false, not {text!r}")
    return values[text.lower()]


def number(kind: type, least: float = -math.inf, most: float = math.inf) -> Callable[[str], float]:
    """A converter for argparse that takes finite numbers from `least` to `most`."""

    def convert(text: str) -> float:
        number = kind(text)
        if not (math.isfinite(number) and least <= number <= most):
            limits = [f" of at least {least}"] * (least > -math.inf) + [f" of at most {most}"] * (most < math.inf)
            raise argparse.ArgumentTypeError(f"expected a number{' and'.join(limits)}, not {text}")
        return number

    convert.__name__ = kind.__name__  # argparse puts it into its messages
    return convert


def _read_yaml(parser: _Parser, path: Path) -> dict[str, Any]:
    """What a YAML file says: each of its lines, parsed as the flag it stands for."""
    values: dict[str, Any] = {}
    place = f"--config {path}"
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        root: Any = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            raise ArgumentError(f"expected 'name: value' lines, found {f'a {root.id}' if root else 'nothing'}.")
        for key, value in root.value:
            place = f"--config {path}, line {key.start_mark.line + 1}"
            values |= _parse(parser, _as_flag(parser, loader, key, value))
    except OSError as error:
        raise ArgumentError(f"{place}: {unreadable(path, error)}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = " ".join(filter(None, (error.context, error.problem)))
        raise ArgumentError(f"--config {path}{where}: {problem}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ArgumentError(f"{place}: not YAML: {one_line(error)}.") from error
    except ArgumentError as error:
        raise ArgumentError(f"{place}: {error}") from error
    return values


def _as_flag(parser: _Parser, loader: _Loader, key: Any, value: Any) -> list[str]:
    """A line of YAML as words of a command line; none when its value is null."""
    if not isinstance(key, yaml.ScalarNode):
        raise ArgumentError(f"a name must be a word, not a {key.id}.")
    if key.value == "config":
        raise ArgumentError("a file cannot name another with 'config'.")
    if value.tag == "tag:yaml.org,2002:null":
        _refuse_unknown(key.value, parser)
        return []
    if not isinstance(value, yaml.SequenceNode):
        return [f"--{key.value}={loader.text(value)}"]
    known = parser._option_string_actions.get(f"--{key.value}")
    if known is not None and known.nargs != "*":
        raise ArgumentError(f"--{key.value}: expected one value, found a list.")
    return [f"--{key.value}", *map(loader.text, value.value)]


class _Loader(yaml.SafeLoader):
    """YAML allows a key twice and keeps the last one; a run should not depend on which."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = [key.value for key, _ in node.value]
        for number, (key, _) in enumerate(node.value):
            if key.value in keys[:number]:
                problem = f"the key {key.value!r} is there twice"
                raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
        return node

    def text(self, node: yaml.Node) -> str:
        """A scalar as it is written; anything else as JSON."""
        if isinstance(node, yaml.ScalarNode):
            return node.value
        return json.dumps(self.construct_object(node, deep=True), default=str)
