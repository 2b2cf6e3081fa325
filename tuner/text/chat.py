"""Turns to token ids, and the exact mask of what the assistant says.

This is the one path from conversation to ids: the template writes everything, the beginning token included, and the
tokenizer adds nothing. Generation marks in the template say which characters the assistant wrote; the tokens' offsets
say which tokens those are. No string is searched for, so a user who quotes the assistant's mark changes nothing; and a
control token that a message spells is text (see `quoted_tokens`).
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateSyntaxError
from tokenizers import Encoding
from transformers import BatchEncoding, PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from tuner.errors import DataError, ModelError, one_line
from tuner.text.quoted_tokens import quoted_tokens

# One token says who speaks, one ends an assistant's turn. The end lies inside the generation marks: it is supervised,
# and it is what the model emits to hand the turn back.
TUNER_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'assistant' %}
        {{- '<|assistant|>' }}
        {%- generation %}
            {{- message['content'] + eos_token }}
        {%- endgeneration %}
    {%- else %}
        {{- '<|' + message['role'] + '|>' + message['content'] }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}
"""

# ChatML (OpenAI's markup; SmolLM2, Qwen), with generation marks.
CHATML_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}
            {{- message['content'] + '<|im_end|>' }}
        {%- endgeneration %}
        {{- '\\n' }}
    {%- else %}
        {{- message['content'] + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

Message = dict[str, str]
Spans = list[tuple[int, int]]  # each from the first character to one past the last


def require_generation_marks(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse, with a ModelError, a tokenizer whose template cannot say which tokens are the assistant's."""
    if not tokenizer.chat_template:
        raise ModelError(
            f"{_origin(tokenizer)} is missing or empty. Pass --chat_template_path with 'chatml' or a Jinja file."
        )
    if not re.search(r"\{%[-+]?\s*generation\s*[-+]?%\}", tokenizer.chat_template):
        raise ModelError(
            f"{_origin(tokenizer)} has no generation marks, so the answers cannot be told from the questions. "
            "Put {% generation %} ... {% endgeneration %} around what the assistant writes, its end token included, "
            "and pass the file with --chat_template_path ('chatml' is built in)."
        )


def _origin(tokenizer: PreTrainedTokenizerBase) -> str:
    """Where the chat template came from, to begin a message with."""
    path = getattr(tokenizer, "chat_template_path", None)  # set by `use_chat_template`
    return f"--chat_template_path {path}" if path else f"The chat template of {tokenizer.name_or_path or 'this model'}"


def encode_conversations(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    eos_required: bool = True,
    names: Sequence[str] | None = None,
    prompts: Sequence[int] | None = None,
) -> list[dict[str, list[int]]]:
    """Encode whole conversations.

    Args:
        tokenizer: a fast tokenizer whose template has generation marks.
        conversations: each a list of `{"role": ..., "content": ...}`.
        eos_required: refuse a template that does not close the assistant's last turn with a supervised end token.
        names: what to call each conversation in an error.
        prompts: how many messages of each conversation are its prompt, in which nothing is labelled.

    Returns:
        For each: `input_ids`, and `labels` of the same length: the id where the assistant speaks, else -100.

    Raises:
        DataError: a conversation that the template refuses.
        ModelError: a template that is not Jinja, two beginning tokens, or an end token that is not supervised.
    """
    rows = []
    for number, (encoding, spans) in enumerate(_encode(tokenizer, conversations, names)):
        if prompts is not None:  # the template marks one span for each of the assistant's turns
            prompt = conversations[number][: prompts[number]]
            spans = spans[sum(message["role"] == "assistant" for message in prompt) :]
        ids, offsets = encoding.ids, encoding.offsets
        starts, ends = [start for start, _ in offsets], [end for _, end in offsets]
        labels = [-100] * len(ids)
        for begin, end in spans:
            if begin < end:  # the tokens that hold a character of it
                first, last = bisect_right(ends, begin), bisect_left(starts, end)
                labels[first:last] = ids[first:last]
        _check_ends(tokenizer, ids, labels, eos_required and bool(spans))
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def generation_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> BatchEncoding:
    """A conversation, or none yet, that ends where the assistant is to speak, as tensors `(1, time)` for `generate`."""
    [(encoding, _)] = _encode(tokenizer, [messages], ["the prompt"], add_generation_prompt=True)
    return BatchEncoding({"input_ids": [encoding.ids], "attention_mask": [encoding.attention_mask]}, tensor_type="pt")


def _encode(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    names: Sequence[str] | None,
    add_generation_prompt: bool = False,
) -> list[tuple[Encoding, Spans]]:
    """Of each conversation the tokens, and which characters of what the template wrote are the assistant's."""
    if not conversations:
        return []
    quoted = quoted_tokens(tokenizer, [message["content"] for turns in conversations for message in turns])
    rendered = []
    for number, messages in enumerate(conversations):
        if quoted:
            messages = [{**message, "content": quoted.hide(message["content"])} for message in messages]
        name = names[number] if names else f"conversation {number}"
        rendered.append(_render(tokenizer, messages, name, add_generation_prompt))
    texts = [text for text, _ in rendered]
    if quoted:
        encodings = quoted.encode(texts)
    else:  # `verbose=False`: rows longer than the model are `data/encode.py`'s business, not a warning's
        batch = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        encodings = batch.encodings or []
    return [(encoding, spans) for encoding, (_, spans) in zip(encodings, rendered, strict=True)]


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], name: str, add_generation_prompt: bool
) -> tuple[str, Spans]:
    try:
        rendered: Any = render_jinja_template(
            [list(messages)],
            chat_template=tokenizer.chat_template,
            return_assistant_tokens_mask=not add_generation_prompt,
            add_generation_prompt=add_generation_prompt,
            **tokenizer.special_tokens_map,
        )
    except TemplateSyntaxError as error:
        raise ModelError(f"{_origin(tokenizer)}, line {error.lineno}: not Jinja: {error.message}") from error
    except Exception as error:  # a template can fail in every way that Python can
        reason = one_line(error).rstrip(".")
        raise DataError(f"{name}: {_origin(tokenizer)} refused it: {reason}.") from error
    (text,), spans = rendered
    return text, spans[0] if spans else []


def _check_ends(tokenizer: PreTrainedTokenizerBase, ids: list[int], labels: list[int], eos_required: bool) -> None:
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is not None and bos != eos and ids[:2] == [bos, bos]:
        raise ModelError(f"{_origin(tokenizer)} begins a conversation with two beginning tokens; one is allowed.")
    if eos_required and eos not in labels:
        raise ModelError(
            f"{_origin(tokenizer)} never puts the end token {tokenizer.eos_token!r} inside the generation marks: the "
            "model would not learn to stop."
        )
