"""Turns to token ids, and the exact mask of what the assistant says.

This is the one path from conversation to ids: the template writes everything, the beginning token included, and the
tokenizer adds nothing. Which characters the assistant wrote is known from the template (see `answers`); the tokens'
offsets say which tokens those are. No string is searched for, so a user who quotes the assistant's mark changes
nothing; and a control token that a message spells is text (see `quoted_tokens`).
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from jinja2 import TemplateSyntaxError
from tokenizers import Encoding
from transformers import BatchEncoding, PreTrainedTokenizerBase

from tuner.errors import DataError, ModelError, one_line
from tuner.text.answers import (
    MARKS,
    PROBE,
    UNKNOWN,
    Message,
    Spans,
    learnt,
    marked_answers,
    render,
    rendered_answers,
    training_tokenizer,
    variables,
)
from tuner.text.quoted_tokens import any_of, quoted_tokens, special_tokens
from tuner.text.tool_use import hidden_reasoning, not_shown

# What a template reads beside a conversation, by name.
Given = Mapping[str, Any] | None


def require_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse, with a ModelError, a tokenizer that has no chat template."""
    if not tokenizer.chat_template:
        raise ModelError(
            f"{origin(tokenizer)} is missing or empty. Pass --chat_template_path with "
            "'chatml' (for encoders 'bert') or a Jinja file."
        )


def origin(tokenizer: PreTrainedTokenizerBase) -> str:
    """Where the chat template came from, to begin a message with."""
    path = getattr(tokenizer, "chat_template_path", None)  # set by `use_chat_template`
    return f"--chat_template_path {path}" if path else f"The chat template of {tokenizer.name_or_path or 'this model'}"


def encode_conversations(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    eos_required: bool = True,
    names: Sequence[str] | None = None,
    prompts: Sequence[int] | None = None,
    given: Sequence[Given] | None = None,
) -> list[dict[str, Any]]:
    """Encode whole conversations.

    Args:
        tokenizer: a fast tokenizer with a chat template; see `training_tokenizer`.
        conversations: each a list of `{"role": ..., "content": ...}`, with what else the template reads.
        eos_required: refuse a template that does not close the assistant's last turn with a supervised end token.
        names: what to call each conversation in an error.
        prompts: how many messages of each conversation are its prompt, in which nothing is labelled.
        given: for each conversation what its template reads beside it: `tools`, the JSON schemas of the functions that
            it may call, and variables of the template's own.

    Returns:
        For each: `input_ids`, `labels` of the same length (the id where the assistant speaks, else -100; a turn whose
        `weight` is 0 is read alone), `unlearnt`, the number of answers that cannot be told from the rest, and
        `unreasoned`, of those whose reasoning the template leaves out.

    Raises:
        DataError: a conversation that the template refuses, of which it leaves out what tools have to do with, or
            with a variable that it does not read.
        ModelError: a template that is not Jinja, two beginning tokens, or an end token that is not supervised.
    """
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    rows = []
    for encoding, spans, unreasoned in _encode(tokenizer, conversations, names, given, prompts):
        ids, offsets = encoding.ids, encoding.offsets
        starts, ends = [start for start, _ in offsets], [end for _, end in offsets]
        labels = [-100] * len(ids)
        for begin, end in spans:
            if begin < end:  # the tokens that hold a character of it
                first, last = bisect_right(ends, begin), bisect_left(starts, end)
                labels[first:last] = ids[first:last]
        if tokenizer.bos_token_id not in (None, tokenizer.eos_token_id) and ids[:2] == [tokenizer.bos_token_id] * 2:
            raise ModelError(f"{origin(tokenizer)} begins a conversation with two beginning tokens; one is allowed.")
        if eos_required and spans and spans[-1] != UNKNOWN and _end(tokenizer, labels) not in special:
            raise ModelError(
                f"{origin(tokenizer)} ends the answers with no special token that is learnt, the end token "
                f"{tokenizer.eos_token!r} for instance: the model would not learn to stop. --eos_token names another."
            )
        rows.append({"input_ids": ids, "labels": labels, "unlearnt": spans.count(UNKNOWN), "unreasoned": unreasoned})
    return rows


def _end(tokenizer: PreTrainedTokenizerBase, labels: list[int]) -> int | None:
    """The last token that is learnt, but for blanks after it."""
    return next((token for token in reversed(labels) if token != -100 and tokenizer.decode(token).strip()), None)


def generation_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], given: Given = None, name: str = "the prompt"
) -> BatchEncoding:
    """A conversation, or none yet, that ends where the assistant is to speak, as tensors `(1, time)` for `generate`."""
    [(encoding, *_)] = _encode(tokenizer, [messages], [name], [given], add_generation_prompt=True)
    return BatchEncoding({"input_ids": [encoding.ids], "attention_mask": [encoding.attention_mask]}, tensor_type="pt")


def answer_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that ends an answer as the chat template writes it; None where there is no template, or it cannot be
    trained with."""
    turns = [{"role": "user", "content": PROBE}, {"role": "assistant", "content": PROBE}]
    try:
        require_chat_template(tokenizer)
        [row] = encode_conversations(training_tokenizer(tokenizer)[0], [turns])
    except (DataError, ModelError):
        return None
    return _end(tokenizer, row["labels"])


def _encode(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    names: Sequence[str] | None,
    given: Sequence[Given] | None,
    prompts: Sequence[int] | None = None,
    add_generation_prompt: bool = False,
) -> list[tuple[Encoding, Spans, int]]:
    """Of each conversation the tokens, which characters of what the template wrote are the assistant's, and how many
    answers' reasoning it has left out."""
    if not conversations:
        return []
    written = [[list(turns), (given[number] if given else None) or {}] for number, turns in enumerate(conversations)]
    quoted = quoted_tokens(tokenizer, [json.dumps(both, ensure_ascii=False, default=str) for both in written])
    control = any_of(special_tokens(tokenizer))
    texts, spans, unreasoned = [], [], []
    for number, (turns, more) in enumerate(map(quoted.hide, written) if quoted else written):
        name, prompt = names[number] if names else f"conversation {number}", prompts[number] if prompts else 0
        write = partial(_write, tokenizer, name, more)
        if add_generation_prompt:
            text, found = write(turns, add_generation_prompt=True)
        elif MARKS.search(tokenizer.chat_template):
            text, found = marked_answers(write, turns, prompt, control)
        else:
            text, found = rendered_answers(write, turns, prompt, control)
        if missing := not_shown(text, turns, more.get("tools")):
            raise DataError(f"{name}: {origin(tokenizer)} leaves out {missing}. Take one for tools, or drop such rows.")
        texts.append(text)
        spans.append(found)
        unreasoned.append(hidden_reasoning(text, [turn for turn in turns[prompt:] if learnt(turn)]))
    if quoted:
        encodings = quoted.encode(texts)
    else:  # `verbose=False`: rows longer than the model are `data/encode.py`'s business, not a warning's
        batch = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        encodings = batch.encodings or []
    return list(zip(encodings, spans, unreasoned, strict=True))


def _write(
    tokenizer: PreTrainedTokenizerBase, name: str, given: dict[str, Any], messages: Sequence[Message], **how: bool
) -> tuple[str, Spans]:
    try:
        unread = given.keys() - {"tools"} - (variables(tokenizer.chat_template) if given.keys() - {"tools"} else set())
        if not unread:
            return render(tokenizer, messages, given, **how)
    except TemplateSyntaxError as error:
        raise ModelError(f"{origin(tokenizer)}, line {error.lineno}: not Jinja: {error.message}") from error
    except Exception as error:  # a template can fail in every way that Python can
        reason = one_line(error).rstrip(".")
        raise DataError(f"{name}: {origin(tokenizer)} refused it: {reason}.") from error
    raise DataError(
        f"{name}: {origin(tokenizer)} does not read {min(unread)!r} of 'chat_template_kwargs' (or a column of that "
        "name). Take one that does, or drop the column."
    )
