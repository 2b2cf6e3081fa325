"""A question and its answer in columns of their own, with what stands beside them: what the question is about, a system
message, earlier questions. Alpaca, Dolly, LLaMA-Factory and TRL have it so."""

from __future__ import annotations

from typing import Any

from tuner.data.columns import INPUTS
from tuner.data.turns import REASONING, REFUSED_COLUMNS, Row, message, messages_of, once, says_something, shown, text_of
from tuner.data.written import TEMPLATED, is_dialogue, parsed, turns_in
from tuner.errors import DataError
from tuner.text.answers import Message

# Columns beside a conversation that are its system message.
SYSTEM_COLUMNS = ("system", "system_prompt")
# A column beside an answer that holds what was thought before it.
THOUGHT = ("reasoning_content",)


def answered(row: Row, unused: set[str], asked: str, answer: str) -> Row:
    """A question and its answer, with what instruction formats have beside them."""
    first, last = turns_in(row[asked], asked=True), turns_in(row[answer])
    if asked == "prompt" and (isinstance(first, list) or isinstance(last, list)):
        asked_for = prompt_of(row, unused)
        messages = [*map(read, asked_for), *answer_to(asked_for, row, answer, unused)]
    else:
        messages = [*question(row, asked), message("assistant", row[answer], f"{answer!r}")]
    for column in THOUGHT:
        if says_something(row.get(column)) and messages[-1]["role"] == "assistant":
            thought = dict.fromkeys(REASONING[:2], text_of(row[column], f"{column!r}"))
            messages[-1] = once(messages[-1], thought, "reasoning", f"column {column!r}, beside its answer,")
    return {"messages": messages}


def answer_to(prompt: list[Message], row: Row, column: str, unused: set[str]) -> list[Message]:
    """An answer, without the prompt that a whole conversation repeats; a DataError where that begins with another."""
    found = either(row, column, "assistant", unused)
    speakers = [turns[place]["role"] for turns, place in ((prompt, -1), (found, 0)) if turns]
    if speakers != ["user", "user"] and speakers[1:] != ["system"]:
        return found
    asked, again = ([(t["role"], t["content"].strip()) for t in turns] for turns in (prompt, found[: len(prompt)]))
    if asked != again:
        raise DataError(f"column {column!r} is a conversation that does not repeat column 'prompt'. Drop one of them.")
    return found[len(prompt) :]


def prompt_of(row: Row, unused: set[str]) -> list[Message]:
    """The column `prompt`: messages, or a text with the earlier questions beside it."""
    if isinstance(turns_in(row["prompt"], asked=True), str):
        return question(row, "prompt")
    refuse_history(row)
    return either(row, "prompt", "user", unused)


def question(row: Row, asked: str) -> list[Message]:
    """What is asked, with Alpaca's `input`, Dolly's `context` and LLaMA-Factory's `history`."""
    refuse_templated(row[asked], asked)
    turns = turns_in(row[asked], asked=True) if asked == "instruction" else row[asked]
    if isinstance(turns, list) and isinstance(row[asked], str):
        *before, found = messages_of(turns, asked, set(), answered=False)
    else:
        before, found = [], message("user", row[asked], f"{asked!r}")
    names = [name for name in INPUTS if asked == "instruction" and row.get(name) and not is_passages(name, row[name])]
    beside = [text_of(row[name], f"{name!r}") for name in names]
    found["content"] = "\n\n".join(filter(None, (found["content"], *beside)))
    return [*history_of(row.get("history")), *before, found]


def refuse_templated(text: Any, column: str) -> None:
    """A DataError for a text that a chat template has written, which would write it again around it."""
    if isinstance(text, str) and TEMPLATED.match(text):
        raise DataError(
            f"column {column!r} begins as a chat template has written it: {shown(text)}. Pass messages, or all of it "
            "as a column 'text'."
        )


def is_passages(column: str, value: Any) -> bool:
    """Whether a column that may be an instruction's holds something else than a text, as a list of passages."""
    return column == "context" and value is not None and not isinstance(value, str)


def history_of(value: Any) -> list[Message]:
    """Earlier `[question, answer]` pairs, as LLaMA-Factory's `history` holds them; a DataError for anything else."""
    if not says_something(value):
        return []
    pairs = parsed(value)
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise DataError(f"column 'history' must be a list of [question, answer] pairs, not {shown(value)}.")
    return [
        message(role, content, f"'history', pair {number}")
        for number, pair in enumerate(pairs)
        for role, content in zip(("user", "assistant"), pair, strict=True)
    ]


def refuse_history(row: Row) -> None:
    """A DataError where there are earlier questions beside messages, which say them already."""
    if says_something(row.get("history")):
        raise DataError(f"the column 'history' is not supported: {REFUSED_COLUMNS['history']}.")


def add_system(row: Row, messages: list[Message]) -> None:
    """Begin a row's conversation with the system message that a column beside it holds; a DataError where it begins
    with another."""
    for column in SYSTEM_COLUMNS:
        if says_something(row.get(column)):
            system = message("system", row[column], f"{column!r}")
            if not messages or messages[0]["role"] != "system":
                messages.insert(0, system)
            elif messages[0] != system:
                raise DataError(f"the column {column!r} and the first message are two system messages. Drop one.")


def read(turn: Message) -> Message:
    """A turn that is not learnt: in TRL's format a prompt is not, whoever speaks in it."""
    return {**turn, "weight": 0} if turn["role"] == "assistant" else turn


def either(row: Row, column: str, role: str, unused: set[str]) -> list[Message]:
    """A list of messages, or a text as one of the role."""
    found = turns_in(row[column], asked=role == "user")
    if isinstance(found, list):
        return messages_of(found, column, unused, answered=role == "assistant")
    if isinstance(found, str) and is_dialogue(row.get("prompt")):
        found = found.strip()  # as the dialogue's own turns are
    return [message(role, found, f"{column!r}")]
