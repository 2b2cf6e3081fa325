"""Real conversations and the tokenizers of the tests, each made once a process. Nobody may change them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from datasets import Dataset
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tuner.data.sources import load_splits
from tuner.loading.checkpoints import resolve
from tuner.text.load_tokenizer import load_pretrained_tokenizer
from tuner.text.train_tokenizer import train_tokenizer

Conversation = list[dict[str, str]]


@cache
def chitchat() -> Dataset:
    """The training rows of `builtin:chitchat`."""
    return load_splits("builtin:chitchat")[0]


@cache
def conversations(count: int = 100) -> list[Conversation]:
    """The first `count` conversations of `builtin:chitchat`."""
    return chitchat()[:count]["messages"]


def texts() -> list[str]:
    """What is said in them."""
    return [turn["content"] for conversation in conversations() for turn in conversation]


def train_bpe_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """The tokenizer of a new decoder."""
    return train_tokenizer(texts, "bpe", vocab_size, "clm")


@cache
def small() -> PreTrainedTokenizerBase:
    """Our own tokenizer and template, 1,000 tokens."""
    return train_bpe_tokenizer(texts(), 1000)


@cache
def smollm2() -> PreTrainedTokenizerBase:
    """SmolLM2's own tokenizer with our ChatML template."""
    name, how = resolve("builtin:smollm2-135m-instruct")
    return load_pretrained_tokenizer(name, "chatml", **how)


def tokenizer_called(name: str) -> PreTrainedTokenizerBase:
    """`small` or `smollm2`; a name keeps the making of one out of the collection of tests."""
    return {"small": small, "smollm2": smollm2}[name]()


def talk(*contents: str, system: str | None = None) -> Conversation:
    """A conversation in which user and assistant take turns."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    return [{"role": "system", "content": system}, *turns] if system is not None else turns
