"""Texts that a model writes for many prompts, causal or encoder-decoder.

Prompts go in batches, the longest first: a batch pads little, and what does not fit in memory fails at once. What a
prompt gets does not depend on the others but for rounding, and when it is sampled on those of its batch, whose random
numbers are its own: whoever goes on after a crash gets the same texts.
"""

from __future__ import annotations

import sys
from collections.abc import Container, Iterator, Mapping, Sequence
from itertools import groupby, islice
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tuner.data.draws import generator
from tuner.errors import DataError
from tuner.hardware import many_shapes

Prompt = Mapping[str, Any] | Sequence[int] | np.ndarray


def generate_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    batch_size: int = 8,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    done: Container[int] = (),
) -> Iterator[tuple[int, str]]:
    """What `model` writes after each prompt, without special tokens, up to its first end token or `max_new_tokens`;
    fewer where its positions end before.

    Args:
        model: bare or in a PEFT wrapper; its `generation_config` says which tokens end a text.
        prompts: each with `input_ids` `(1, time)`, or the ids themselves. Of an encoder-decoder they are the source.
        temperature: 0 is greedy.
        seed: that and a batch's first number seed the batch.
        done: numbers of prompts whose texts are known and not asked for. The others get what they would have got.

    Yields:
        A prompt's number and its text, by batches, those of the longest prompts first.

    Raises:
        DataError: a prompt without tokens, or longer than the model can read; before anything is generated.
    """
    lengths = [len(_ids(prompt)) for prompt in prompts]
    for number, length in enumerate(lengths):
        if not length or room(model, length) < 1:
            raise DataError(f"prompt {number} {'is empty' if not length else f'is too long: {length:,} tokens'}.")
    how = sampling(temperature, top_p, top_k)
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    # A row that may write less than another gets another batch: none is cut for its neighbours' sake.
    for most, group in groupby(order, lambda number: min(max_new_tokens, room(model, lengths[number]))):
        while batch := list(islice(group, batch_size)):
            if any(number not in done for number in batch):
                with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
                    torch.manual_seed(int(generator(seed, batch[0]).integers(2**63)))
                    texts = _write(model, tokenizer, [_ids(prompts[number]) for number in batch], most, how)
                yield from ((number, text) for number, text in zip(batch, texts, strict=True) if number not in done)


def room(model: PreTrainedModel, length: int) -> int:
    """How many tokens a model can write after a prompt of `length` tokens; below 1 where it cannot even read that."""
    config = model.config
    if not config.is_encoder_decoder:
        return _positions(config.get_text_config()) - length
    reads = length <= _positions(getattr(config, "encoder", config))
    return _positions(getattr(config, "decoder", config)) if reads else 0


def sampling(temperature: float, top_p: float, top_k: int) -> dict[str, Any]:
    """The arguments of `generate` that say how a token is chosen; a temperature of 0 is greedy."""
    if not temperature:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": top_k}


def _positions(config: Any) -> int:
    return getattr(config, "max_position_embeddings", None) or sys.maxsize


def _ids(prompt: Prompt) -> Any:
    return prompt["input_ids"][0] if isinstance(prompt, Mapping) else prompt


@many_shapes()
def _write(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[Any], most: int, how: dict[str, Any]
) -> list[str]:
    time, pairs = max(map(len, prompts)), model.config.is_encoder_decoder
    ids = torch.full((len(prompts), time), tokenizer.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        # A causal model goes on at the right end. An encoder's learnt positions count from the left one.
        place = slice(0, len(prompt)) if pairs else slice(time - len(prompt), time)
        ids[row, place], mask[row, place] = torch.as_tensor(prompt), 1
    training = model.training
    model.eval()
    try:
        output = model.generate(
            input_ids=ids.to(model.device), attention_mask=mask.to(model.device), max_new_tokens=most,
            pad_token_id=tokenizer.pad_token_id, use_cache=True, **how,
        )  # fmt: skip
    finally:
        model.train(training)
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    written = output[:, 1 if pairs else time :].tolist()  # an encoder-decoder's begins with its start token
    cut = [next((place for place, token in enumerate(row) if token in ends), most) for row in written]
    return [tokenizer.decode(row[:end], skip_special_tokens=True) for row, end in zip(written, cut, strict=True)]
