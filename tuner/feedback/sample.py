"""Completions to compare, sampled from one model or two.

Each goes into the store as it comes, so that nothing is sampled twice. Two that came out the same are no pair: the
second is sampled again, a few times.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from tuner.data.draws import generator
from tuner.errors import DataError, Interrupted
from tuner.feedback.pairs import say_equal
from tuner.feedback.store import Prompt, Store, messages
from tuner.loading.chat_model import ChatModel
from tuner.loading.generation import generate_texts, room

TRIES = 4


def complete(
    store: Store, models: list[str], load: Callable[[str], ChatModel], seed: int, batch_size: int, **how: Any
) -> None:
    """Sample the completions that the store lacks.

    Args:
        models: the names of the model of the first completion and of that of the second.
        load: gives a model by its name; called for what is needed only.
        how: `max_new_tokens`, `top_p` and `top_k`, as in `generate_texts`; `temperature` is the model's.

    Raises:
        DataError: a prompt that the model cannot read.
        Interrupted: Ctrl-C; what is sampled is kept.
    """
    model, loaded = None, ""
    for side, name in enumerate(models):
        for attempt in range(TRIES if side else 1):
            if attempt:
                store.equal(forget=True)
            missing = store.missing(side)
            if not missing:
                break
            if model is None or name != loaded:
                model = None  # two at once may not fit
                model, loaded = load(name), name
            draws = int(generator(seed, side * TRIES + attempt).integers(2**32))
            _sample(store, side, missing, model, seed=draws, batch_size=batch_size, **how)
    say_equal(store.equal())


def _sample(store: Store, side: int, missing: list[tuple[int, Prompt]], model: ChatModel, **how: Any) -> None:
    model.require_template()
    prompts = [model.prompt(messages(prompt)) for _, prompt in missing]
    for (number, _), prompt in zip(missing, prompts, strict=True):
        length = prompt["input_ids"].shape[1]
        if room(model.model, length) < 1:
            raise DataError(f"row {number}: its prompt is {length:,} tokens, as long as the model can read at all.")
    how["temperature"] = model.sampling.get("temperature", 0.0)
    bar = tqdm(total=len(missing), unit="completion", desc=f"Completion {side + 1}")
    try:
        for place, text in generate_texts(model.model, model.tokenizer, prompts, **how):
            store.fill(side, missing[place][0], text.strip())
            bar.update()
    except KeyboardInterrupt:
        left = f"{bar.n:,} of {len(missing):,} completions were added to {store.path}: the same command goes on."
        raise Interrupted(f"Stopped. {left}", signal.SIGINT) from None
    finally:
        bar.close()
