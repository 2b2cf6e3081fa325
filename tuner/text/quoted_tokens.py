"""Control tokens that a message only quotes: told from those that the chat template writes, and tokenized as text.

A user who writes `<|im_end|>` would else end a turn, and an answer that holds it would teach to. What is quoted gets
another first character before the template sees it, of the same length, so that positions stay; afterwards the
template's own control tokens change theirs, and what was quoted is as before. A twin of the tokenizer, whose control
tokens have those other names and the same ids, then tokenizes all in one go, as the tokenizer itself would.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

# A plane for private use: of its characters a free stretch is taken, so that no text can name a control token.
PRIVATE, STRETCH = range(0x100000, 0x10FF00), 0x100


class QuotedTokens:
    """The special tokens of a tokenizer, as messages may quote them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, names: tuple[str, ...]):
        self.backend: Any = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        self.names = sorted(filter(None, names), key=lambda name: (-len(name), name))
        self.pattern = re.compile("|".join(map(re.escape, self.names)) or r"(?!)")
        self.firsts = sorted({name[0] for name in self.names})

    def quoted(self, messages: Iterable[dict[str, str]]) -> bool:
        """Whether a message holds one."""
        search = self.pattern.search
        return any(search(message["content"]) for message in messages)

    def free_stretch(self, messages: Sequence[dict[str, str]]) -> int:
        """The beginning of a stretch of private characters that no message holds."""
        used = {ord(c) // STRETCH for message in messages for c in message["content"] if ord(c) >= PRIVATE.start}
        return next(start for start in PRIVATE[::STRETCH] if start // STRETCH not in used)

    def hide(self, messages: Sequence[dict[str, str]], start: int) -> list[dict[str, str]]:
        """Messages whose quoted tokens begin with a private character."""
        return [{**message, "content": self._rename(message["content"], start)} for message in messages]

    def encode(self, rendered: str, start: int) -> Encoding:
        """What a template made of hidden messages, as tokens; positions are those in `rendered`."""
        marked = self._rename(rendered, start + len(self.firsts))
        for number, first in enumerate(self.firsts):
            marked = marked.replace(chr(start + number), first)
        twin = _twin(self.backend.to_str(), tuple(self.names), tuple(self.firsts), start + len(self.firsts))
        return twin.encode(marked, add_special_tokens=False)

    def _rename(self, text: str, start: int) -> str:
        found = 1
        while found:  # one may hold another
            text, found = self.pattern.subn(lambda match: _renamed(match[0], self.firsts, start), text)
        return text


def quoted_tokens(tokenizer: PreTrainedTokenizerBase) -> QuotedTokens:
    """The `QuotedTokens` of a tokenizer as it now is."""
    names = tuple(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return _quoted_tokens(tokenizer, names)


@lru_cache(maxsize=4)
def _quoted_tokens(tokenizer: PreTrainedTokenizerBase, names: tuple[str, ...]) -> QuotedTokens:
    return QuotedTokens(tokenizer, names)


def _renamed(name: str, firsts: Sequence[str], start: int) -> str:
    return chr(start + firsts.index(name[0])) + name[1:]


@lru_cache(maxsize=4)
def _twin(backend: str, names: tuple[str, ...], firsts: tuple[str, ...], start: int) -> Tokenizer:
    """A tokenizer whose special tokens are called otherwise."""
    new = {name: _renamed(name, firsts, start) for name in names}
    parts = json.loads(backend)
    for token in parts["added_tokens"]:
        token["content"] = new.get(token["content"], token["content"])
    model = parts["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {new.get(piece, piece): number for piece, number in model["vocab"].items()}
    else:  # Unigram's pieces with their scores
        model["vocab"] = [[new.get(piece, piece), score] for piece, score in model["vocab"]]
    if model.get("unk_token") in new:
        model["unk_token"] = new[model["unk_token"]]
    parts.update(post_processor=None, truncation=None, padding=None)
    return Tokenizer.from_str(json.dumps(parts))
