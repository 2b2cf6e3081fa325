"""Arguments: a dataclass a recipe, read from a strict YAML file and the command line.

A YAML line is a flag: `learning_rate: 1e-3` in the file named by `--config` means `--learning_rate 1e-3`, goes through
the same parser and is overridden by the command line. A name that does not exist is refused in both places, with the
nearest one that does.

The fields below are the ones a run is usually set up with, under the names of transformers and TRL. Every other field of
transformers' `TrainingArguments` is accepted as well; those are looked up only when one is used, because transformers
takes seconds to import and `--help` should not.
"""

from __future__ import annotations

import argparse
import json
import sys
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar, Union

import yaml

from tuner.errors import ArgumentError, nearest

if TYPE_CHECKING:
    from transformers import TrainingArguments

T = TypeVar("T", bound="RecipeArguments")


def flag(default: Any, help: str) -> Any:
    """A field with a default and a help text."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class ModelArguments:
    """Which model, and which tokenizer."""

    model_name_or_path: str | None = flag(None, "Model to continue from: a folder, a Hub id or builtin:<name>. Without it, a new one.")
    preset: Literal["tiny", "small", "base"] = flag("tiny", "Size of a new model: tiny (5 M parameters), small (30 M) or base (125 M).")
    dropout: float = flag(0.0, "Dropout of a new model, on the residual branches and the attention weights.")
    own_model: bool = flag(False, "Load a Llama checkpoint into our own decoder instead of transformers' class.")
    model_revision: str = flag("main", "Branch, tag or commit on the Hub.")
    trust_remote_code: bool = flag(False, "Allow code that comes with a model on the Hub.")
    attn_implementation: str | None = flag(None, "Attention kernel: eager, sdpa, flash_attention_2 or flex_attention.")
    tokenizer_name_or_path: str | None = flag(None, "Tokenizer to load. Without it: the model's, or a new one trained on the data.")
    vocab_size: int | None = flag(None, "Size of a tokenizer that is trained here. Without it, the preset's.")
    chat_template_path: str | None = flag(None, "Chat template: 'chatml', a Jinja file, or a folder with a tokenizer.")


@dataclass
class DataArguments:
    """Which rows, and how they become sequences."""

    dataset_name: str = flag("builtin:chitchat", "A Hub id, a local file or folder (jsonl, json, csv, parquet, txt), or builtin:<name>.")
    dataset_config: str | None = flag(None, "Configuration of a Hub dataset.")
    dataset_train_split: str = flag("train", "Split to train on.")
    dataset_test_split: str = flag("test", "Split to validate on; where there is none, rows are set aside.")
    test_split_size: float = flag(0.05, "Rows set aside for validation: a share below 1, or a number of rows.")
    dataset_num_proc: int | None = flag(None, "Processes that tokenize.")
    max_length: int = flag(1024, "Longest sequence, in tokens; with packing, the size of a block.")
    packing: bool = flag(True, "Pack whole conversations into blocks, none seeing another; otherwise pad.")
    truncation_mode: Literal["split", "keep_start", "error"] = flag(
        "split", "Rows longer than max_length: split between turns, cut after max_length tokens, or refused."
    )
    max_labels_lost: float = flag(0.05, "Largest share of supervised tokens that cutting may lose before the run is refused.")


@dataclass
class RunArguments:
    """How to train. Names and meanings are those of transformers' `TrainingArguments`; defaults are ours."""

    output_dir: str = flag("runs/run", "Folder for checkpoints, the model and the report.")
    overwrite_output_dir: bool = flag(False, "Discard the run that output_dir holds.")
    resume_from_checkpoint: str = flag(
        "false", "true: continue from the last whole checkpoint in output_dir, or start when there is none; or a checkpoint."
    )
    dry_run: bool = flag(False, "Show what the run would do, and stop before training.")
    num_train_epochs: float = flag(1.0, "Passes over the training data.")
    max_steps: int = flag(-1, "Optimizer steps; overrides num_train_epochs when positive.")
    per_device_train_batch_size: int = flag(8, "Sequences a device computes at once in training.")
    per_device_eval_batch_size: int = flag(8, "Sequences a device computes at once in evaluation.")
    gradient_accumulation_steps: int = flag(1, "Batches that make one optimizer step.")
    learning_rate: float = flag(2e-5, "Peak learning rate.")
    lr_scheduler_type: str = flag("cosine", "Schedule of the learning rate: linear, cosine, constant_with_warmup, ...")
    warmup_steps: float = flag(0.03, "Steps of linear warm-up; below 1, a share of all steps.")
    weight_decay: float = flag(0.0, "AdamW's weight decay, not applied to norms and biases.")
    max_grad_norm: float = flag(1.0, "Gradients are clipped to this global norm; 0 for none.")
    optim: str = flag("adamw_torch_fused", "Optimizer.")
    bf16: bool | None = flag(None, "Mixed precision in bfloat16. Without it: on wherever the hardware is fast in it.")
    activation_checkpointing: bool = flag(False, "Recompute activations in the backward pass: less memory, a quarter slower.")
    torch_compile: bool = flag(False, "Compile the model: a minute at the start, faster steps after it.")
    train_sampling_strategy: Literal["random", "group_by_length", "sequential"] = flag(
        "random", "Order of the training sequences; group_by_length wastes less on padding."
    )
    logging_steps: float = flag(10, "Steps between two lines of the log.")
    eval_strategy: Literal["no", "steps", "epoch"] = flag("epoch", "When to evaluate on the validation rows.")
    eval_steps: float | None = flag(None, "Steps between two evaluations.")
    eval_on_start: bool = flag(True, "Evaluate before the first step too, to have something to compare with.")
    save_strategy: Literal["no", "steps", "epoch"] = flag("steps", "When to save a checkpoint.")
    save_steps: float = flag(200, "Steps between two checkpoints.")
    save_total_limit: int | None = flag(2, "Checkpoints to keep.")
    seed: int = flag(42, "Seed of initialisation, data order and dropout.")
    use_cpu: bool = flag(False, "Do not use an accelerator.")
    report_to: list[str] = flag(["none"], "Trackers: tensorboard, trackio, or any that transformers knows; none.")
    push_to_hub: bool = flag(False, "Push the model to the Hub.")
    hub_model_id: str | None = flag(None, "Repository to push to; without it, the name of output_dir.")


@dataclass
class RecipeArguments(RunArguments, DataArguments, ModelArguments):
    """What every recipe understands. A recipe subclasses it and adds or redefines what is its own."""

    def __post_init__(self) -> None:
        self.extra: dict[str, Any] = {}

    def values(self) -> dict[str, Any]:
        """Every resolved argument by name, those passed on to transformers included."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | self.extra

    def to_training_arguments(self, **overrides: Any) -> TrainingArguments:
        """transformers' own arguments object.

        Raises:
            ArgumentError: a combination that transformers refuses.
        """
        from transformers import TrainingArguments

        known = {f.name for f in fields(TrainingArguments) if f.init}
        chosen = {name: value for name, value in self.values().items() if name in known} | overrides
        try:
            return TrainingArguments(**chosen)
        except (ValueError, ImportError, TypeError) as error:
            raise ArgumentError(" ".join(str(error).split())) from error


def parse_arguments(kind: type[T], argv: Sequence[str] | None = None) -> T:
    """Read `kind` from the command line (and the YAML file that `--config` names).

    Raises:
        ArgumentError: an unknown name, a value of the wrong type, or an unreadable file.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _parser(kind)
    first = parser.parse_known_args(argv)[0]
    if getattr(first, "config", None):
        argv = _read_yaml(Path(first.config)) + argv
    namespace, rest = parser.parse_known_args(argv)
    values = vars(namespace)
    values.pop("config", None)
    arguments = kind(**values)
    if rest:
        arguments.extra = _transformers_arguments(rest, {f.name for f in fields(kind)})
    return arguments


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ArgumentError(message.removeprefix("argument "))


def _parser(kind: type[T]) -> _Parser:
    main = sys.modules.get("__main__")
    parser = _Parser(
        description=getattr(main, "__doc__", None) or kind.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Every other field of transformers.TrainingArguments is accepted as a flag too.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file of flags; the command line overrides it.")
    hints = typing.get_type_hints(kind)
    groups = {}
    for item in fields(kind):
        owner = next(base for base in reversed(kind.__mro__) if item.name in getattr(base, "__annotations__", {}))
        if owner not in groups:
            groups[owner] = parser.add_argument_group((owner.__doc__ or owner.__name__).split("\n")[0].rstrip("."))
        groups[owner].add_argument(f"--{item.name}", **_options(item, hints[item.name]))
    return parser


def _options(item: Field[Any], hint: Any) -> dict[str, Any]:
    """What argparse needs to know of a field."""
    default = item.default if item.default is not MISSING else item.default_factory()  # type: ignore[misc]
    shown = " ".join(map(str, default)) if isinstance(default, list) else str(default).lower() if default in (True, False) else default
    text = item.metadata.get("help", "").replace("%", "%%")
    options: dict[str, Any] = {"help": text if default is None else f"{text} (default: {shown})"}
    if typing.get_origin(hint) in (Union, types.UnionType):
        hint = next(h for h in typing.get_args(hint) if h is not type(None))
    if typing.get_origin(hint) is Literal:
        return options | {"choices": typing.get_args(hint)}
    if typing.get_origin(hint) is list:
        return options | {"nargs": "+", "type": typing.get_args(hint)[0], "metavar": "NAME"}
    if hint is bool:
        return options | {"type": _boolean, "nargs": "?", "const": True, "metavar": "BOOL"}
    return options | {"type": hint, "metavar": {int: "INT", float: "FLOAT"}.get(hint, "TEXT")}


def _boolean(text: str) -> bool:
    values = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"expected true or false, not {text!r}")
    return values[text.lower()]


def _read_yaml(path: Path) -> list[str]:
    """A YAML file as the flags it stands for."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except OSError as error:
        raise ArgumentError(f"--config {path}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ArgumentError(f"--config {path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ArgumentError(f"--config {path}: expected 'name: value' lines, found {type(content).__name__}.")
    arguments: list[str] = []
    for name, value in content.items():
        if name == "config":
            raise ArgumentError(f"--config {path}: a file cannot name another with 'config'.")
        if value is not None:
            items = value if isinstance(value, list) else [value]
            arguments += [f"--{name}", *(_as_text(item) for item in items)]
    return arguments


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, dict) else str(value)


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML allows a key twice and keeps the last one; a run should not depend on which."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is there twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _transformers_arguments(rest: list[str], known: set[str]) -> dict[str, Any]:
    """Flags that are not ours, read as fields of transformers' `TrainingArguments`."""
    from transformers import HfArgumentParser, TrainingArguments

    theirs = {f.name for f in fields(TrainingArguments) if f.init}
    for token in rest:
        name = token.removeprefix("--").split("=")[0]
        if not token.startswith("--"):
            if token == rest[0]:
                raise ArgumentError(f"unexpected {token!r}: a flag begins with --.")
        elif name not in theirs:
            raise ArgumentError(f"unknown flag or key {name!r}.{nearest(name, known | theirs)}")
    parser = HfArgumentParser(TrainingArguments, allow_abbrev=False)  # type: ignore[arg-type]
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    parser.error = _Parser.error.__get__(parser)  # type: ignore[method-assign]
    return vars(parser.parse_args(rest))
