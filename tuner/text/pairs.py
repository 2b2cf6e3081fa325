"""Texts as an encoder-decoder takes them: what it reads, and what it is to write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], longest: int | None = None, target: bool = False
) -> tuple[list[list[int]], list[int]]:
    """The tokens of each text with the special tokens that the tokenizer puts around one, and the end token where it
    puts none; of targets those that `text_target` asks for. A special token that a text spells is text.

    Args:
        longest: cut texts so that no more tokens than these come out, special ones included.

    Returns:
        The tokens, and how many of each text's were cut off.
    """
    name = "text_target" if target else "text"
    ends = tokenizer.eos_token_id in tokenizer(**{name: ""})["input_ids"]
    end = [] if ends or tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    how: dict[str, Any] = {"return_attention_mask": False, "verbose": False, "split_special_tokens": True}
    found = tokenizer(**{name: list(texts)}, **how)["input_ids"]
    lost = [0] * len(found)
    for number, ids in enumerate(found):
        if longest is not None and len(ids) + len(end) > longest:
            cut = {"truncation": True, "max_length": longest - len(end)}
            found[number] = tokenizer(**{name: texts[number]}, **how, **cut)["input_ids"]
            lost[number] = len(ids) - len(found[number])
    return [[*ids, *end] for ids in found], lost
