"""Turns to token ids, and the exact mask of what the assistant says.

This is the one path from conversation to ids: the template writes everything, the beginning token included, and the
tokenizer adds nothing. Generation marks in the template say which characters the assistant wrote; the tokens' offsets
say which tokens those are. No string is searched for, so a user who quotes the assistant's mark changes nothing; and a
control token that a message spells is text (see `quoted_tokens`).
"""

from __future__ import annotations

import re
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
    names = names or [f"conversation {number}" for number in range(len(conversations))]
    encoded, spans = _encode(tokenizer, conversations, names)
    if prompts is not None:  # the template marks one span for each of the assistant's turns
        spans = [
            found[sum(m["role"] == "assistant" for m in conversation[:count]) :]
            for found, conversation, count in zip(spans, conversations, prompts, strict=True)
        ]
    rows = []
    for encoding, row_spans in zip(encoded, spans, strict=True):
        ids = encoding.ids
        labels = [-100] * len(ids)
        for begin, end in row_spans:
            first, last = _tokens_of(encoding, begin, end)
            labels[first:last] = ids[first:last]
        _check_ends(tokenizer, ids, labels, eos_required and bool(row_spans))
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def _encode(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    names: Sequence[str],
    add_generation_prompt: bool = False,
) -> tuple[list[Encoding], list[list[tuple[int, int]]]]:
    """The tokens of conversations, and which characters of what the template wrote are the assistant's."""
    marks = quoted_tokens(tokenizer)
    rendered, stretches = [], {}
    for number, conversation in enumerate(conversations):
        messages = list(conversation)
        if marks.quoted(messages):
            stretches[number] = marks.free_stretch(messages)
            messages = marks.hide(messages, stretches[number])
        rendered.append(_render(tokenizer, messages, names[number], add_generation_prompt))
    texts = [text for text, _ in rendered]
    # `verbose=False`: rows longer than the model are the encoder's business (`data/encode.py`), not a warning's.
    batch = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False) if texts else None
    encoded = list(batch.encodings) if batch is not None else []
    for number, start in stretches.items():
        encoded[number] = marks.encode(texts[number], start)
    return encoded, [spans for _, spans in rendered]


def _render(
    tokenizer: PreTrainedTokenizerBase, conversation: list[Message], name: str, add_generation_prompt: bool
) -> tuple[str, list[tuple[int, int]]]:
    how: dict[str, Any] = {"return_assistant_tokens_mask": True, "add_generation_prompt": add_generation_prompt}
    how |= {"conversations": [conversation], "chat_template": tokenizer.chat_template}
    try:
        rendered: Any = render_jinja_template(**how, **tokenizer.special_tokens_map)
    except TemplateSyntaxError as error:
        raise ModelError(f"{_origin(tokenizer)}, line {error.lineno}: not Jinja: {error.message}") from error
    except Exception as error:  # a template can fail in every way that Python can
        reason = one_line(error).rstrip(".")
        raise DataError(f"{name}: {_origin(tokenizer)} refused it: {reason}.") from error
    return rendered[0][0], rendered[1][0]


def _tokens_of(encoding: Encoding, begin: int, end: int) -> tuple[int, int]:
    """The tokens, from first to one past the last, of the characters from `begin` to one before `end`."""
    # Characters that the tokenizer drops have no token.
    first = next((t for c in range(begin, end) if (t := encoding.char_to_token(c)) is not None), None)
    if first is None:
        return 0, 0
    last = next(t for c in reversed(range(begin, end)) if (t := encoding.char_to_token(c)) is not None)
    # A character of several bytes may have several tokens, of which `char_to_token` gives the first.
    stop = last + 1
    # `offsets` and `ids` would each make a list of all tokens.
    while (found := encoding.token_to_chars(stop)) is not None and found[0] < end:
        stop += 1
    return first, stop


def _check_ends(tokenizer: PreTrainedTokenizerBase, ids: list[int], labels: list[int], eos_required: bool) -> None:
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is not None and bos != eos and ids[:2] == [bos, bos]:
        raise ModelError(f"{_origin(tokenizer)} begins a conversation with two beginning tokens; one is allowed.")
    if eos_required and eos not in labels:
        raise ModelError(
            f"{_origin(tokenizer)} never puts the end token {tokenizer.eos_token!r} inside the generation marks: the "
            "model would not learn to stop."
        )


def generation_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> Any:
    """A conversation, or none yet, that ends where the assistant is to speak, as tensors `(1, time)` for `generate`."""
    if messages and not quoted_tokens(tokenizer).quoted(messages):
        how: dict[str, Any] = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
        return tokenizer.apply_chat_template(list(messages), **how)
    (encoding,), _ = _encode(tokenizer, [messages], ["the prompt"], add_generation_prompt=True)
    return BatchEncoding({"input_ids": [encoding.ids], "attention_mask": [encoding.attention_mask]}, tensor_type="pt")
