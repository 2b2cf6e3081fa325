"""What tests of reinforcement learning share: a tokenizer, models of a few thousand parameters, a configuration."""

from __future__ import annotations

from functools import cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from tuner.text.train_tokenizer import train_tokenizer

CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-5}


@cache
def tiny_tokenizer() -> PreTrainedTokenizerBase:
    texts = ["the cat sat on the mat. 1 2 3 4 5 6 7 8 9 0 + = a b c d e f g"] * 20
    return train_tokenizer(iter(texts), "bpe", 300, "clm", 256)
