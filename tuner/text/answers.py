"""Which characters of a conversation, as its chat template writes it, are the assistant's: what is learnt.

A template's own generation marks say so; few have them. TRL carries training versions of many published templates, the
same with marks. Any other is rendered once up to the question, with the generation prompt, and once up to the answer:
what the second has more is the answer, as long as the whole conversation has it too. Some templates change an answer
when the next question comes (reasoning is left out of earlier turns): that answer is not learnt, and is counted.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

from jinja2 import meta
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

from tuner.errors import DataError
from tuner.text.tool_use import Message, shows_python, with_text_arguments

Spans = list[tuple[int, int]]  # each from the first character to one past the last
Writer = Callable[..., tuple[str, Spans]]  # `render` of one tokenizer, with its failures told
UNKNOWN = (0, 0)
MARKS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
PROBE = "How are you?"


def training_tokenizer(tokenizer: PreTrainedTokenizerBase) -> tuple[PreTrainedTokenizerBase, str]:
    """The tokenizer with the template that training reads, and how that says what is learnt. `tokenizer` itself, which
    is saved with the model, stays as it is."""
    if MARKS.search(tokenizer.chat_template):
        return tokenizer, "the chat template's generation marks"
    from trl.chat_template_utils import get_training_chat_template

    try:
        marked = get_training_chat_template(tokenizer)
    except Exception:  # it is none of TRL's, and what TRL renders to find out can fail in every way
        return tokenizer, "rendering the chat template with and without each answer"
    tokenizer = copy.copy(tokenizer)
    tokenizer.chat_template = marked
    return tokenizer, "TRL's training version of the chat template"


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    given: Mapping[str, Any] | None = None,
    add_generation_prompt: bool = False,
    marks: bool = False,
) -> tuple[str, Spans]:
    """What the template writes of a conversation, and of what it is `given` beside it, and with `marks` the characters
    between its generation marks. Raises whatever the template does."""
    template = tokenizer.chat_template
    if _takes_parts(template):
        messages = [{**turn, "content": [{"type": "text", "text": turn["content"] or ""}]} for turn in messages]
    write = partial(
        render_jinja_template,
        chat_template=template,
        return_assistant_tokens_mask=marks,
        add_generation_prompt=add_generation_prompt,
        **tokenizer.special_tokens_map,
        **(given or {}),
    )
    try:
        (text,), spans = write([list(messages)])
        as_text = shows_python(text, messages)
    except Exception:
        if not any(message.get("tool_calls") for message in messages):
            raise
        as_text = True
    if as_text:
        (text,), spans = write([with_text_arguments(messages)])
    return text, spans[0] if spans else []


@lru_cache(maxsize=16)
def variables(template: str) -> set[str]:
    """The names that a template reads."""
    environment = _compile_jinja_template(template).environment
    return meta.find_undeclared_variables(environment.parse(template))


@lru_cache(maxsize=16)
def _takes_parts(template: str) -> bool:
    """Whether a template reads content as a list of parts alone, as those of models that see do."""
    for content in (PROBE, [{"type": "text", "text": PROBE}]):
        try:
            text = render_jinja_template([[{"role": "user", "content": content}]], chat_template=template, bos_token="")
        except Exception:
            continue
        if PROBE in text[0][0]:
            return not isinstance(content, str)
    return False


def marked_answers(
    write: Writer, messages: Sequence[Message], prompt: int, control: re.Pattern[str]
) -> tuple[str, Spans]:
    """What the template writes of a conversation, and what lies between its marks after the first `prompt` messages: of
    the answers that are learnt. Where marks and answers are not as many, `rendered_answers` says which those are."""
    text, spans = write(messages, marks=True)
    if any(message["role"] == "assistant" for message in messages[:prompt]):
        spans = spans[len(write(messages[:prompt], marks=True)[1]) :]
    answers = [message for message in messages[prompt:] if message["role"] == "assistant"]
    if all(map(learnt, answers)):
        return text, spans
    if len(spans) != len(answers):
        return rendered_answers(write, messages, prompt, control)
    return text, [span for span, message in zip(spans, answers, strict=True) if learnt(message)]


def rendered_answers(
    write: Writer, messages: Sequence[Message], prompt: int, control: re.Pattern[str]
) -> tuple[str, Spans]:
    """As `marked_answers`, without marks: a span for each answer that is learnt, `UNKNOWN` where it cannot be told.

    Args:
        control: matches the tokenizer's special tokens; an answer ends with its last one, or where the next turn
            begins.
    """
    whole, spans = write(messages)[0], []
    for turn, message in enumerate(messages):
        if learnt(message) and turn >= prompt:
            try:
                before = write(messages[:turn], add_generation_prompt=True)[0]
                after = write(messages[: turn + 1])[0]
            except DataError:  # not every template can begin with any turn
                spans.append(UNKNOWN)
            else:
                spans.append(_answer(whole, before, after, control))
    return whole, spans


def _answer(whole: str, before: str, after: str, control: re.Pattern[str]) -> tuple[int, int]:
    begin = end = len(before)
    same = len(after) if whole.startswith(after) else common_length(whole, after)
    for match in control.finditer(after, begin):
        if match.end() > same:  # half of a control token is none
            same = min(same, match.start())
            break
        end = match.end()
    ended = begin < end and not after[end:same].strip()
    # Changed later, it still is whole if all that changed stands after its end: an end of everything, say.
    kept = whole.startswith(after) or (ended and not control.sub("", after[same:]).strip())
    if not kept or not after.startswith(before) or same == begin:
        return UNKNOWN
    return begin, end if ended else same


def learnt(message: Message) -> bool:
    """Whether a turn is the assistant's, and not one that is only read (`weight` 0)."""
    return message["role"] == "assistant" and message.get("weight") != 0


def common_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many items, of texts characters, both begin with."""
    shorter = min(len(one), len(other))
    return next((number for number in range(shorter) if one[number] != other[number]), shorter)
