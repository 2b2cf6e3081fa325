"""Scores of completions: by functions, by models, or by a weighted mixture of them.

A function has TRL's signature: `reward(prompts, completions, completion_ids, **columns) -> list[float | None]`, where
`columns` are the data set's own. Of prompts that are conversations, a completion is a list of one message. None means
that the function has nothing to say of a completion; nothing else may be missing, infinite or too many.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tuner.data.collate import alike
from tuner.data.sources import SOURCE_ROW
from tuner.data.tools import tools_of
from tuner.errors import ArgumentError, DataError, ModelError, one_line
from tuner.loading.reward import RewardModel
from tuner.rl.actor import score_head
from tuner.rl.verify import last_number

Function = Callable[..., Any]
# Parameters that take whatever there is, those that every function may have, and columns that none is given.
OPEN = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
PASSED = ("prompts", "completions", "completion_ids")
TOLD = ("prompt", "input_ids", SOURCE_ROW)


def told(columns: Collection[str]) -> tuple[str, ...]:
    """Columns that functions are not given: they have the prompt otherwise."""
    return TOLD if "prompt" in columns else (*TOLD, "text")


class Rewards:
    """A weighted sum of rewards.

    Args:
        rewards: functions, `RewardModel`s, and models with one output for a sequence.
        weights: of each; 1 where None.
        tokenizers: of each model its own; None for the policy's, whose tokens the model then reads as they are.
        batch_size: completions that a model reads at once.

    Attributes:
        names: of each reward, as logs show it.
    """

    def __init__(
        self,
        rewards: Sequence[Function | RewardModel | PreTrainedModel],
        weights: Sequence[float] | None,
        tokenizers: Sequence[PreTrainedTokenizerBase | None],
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
    ):
        if not rewards:
            raise ArgumentError("There is no reward: give a model (--reward_model_path) or functions (--reward_funcs).")
        if len(tokenizers) != len(rewards):
            raise ArgumentError(f"reward_processing_classes: {len(tokenizers)} tokenizers for {len(rewards)} rewards.")
        if weights is not None and len(weights) != len(rewards):
            raise ArgumentError(f"--reward_weights: {len(weights)} weights for {len(rewards)} rewards.")
        # A model with an adapter is read through its wrapper.
        self.rewards = [getattr(reward, "get_base_model", lambda reward=reward: reward)() for reward in rewards]
        for reward, own in zip(self.rewards, tokenizers, strict=True):
            known = reward.get_input_embeddings().num_embeddings if isinstance(reward, PreTrainedModel) else math.inf
            if known < len(own or tokenizer):
                raise ModelError(
                    f"{type(reward).__name__}'s vocabulary is smaller than that of the tokenizer whose tokens it is to "
                    "read: pass its own in reward_processing_classes."
                )
        self.weights = list(weights or [1.0] * len(rewards))
        self.tokenizers, self.tokenizer, self.batch_size = list(tokenizers), tokenizer, batch_size
        self.names = [_name(reward) for reward in rewards]
        for number, name in enumerate(self.names):
            if name in self.names[:number]:
                self.names[number] = f"{name}_{number}"

    def __call__(
        self, rows: Sequence[dict[str, Any]], prompts: Sequence[list[int]], completions: Sequence[list[int]]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The weighted sum of each completion `(n,)` float32, and by name each reward's, NaN where it said nothing.

        Args:
            rows: the data set's, with `prompt` as text or messages where there is one.
            prompts, completions: tokens.

        Raises:
            DataError: a function raised, or returned something else than a number or None for each completion; or
                nothing was said of a completion.
        """
        texts = [self.tokenizer.decode(c, skip_special_tokens=True) for c in completions]
        asked: list[Any] = [row.get("prompt", row.get("text")) for row in rows]
        if any(prompt is None for prompt in asked):
            asked = [self.tokenizer.decode(prompt, skip_special_tokens=True) for prompt in prompts]
        chat = [isinstance(prompt, list) for prompt in asked]
        said = [[{"role": "assistant", "content": t}] if is_chat else t for t, is_chat in zip(texts, chat, strict=True)]
        tools = [tools_of(row) if is_chat else None for row, is_chat in zip(rows, chat, strict=True)]
        found: dict[str, torch.Tensor] = {}
        for name, reward, tokenizer in zip(self.names, self.rewards, self.tokenizers, strict=True):
            if isinstance(reward, RewardModel):
                found[name] = reward.score(asked, texts, tools)
            elif isinstance(reward, PreTrainedModel):
                if tokenizer is None:
                    sequences = [[*p, *c] for p, c in zip(prompts, completions, strict=True)]
                else:
                    sequences = [_tokens(tokenizer, *each) for each in zip(asked, texts, tools, strict=True)]
                found[name] = score_sequences(reward, sequences, self.batch_size)
            else:
                columns = {key: [row[key] for row in rows] for key in rows[0] if key not in told(rows[0])}
                found[name] = _called(name, reward, asked, said, completions, columns)
            if isinstance(reward, RewardModel | PreTrainedModel) and not found[name].isfinite().all():
                raise DataError(f"The reward model {name} gave a score that is NaN or infinite.")
        each = torch.stack(list(found.values()))
        silent = each.isnan().all(dim=0)
        if silent.any():
            raise DataError(
                f"No reward said anything of completion {int(silent.nonzero()[0])} ({texts[int(silent.nonzero()[0])]!r}"
                "): one of the functions must return a number for each."
            )
        weights = torch.tensor(self.weights)[:, None]
        return (each.nan_to_num() * weights).sum(dim=0), found

    def check(self, rows: Dataset) -> None:
        """A DataError where a function needs a column that rows lack, or `last_number` an answer that is none."""
        columns = [name for name in rows.column_names if name not in told(rows.column_names)]
        for name, reward in zip(self.names, self.rewards, strict=True):
            if isinstance(reward, RewardModel | PreTrainedModel):
                continue
            for parameter in inspect.signature(reward).parameters.values():
                needed = parameter.default is parameter.empty and parameter.kind not in OPEN
                if needed and parameter.name not in (*PASSED, *columns):
                    raise DataError(
                        f"The reward function {name} needs the column {parameter.name!r}; the prompts have "
                        f"{', '.join(columns)}. --column_mapping names columns."
                    )
            if reward is last_number:
                try:
                    last_number([""] * len(rows), rows["answer"])
                except ValueError as error:
                    raise DataError(f"The reward function {name}: {error}.") from error


def _called(
    name: str, function: Function, prompts: list[Any], said: list[Any], completions: Sequence[list[int]], columns: Any
) -> torch.Tensor:
    # A column that has one of these names does not take their place.
    given = {**columns, "prompts": prompts, "completions": said, "completion_ids": list(completions)}
    parameters = inspect.signature(function).parameters.values()
    if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
        given = {key: value for key, value in given.items() if key in [p.name for p in parameters]}
    try:
        values = function(**given)
    except Exception as error:  # whatever a user's function raises
        trace, where = error.__traceback__, ""
        while trace is not None:
            where = f" ({Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno})"
            trace = trace.tb_next
        raise DataError(
            f"The reward function {name} raised {type(error).__name__}: {one_line(error)}{where}"
        ) from error
    try:
        values = list(values)  # a generator gives them once
        found = [math.nan if value is None else float(value) for value in values]
    except (TypeError, ValueError) as error:
        raise DataError(f"The reward function {name} must return a list of numbers or None, not {values!r}.") from error
    if len(found) != len(said):
        raise DataError(f"The reward function {name} returned {len(found)} rewards for {len(said)} completions.")
    for number, (value, is_number) in enumerate(zip(found, (v is not None for v in values), strict=True)):
        if is_number and not math.isfinite(value):
            raise DataError(f"The reward function {name} returned {value} for completion {number} ({said[number]!r}).")
    return torch.tensor(found)


def _tokens(tokenizer: PreTrainedTokenizerBase, prompt: Any, text: str, tools: list[Any] | None) -> list[int]:
    """A prompt and its completion as a reward model with a tokenizer of its own reads them."""
    if isinstance(prompt, list):
        whole = [*prompt, {"role": "assistant", "content": text}]
        return list(tokenizer.apply_chat_template(whole, tools=tools, tokenize=True, return_dict=True)["input_ids"])
    return list(tokenizer(prompt + text)["input_ids"])


@torch.no_grad()
def score_sequences(model: PreTrainedModel, sequences: Sequence[list[int]], batch_size: int) -> torch.Tensor:
    """The score of each sequence, `(n,)` float32 on the CPU: a decoder's is read from its last token, an encoder gives
    its own. Sequences of like length go together; where a sequence ends is known, whatever token pads it."""
    scores, head = torch.zeros(len(sequences)), score_head(model)
    was_training, body = model.training, getattr(model, model.base_model_prefix)
    model.eval()
    decoder = _scores_tokens(model, head, sequences[0][:1])
    for rows in alike([len(ids) for ids in sequences], batch_size, model.device):
        ids = pad_sequence([torch.tensor(sequences[row]) for row in rows], batch_first=True)
        lengths = torch.tensor([len(sequences[row]) for row in rows])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        inputs = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
        if decoder:
            hidden = body(**inputs)[0]
            found = head(hidden[torch.arange(len(rows)), (lengths - 1).to(hidden.device)])
        else:
            found = model(**inputs).logits
        scores[rows] = found.squeeze(-1).float().cpu()
    model.train(was_training)
    return scores


def _scores_tokens(model: PreTrainedModel, head: torch.nn.Module, token: list[int]) -> bool:
    """Whether the head is asked about each token, of which one is taken: else the model has a summary of its own."""
    seen: list[int] = []
    hook = head.register_forward_pre_hook(lambda _, given: seen.append(given[0].dim()))
    try:
        model(input_ids=torch.tensor([token], device=model.device))
    finally:
        hook.remove()
    return bool(seen) and seen[-1] == 3


def load_function(name: str) -> Function:
    """A reward function by where it is: `folder/file.py:function`, or `package.module.function`.

    Raises:
        ArgumentError: there is no such file, module or function.
    """
    place, _, attribute = name.rpartition(":") if ":" in name else name.rpartition(".")
    try:
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(place).stem, Path(place).expanduser())
            if spec is None or spec.loader is None or not Path(place).expanduser().is_file():
                raise ImportError(f"there is no file {place}")
            module = importlib.util.module_from_spec(spec)
            sys.modules.setdefault(spec.name, module)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
        function = getattr(module, attribute)
    except Exception as error:  # whatever a user's file raises when it is read
        what = f"{type(error).__name__}: {one_line(error)}"
        raise ArgumentError(f"--reward_funcs {name}: not file.py:function or module.function ({what}).") from error
    if not callable(function):
        raise ArgumentError(f"--reward_funcs {name}: it is a {type(function).__name__}, not a function.")
    return function


def names_function(name: str) -> bool:
    """Whether it is a function's name, as `load_function` takes it, and not a model's."""
    dotted = "." in name and all(part.isidentifier() for part in name.split("."))
    return ".py:" in name or (dotted and not Path(name).exists())


def _name(reward: Any) -> str:
    model = reward.models[0] if isinstance(reward, RewardModel) else reward
    path = getattr(getattr(model, "config", None), "_name_or_path", None)
    return Path(path).name if path else getattr(reward, "__name__", type(reward).__name__)
