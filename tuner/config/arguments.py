"""Arguments: a dataclass a recipe. `tuner/config/flags.py` reads it from a YAML file and the command line.

The fields below are the ones a run is usually set up with, under the names of transformers and TRL. Every other field
of transformers' `TrainingArguments` is accepted as well and kept in `extra`.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from tuner.config.flags import read_flags
from tuner.errors import ArgumentError, one_line

if TYPE_CHECKING:
    from transformers import TrainingArguments

T = TypeVar("T")

# Flags whose value is a password: a run's folder is published, and its log is shown.
SECRET = re.compile(r"^(?!eos_token$)(.*_)?(token|key|secret|password)$")
# Flags that may name a file or a folder, where `~` is the home directory.
PATHS = (
    *("output_dir", "dataset_name", "model_name_or_path", "tokenizer_name_or_path", "chat_template_path"),
    *("model_config", "safety_classifier"),
    *("resume_from_checkpoint", "logging_dir", "deepspeed", "fsdp_config", "accelerator_config"),
)


def flag(default: Any, help: str, least: float = -math.inf, most: float = math.inf) -> Any:
    """A field with a default and a help text; of a number, the least and the most that it may be."""
    kept: dict[str, Any] = {"default_factory": default.copy} if isinstance(default, list) else {"default": default}
    return field(**kept, metadata={"help": help, "bounds": (least, most)})


@dataclass
class ModelArguments:
    """Which model, and which tokenizer."""

    model_name_or_path: str | None = flag(
        None, "Model to continue from: a folder, a Hub id or builtin:<name>. Without it, a new one."
    )
    preset: Literal["tiny", "small", "base"] | None = flag(
        None, "Size of a new model: tiny (5 M parameters, where nothing is said), small (30 M) or base (125 M)."
    )
    model_config: str | None = flag(
        None, "JSON file with the fields of a new model's configuration, instead of a preset's."
    )
    config_overrides: str | None = flag(
        None, "Fields of a new model's configuration over those: hidden_act=relu2,mlp_type=plain,..."
    )
    dropout: float = flag(0.0, "Dropout of a new model, on the residual branches and the attention weights.", least=0)
    dtype: Literal["float32", "bfloat16"] = flag(
        "float32", "Weights in memory; bfloat16 takes half of it, the optimizer keeps the next bits."
    )
    own_model: bool = flag(False, "Train a checkpoint of Llama, Qwen3, GPT-2, ... as our own model, not transformers'.")
    model_revision: str = flag("main", "Branch, tag or commit on the Hub.")
    trust_remote_code: bool = flag(False, "Allow code that comes with a model on the Hub.")
    attn_implementation: str | None = flag(
        None,
        "Attention kernel: eager, sdpa, flash_attention_2, flex_attention, or block_attention, the default on CPUs.",
    )
    tokenizer_name_or_path: str | None = flag(
        None, "Tokenizer to load. Without it: the model's, or a new one trained on the data."
    )
    vocab_size: int | None = flag(None, "Size of a tokenizer that is trained here. Without it, the preset's.")
    chat_template_path: str | None = flag(
        None, "Chat template: 'chatml', 'bert' (encoders), a Jinja file, or a folder with a tokenizer."
    )
    eos_token: str | None = flag(None, "Token that ends an answer, instead of the tokenizer's; may be a new one.")


@dataclass
class DataArguments:
    """Which rows, and how they become sequences."""

    dataset_name: list[str] = flag(
        ["builtin:chitchat"],
        "A Hub id, a file or folder (jsonl, json, csv, txt, parquet), or builtin:<name>; or several of them.",
    )
    dataset_weights: list[float] = flag([], "Shares of several data sets in an epoch. Without it, each row once.")
    dataset_config: str | None = flag(None, "Configuration of a Hub dataset.")
    column_mapping: str | None = flag(
        None, "Columns of other names, as question=prompt,answer=completion: each is read under the second."
    )
    dataset_train_split: str = flag("train", "Split to train on.")
    dataset_test_split: str = flag("test", "Split to validate on; where there is none, rows are set aside.")
    test_split_size: float = flag(0.05, "Rows set aside for validation: a share below 1, or a number of rows.", least=0)
    dataset_num_proc: int | None = flag(None, "Processes that tokenize.", least=1)
    max_length: int = flag(1024, "Longest sequence, in tokens; with packing, the size of a block.", least=2)
    packing: bool | None = flag(
        None, "Pack whole conversations into blocks, none seeing another. Without it: where the model can; else padded."
    )
    padding_free: bool | None = flag(
        None, "Join a batch's sequences instead of padding them. Without it: on where attention is blocked or flash."
    )
    truncation_mode: Literal["split", "keep_start", "error"] = flag(
        "split", "Rows longer than max_length: split between turns, cut after max_length tokens, or refused."
    )
    max_labels_lost: float = flag(
        0.05, "Largest share of supervised tokens that cutting may lose before the run is refused.", least=0, most=1
    )


@dataclass
class RunArguments:
    """How to train. Names and meanings are those of transformers' `TrainingArguments`; defaults are ours."""

    output_dir: str = flag("runs/run", "Folder for checkpoints, the model and the report.")
    overwrite_output_dir: bool = flag(False, "Discard the run that output_dir holds.")
    resume_from_checkpoint: str = flag(
        "false",
        "true: continue from the last whole checkpoint in output_dir, or start when there is none; or a checkpoint.",
    )
    dry_run: bool = flag(False, "Show what the run would do, and stop before training.")
    num_train_epochs: float = flag(1.0, "Passes over the training data.", least=0)
    max_steps: int = flag(-1, "Optimizer steps; overrides num_train_epochs when positive.")
    per_device_train_batch_size: int = flag(8, "Sequences a device computes at once in training.", least=1)
    per_device_eval_batch_size: int = flag(8, "Sequences a device computes at once in evaluation.", least=1)
    gradient_accumulation_steps: int = flag(1, "Batches that make one optimizer step.", least=1)
    learning_rate: float | None = flag(None, "Peak learning rate. Without it: 2e-5, or 1e-3 for a new model.")
    lr_scheduler_type: str = flag("cosine", "Schedule of the learning rate: linear, cosine, constant_with_warmup, ...")
    warmup_steps: float = flag(0.03, "Steps of linear warm-up; below 1, a share of all steps.")
    weight_decay: float = flag(0.0, "AdamW's weight decay, not applied to norms and biases.", least=0)
    max_grad_norm: float = flag(1.0, "Gradients are clipped to this global norm; 0 for none.", least=0)
    optim: str = flag(
        "adamw_torch_fused", "Optimizer: any of transformers, or muon for the blocks' matrices and AdamW for the rest."
    )
    bf16: bool | None = flag(None, "Mixed precision in bfloat16. Without it: on wherever the hardware is fast in it.")
    activation_checkpointing: bool = flag(
        False, "Recompute activations in the backward pass: less memory, a quarter slower."
    )
    fast_ops: bool = flag(True, "false: plain attention, loss and norms, to compare with.")
    torch_compile: bool = flag(False, "Compile the model: a minute at the start, faster steps after it.")
    train_sampling_strategy: Literal["random", "group_by_length", "sequential"] = flag(
        "random", "Order of the training sequences; group_by_length wastes less on padding."
    )
    logging_steps: float = flag(10, "Steps between two lines of the log.", least=0)
    eval_strategy: Literal["no", "steps", "epoch"] = flag("epoch", "When to evaluate on the validation rows.")
    eval_steps: float | None = flag(None, "Steps between two evaluations.", least=0)
    eval_on_start: bool = flag(True, "Evaluate before the first step too, to have something to compare with.")
    early_stopping_patience: int | None = flag(
        None,
        "Stop after so many evaluations without a better one; the best is saved (--metric_for_best_model).",
        least=1,
    )
    save_strategy: Literal["no", "steps", "epoch"] = flag("steps", "When to save a checkpoint.")
    save_steps: float = flag(200, "Steps between two checkpoints.", least=0)
    save_total_limit: int | None = flag(2, "Checkpoints to keep.")
    max_minutes: float | None = flag(None, "Stop after so many minutes, with a checkpoint to resume.", least=0.01)
    skip_spikes: bool = flag(False, "Leave out a step whose gradient norm is 6 sigma above the last 128.")
    seed: int = flag(42, "Seed of initialisation, data order and dropout.", least=0, most=2**32 - 1)
    use_cpu: bool = flag(False, "Do not use an accelerator.")
    report_to: list[str] = flag(["none"], "Trackers: tensorboard, trackio, or any that transformers knows; none.")
    push_to_hub: bool = flag(False, "Push the model to the Hub.")
    hub_model_id: str | None = flag(None, "Repository to push to; without it, the name of output_dir.")


@dataclass
class RecipeArguments(RunArguments, DataArguments, ModelArguments):
    """What every recipe understands. A recipe subclasses it and adds or redefines what is its own."""

    # Every other field of `TrainingArguments` is taken too.
    PASSED_ON: ClassVar[bool] = True
    # Peak learning rates of a pretrained and of a new model.
    RATES: ClassVar[tuple[float, float]] = (2e-5, 1e-3)
    # The recipe's own model, where none is named and no flag of a new one is given.
    MODEL: ClassVar[str | None] = None
    NEW: ClassVar[tuple[str, ...]] = (
        *("preset", "model_config", "config_overrides", "dropout", "vocab_size", "tokenizer_name_or_path"),
    )

    # Names of one thing (a checkpoint and a new model's shape; steps and epochs): one on the command line overrides
    # a file's others.
    INSTEAD: ClassVar[dict[str, tuple[str, ...]]] = {
        "num_train_epochs": ("max_steps",),
        "model_name_or_path": ("preset", "model_config", "config_overrides", "dropout"),
        "preset": ("model_name_or_path", "model_config"),
        "model_config": ("model_name_or_path", "preset"),
    }

    def __post_init__(self) -> None:
        self.extra: dict[str, Any] = {}
        if isinstance(self.dataset_name, str):
            self.dataset_name = [self.dataset_name]
        if self.model_name_or_path is None and not any(getattr(self, name) for name in self.NEW):
            self.model_name_or_path = self.MODEL
        if self.learning_rate is None:
            self.learning_rate = self.RATES[self.model_name_or_path is None]

    def values(self) -> dict[str, Any]:
        """Every resolved argument by name, those passed on to transformers included."""
        found = {f.name: getattr(self, f.name) for f in fields(self)} | self.extra
        if len(self.dataset_name) == 1:
            found["dataset_name"] = self.dataset_name[0]
        return found

    def saved(self) -> dict[str, Any]:
        """As `values`, without secrets: what may be written into a run's folder."""
        return {name: value for name, value in self.values().items() if not SECRET.search(name)}

    def shown(self) -> dict[str, Any]:
        """As `values`, with stars for a secret that is given: what may be printed."""
        return {k: "***" if SECRET.search(k) and v is not None else v for k, v in self.values().items()}

    def to_training_arguments(self, kind: type[TrainingArguments] | None = None, **overrides: Any) -> TrainingArguments:
        """transformers' own arguments object, or a `kind` of it. `--hub_token` goes into HF_TOKEN instead, which is
        asked for as well.

        Raises:
            ArgumentError: a combination that transformers refuses.
        """
        from transformers import TrainingArguments

        from tuner.hardware import device_type

        kind = kind or TrainingArguments
        known = {f.name for f in fields(kind) if f.init}
        chosen = {name: value for name, value in self.values().items() if name in known} | overrides
        if device_type() == "cuda" and chosen.get("dataloader_pin_memory", True) and not chosen.get("use_cpu"):
            # The host does not wait until a batch is on the card.
            chosen.setdefault("accelerator_config", {"non_blocking": True})
        if chosen.get("hub_token"):  # checkpoints hold these arguments, and are published
            os.environ["HF_TOKEN"] = chosen.pop("hub_token")
        if self.optim == "muon":  # a name of ours, for `tuner.optim.split_adamw`
            if self.extra.get("optim_args"):
                raise ArgumentError("--optim muon takes no --optim_args.")
            chosen |= {"optim": "adamw_torch_fused", "optim_args": "muon=true"}
        try:
            return kind(**chosen)
        except (ValueError, ImportError, TypeError, LookupError, AttributeError, OSError) as error:
            raise ArgumentError(self._blamed(one_line(error))) from error

    def _blamed(self, reason: str) -> str:
        """A message of transformers', with the flags that it is likely about where it names none."""
        shown = self.shown()
        if any(f"--{name}" in reason for name in shown):
            return reason
        texts = {name: value for name, value in shown.items() if isinstance(value, str) and value}
        quoted = [name for name, text in texts.items() if re.search(rf"(?<!\w){re.escape(text)}(?!\w)", reason)]
        flags = " ".join(f"--{name} {shown[name]}" for name in quoted or self.extra)
        return f"{flags}: {reason}" if flags else reason


def _expanded(name: str, value: Any) -> Any:
    try:
        return str(Path(value).expanduser()) if isinstance(value, str) and value.startswith("~") else value
    except RuntimeError as error:  # ~nobody
        raise ArgumentError(f"--{name} {value}: {error}") from error


def parse_arguments(kind: type[T], argv: Sequence[str] | None = None) -> T:
    """Read the dataclass `kind` from the command line (and the YAML file that `--config` names).

    Raises:
        ArgumentError: an unknown name, a value of the wrong type or out of bounds, or an unreadable file.
    """
    values = read_flags(kind, list(sys.argv[1:] if argv is None else argv))
    for name, value in values.items():  # a shell expands ~ on its command line, nobody does in YAML
        if name in PATHS:
            values[name] = [_expanded(name, v) for v in value] if isinstance(value, list) else _expanded(name, value)
    arguments = kind(**{f.name: values.pop(f.name) for f in fields(kind) if f.name in values})  # type: ignore[arg-type]
    if isinstance(arguments, RecipeArguments):
        arguments.extra = values
    return arguments
