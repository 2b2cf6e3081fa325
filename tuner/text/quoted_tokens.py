"""Control tokens that a message only quotes: told from those that the chat template writes, and tokenized as text.

A user who writes `<|im_end|>` would else end a turn, and an answer that holds it would teach to. A quoted name gets
another first character before the template sees it, so that positions stay; afterwards quoted names and the template's
own change places. A twin of the tokenizer, whose control tokens have the other names and the same ids, takes all in one
go. (transformers' `sanitize_control_tokens` cuts texts at a quoted name and gives no mask.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

# A plane for private use.
PRIVATE = range(0x100000, 0x10FFFE)


@dataclass
class QuotedTokens:
    """The special tokens of a tokenizer, the longest first, and characters that the first of each changes with."""

    tokenizer: PreTrainedTokenizerBase
    names: tuple[str, ...]
    others: dict[str, str]

    def hide(self, value: Any) -> Any:
        """A text, or whatever holds texts, whose quoted tokens have other names."""
        if isinstance(value, dict):
            return {key: self.hide(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.hide(item) for item in value]
        found = int(isinstance(value, str))
        while found:  # one may hold another
            value, found = any_of(self.names).subn(self._renamed, value)
        return value

    def encode(self, rendered: Sequence[str]) -> list[Encoding]:
        """What a template made of hidden messages, as tokens; positions are those in `rendered`."""
        both = any_of((*self.names, *self.others.values()))
        back = {other: first for first, other in self.others.items()}
        texts = [both.sub(lambda match: back.get(match[0]) or self._renamed(match), text) for text in rendered]
        twin = _twin(self.tokenizer, tuple((name, self.others[name[0]] + name[1:]) for name in self.names))
        return list(twin.encode_batch(texts, add_special_tokens=False))

    def _renamed(self, match: re.Match[str]) -> str:
        return self.others[match[0][0]] + match[0][1:]


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The names of a tokenizer's special tokens, the longest first."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special} - {""}
    return tuple(sorted(special, key=lambda name: (-len(name), name)))


def quoted_tokens(tokenizer: PreTrainedTokenizerBase, messages: Sequence[str]) -> QuotedTokens | None:
    """None where no message quotes a special token."""
    names = special_tokens(tokenizer)
    if not any(map(any_of(names).search, messages)):
        return None
    held = set().union(*messages)
    free = (character for character in map(chr, PRIVATE) if character not in held)
    return QuotedTokens(tokenizer, names, {first: next(free) for first in sorted({name[0] for name in names})})


@lru_cache(maxsize=4)
def any_of(names: tuple[str, ...]) -> re.Pattern[str]:
    """Matches any of the names, earlier ones first."""
    return re.compile("|".join(map(re.escape, names)) or "(?!)")


@lru_cache(maxsize=4)
def _twin(tokenizer: PreTrainedTokenizerBase, others: tuple[tuple[str, str], ...]) -> Tokenizer:
    """A tokenizer whose special tokens have other names wherever its file has them."""
    new = {json.dumps(name, ensure_ascii=False): json.dumps(other) for name, other in others}
    file = tokenizer.backend_tokenizer.to_str()
    twin = Tokenizer.from_str(any_of(tuple(new)).sub(lambda match: new[match[0]], file))
    twin.no_truncation()
    twin.no_padding()
    return twin
