"""The steps of `recipes/ppo.py` that other recipes do not have: prompts, rewards, the value model, the plan."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

from accelerate import PartialState
from datasets import Dataset, Features, Json, Value, concatenate_datasets
from rich.console import Console
from rich.markup import escape
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tuner.config.adapters import FROM_WEIGHTS
from tuner.config.ppo import PPOArguments
from tuner.data.cache_key import map_batches
from tuner.data.mixture import data_sources, names_of
from tuner.data.questions import INPUTS, is_passages
from tuner.data.sources import SOURCE_ROW, load_splits
from tuner.data.unused import sentence
from tuner.errors import ArgumentError, DataError, ModelError
from tuner.estimate.model import parameters_by_component
from tuner.loading.generation import room
from tuner.loading.models import prepare_model
from tuner.loading.reward import RewardModel
from tuner.objectives.base import Objective
from tuner.rl.prompts import BESIDE, encode_prompts, prompt_column, read_prompts
from tuner.rl.rewards import load_function, names_function
from tuner.rl.trl_ppo import PPOConfig
from tuner.train.plan import table
from tuner.train.run import Run, say

# Prompts that the dry run shows.
SHOWN = 2
# How the names begin of transformers' arguments that mean something here, beside those that every recipe lists.
HONOURED = (
    *("adam_", "optim_args", "lr_scheduler_kwargs", "activation_checkpointing_kwargs", "log", "disable_tqdm"),
    *("hub_", "run_name", "restore_callback", "project", "trackio_", "ddp_", "local_rank", "fp16", "deepspeed", "fsdp"),
)


class PPO(Objective[PPOArguments]):
    """What PPO asks of a model and its tokenizer. It has no loss of examples: it makes its own."""

    arguments, training = PPOArguments, PPOConfig
    name = "ppo"
    refused = ("packing", "padding_free", "skip_spikes", "torch_compile", "early_stopping_patience")

    @classmethod
    def check(cls, args: Any, processes: int) -> None:
        """Also an ArgumentError for what the training loop of transformers would do, and nothing here does."""
        super().check(args, processes)
        unset = {field.name: field.default for field in fields(args)}
        unread = ("max_length", "truncation_mode", "max_labels_lost", "train_sampling_strategy")
        for flag in (*unread, "per_device_eval_batch_size", "frozen_states_gib"):
            if args.values()[flag] != unset[flag]:
                raise ArgumentError(f"--{flag} has no meaning for ppo.")
        for flag in args.extra:
            if not flag.startswith(HONOURED):
                raise ArgumentError(f"--{flag} has no meaning for ppo.")


@dataclass
class Prompts:
    """Prompts of both splits, with the data set's own columns."""

    train: Dataset
    eval: Dataset
    cleaning: None = None

    def texts(self) -> Iterator[str]:
        """Every training prompt."""
        return _texts(self.train)

    def held_out_texts(self) -> Iterator[str]:
        """Every validation prompt."""
        return _texts(self.eval)


def _texts(rows: Dataset) -> Iterator[str]:
    if "text" in rows.column_names and "prompt" not in rows.column_names:
        return iter(rows["text"])
    return (turn["content"] for turn in chain.from_iterable(rows["prompt"]))


def load_prompts(run: Run[PPOArguments]) -> Prompts:
    """Load `--dataset_name` as prompts. Raises a `DataError` where a row has none."""
    args = run.args
    with PartialState().main_process_first():
        splits = (args.dataset_train_split, args.dataset_test_split)
        if args.dataset_weights:
            raise ArgumentError("--dataset_weights: ppo reads all prompts alike. Leave it out.")
        parts, kinds, used = [], {}, set[str]()
        for source in data_sources(args):
            given = (source.name, source.config, *splits, args.test_split_size)
            both = load_splits(*given, column_mapping=source.column_mapping)
            if "input_ids" in both[0].column_names:
                raise DataError(f"{source.name}: its column 'input_ids' would be taken for tokens. Drop it.")
            if prompt_column(both[0]) == "query":
                say(f"{source.name}: 'query' is continued as raw text; --column_mapping query=prompt asks it.")
            (train, unused), (held_out, _) = (read_prompts(_with_answers(rows), source.name) for rows in both)
            parts.append((train, held_out))
            if prompt_column(both[0]) == "instruction":
                used.update(name for name in INPUTS if not is_passages(name, both[0][0].get(name)))
            say(sentence(unused, source.name))
            kinds[source.name] = "messages" if "prompt" in parts[-1][0].column_names else "texts"
        if len(set(kinds.values())) > 1:
            found = ", ".join(f"{name}: {kind}" for name, kind in kinds.items())
            raise ArgumentError(f"--dataset_name: prompts are texts or messages, one kind at a time ({found}).")
        train, held_out = (_one_of(list(split)) for split in zip(*parts, strict=True))
    own = "prompt" if "prompt" in train.column_names else "text"
    others = [name for name in train.column_names if name not in (own, SOURCE_ROW)]
    if not args.reward_funcs:
        others = [name for name in others if name not in (*BESIDE, *used)]
    if others and (args.reward_funcs or (args.judge and names_function(args.judge))):
        say(f"Reward functions are given the columns {', '.join(others)}.")
    elif others:
        say(f"Not used, for there is no reward function, are the columns {', '.join(others)}.")
    return Prompts(train, held_out)


def _with_answers(rows: Dataset) -> Dataset:
    """Rows with the column `answer` of those that have it in `reward_model`, as verl's."""
    if "reward_model" not in rows.column_names or "answer" in rows.column_names:
        return rows
    found = [about.get("ground_truth") if isinstance(about, dict) else None for about in rows["reward_model"]]
    answers = [each if isinstance(each, str | None) else json.dumps(each) for each in found]
    return rows.add_column("answer", answers) if any(answer is not None for answer in answers) else rows


def _one_of(parts: list[Dataset]) -> Dataset:
    """Prompts of several data sets as one. Where they have columns of other types, values are what JSON makes of them:
    a column is then one like any other."""
    if any(part.features != parts[0].features for part in parts):
        kinds = [Features({c: Value("int64") if c == SOURCE_ROW else Json() for c in p.column_names}) for p in parts]
        how = {"desc": "Joining data sets"}
        parts = [map_batches(p, dict, [__file__], {}, features=f, **how) for p, f in zip(parts, kinds, strict=True)]
    return concatenate_datasets(parts)


@dataclass
class Scorers:
    """What scores completions: reward models and functions in the order of `--reward_weights`, the judge; and the value
    model."""

    rewards: list[Any]
    judge: Any = None
    value_model: PreTrainedModel | None = None


def load_scorers(run: Run[PPOArguments], tokenizer: PreTrainedTokenizerBase) -> Scorers:
    """The rewards, the judge and the value model that the flags name; `tokenizer` is the policy's.

    Raises:
        ModelError: a model that cannot be read, or gives no single score; a value model with tokens of its own.
        ArgumentError: there is no such function.
    """
    args = run.args
    rewards = [_judge(run, name) for name in args.reward_model_path] + list(map(load_function, args.reward_funcs))
    judge, value = None, None
    if args.judge is not None:
        judge = load_function(args.judge) if names_function(args.judge) else _judge(run, args.judge)
    if args.value == "separate":
        critic, theirs = _judge(run, args.value_model_path or args.reward_model_path[0]), tokenizer.get_vocab()
        if not theirs.items() <= critic.tokenizer.get_vocab().items():
            raise ModelError("--value separate: the value model has other tokens than the policy, which it reads.")
        value = prepare_model(args, critic.models[0].requires_grad_(True))
    return Scorers(rewards, judge, value)


def _judge(run: Run[PPOArguments], name: str) -> RewardModel:
    size, trusted = run.args.local_rollout_forward_batch_size, run.args.trust_remote_code
    return RewardModel.load(name, run.training.device, size, trust_remote_code=trusted)


def show_prompts_plan(
    run: Run[PPOArguments], prompts: Prompts, tokenizer: PreTrainedTokenizerBase, model: Any, scorers: Scorers
) -> None:
    """Print what a run would do: arguments, prompts, models, updates. Trains nothing and writes nothing."""
    args, console = run.args, Console(highlight=False)
    shown = {**args.shown(), "bf16": run.training.bf16, "use_cpu": run.training.use_cpu}
    shown["continues from"] = run.checkpoint or "nothing: starts at update 0"
    arguments = [(name, escape(str(value))) for name, value in shown.items() if value not in (None, [])]
    console.print(table("Resolved arguments", ("flag", "value"), arguments))
    most = room(model.get_base_model() if args.use_peft else model, args.response_length)
    rows = []
    for name, split in (("train", prompts.train), ("eval", prompts.eval)):
        encoded, left_out = encode_prompts(split, tokenizer, most, args.max_prompt_length, names_of(args))
        lengths = sorted(map(len, encoded["input_ids"]))
        rows.append((name, f"{len(encoded):,}", f"{left_out:,}", f"{lengths[len(lengths) // 2]:,}", f"{lengths[-1]:,}"))
        if name == "train":
            count = len(encoded)
            first = [encoded[number]["input_ids"] for number in range(min(SHOWN, len(encoded)))]
    console.print(table("Prompts", ("", "number", "left out", "median tokens", "longest"), rows))
    for number, ids in enumerate(first):
        console.print(f"\n[bold]Prompt {number}[/], as the model reads it:\n{escape(tokenizer.decode(ids))}")
    size = args.per_device_train_batch_size * args.gradient_accumulation_steps * run.training.world_size
    episodes = args.total_episodes or math.ceil(args.num_train_epochs * count * (args.num_generations or 1))
    updates = args.max_steps if args.max_steps > 0 else -(-episodes // size)
    console.print(
        f"\n{updates:,} updates of {size:,} completions of up to {args.response_length:,} tokens; "
        f"{args.num_ppo_epochs * args.num_mini_batches:,} optimizer steps each, advantages by {args.advantage}."
    )
    parts = {"policy": model, "value model": scorers.value_model}
    for number, reward in enumerate(scorers.rewards):
        if isinstance(reward, RewardModel):
            parts |= {f"reward model {number}.{member}": model for member, model in enumerate(reward.models)}
    sizes = [
        (name, f"{sum(parameters_by_component(part).values()):,}") for name, part in parts.items() if part is not None
    ]
    if not args.use_peft or args.init_lora_weights.startswith(FROM_WEIGHTS):
        sizes.insert(1, ("reference (a copy of the policy)", sizes[0][1]))
    console.print(table("Models in memory", ("", "parameters"), sizes))
    console.print("Dry run: nothing was trained and nothing was written.", style="bold")
