"""Turns that are written as one text: JSON, as in a field of a CSV, or a dialogue as Anthropic's data sets have it."""

from __future__ import annotations

import re
from typing import Any

from tuner.data import tools
from tuner.data.json_text import read_json

# ShareGPT and its relatives name the speakers otherwise.
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "input"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model", "output", *tools.CALLERS), "assistant"),
    **dict.fromkeys(tools.RESULTS, "tool"),
}
# `\n\nHuman: ...\n\nAssistant: ...` (Bai et al. 2022, https://arxiv.org/abs/2204.05862): how it begins, and how a
# prompt may, whose first line ends are gone (an answer that begins so may be one that a dialogue was asked of); its
# turns.
DIALOGUE = re.compile(r"\n\n(?:Human|Assistant):")
PROMPT = re.compile(rf"{DIALOGUE.pattern}|\s*Human:(?=.*\n\nAssistant:)", re.DOTALL)
# The same with one line end before each, open for an answer: BELLE's.
OPEN = re.compile(r"\s*Human:.*\nAssistant:\s*", re.DOTALL)
# What parts the turns of HelpSteer's prompts (NeMo).
NEMO = re.compile(r"\n<extra_id_1>(User|Assistant)\n")
# Keys of an object that holds a question and its answer (ms-swift, Capybara).
QUESTIONED = (("human", "assistant"), ("user", "assistant"), ("input", "output"))
TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):(.*?)(?=\n\n(?:Human|Assistant):|\Z)", re.DOTALL)
# How what a chat template has written begins, of the families that are most used.
TEMPLATED = re.compile(
    r"\s*(?:<s>\s*)?(?:<bos>\s*)?(?:\[INST\]|<\|(?:im_start|begin_of_text|start_header_id|user|system|start)\|>"
    r"|<extra_id_[01]>|<start_of_turn>|<\uff5cbegin\u2581of\u2581sentence\uff5c>)"
)


def parsed(value: Any) -> Any:
    """The list that a JSON text says; else the value."""
    try:
        found = read_json(value) if isinstance(value, str) else None
    except (ValueError, RecursionError):
        return value
    return found if isinstance(found, list) else value


def turns_in(value: Any, asked: bool = False) -> Any:
    """A column's turns: one alone as a list of one, and of a text the list that it writes; else the value. An answer
    may be JSON too: turns are a known role and what it says.

    Args:
        asked: it is a prompt: a dialogue's last `Assistant:` may be where the answer goes, and is no turn.
    """
    if not isinstance(value, str):
        return [value] if isinstance(value, dict) else value
    if asked and OPEN.fullmatch(value):
        value = re.sub(r"(?<!\n)\n(?=(?:Human|Assistant):)", "\n\n", value)
    nemo = asked and bool(NEMO.search(value)) and not TEMPLATED.match(value)
    if nemo or is_dialogue(value, asked):
        first, *rest = NEMO.split(value) if nemo else ("",)
        found = list(zip(("User", *rest[::2]), (first, *rest[1::2]), strict=True)) if nemo else TURN.findall(value)
        turns = [{"role": ROLES[who.lower()], "content": said.strip()} for who, said in found]
        return turns[:-1] if asked and turns[-1] == {"role": "assistant", "content": ""} else turns
    found = parsed(value)
    return found if isinstance(found, list) and found and all(map(_is_turn, found)) else value


def spelled_out(turns: Any) -> Any:
    """A list of turns of what holds them otherwise: JSON texts, texts of a user and an assistant by turns (LIMA,
    UltraChat), or objects of a question and its answer; else what is given."""
    if not isinstance(turns, list) or not turns:
        return turns
    if all(isinstance(text, str) for text in turns):
        read = [_object(text) for text in turns]
        if all(map(_is_turn, read)):
            return read
        return [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(turns)]
    filled = [{k: v for k, v in turn.items() if v is not None} if isinstance(turn, dict) else {} for turn in turns]
    for pair in QUESTIONED:
        if all(turn.keys() and turn.keys() <= set(pair) for turn in filled):
            return [{"role": ROLES[key], "content": turn[key]} for turn in filled for key in pair if key in turn]
    return turns


def _object(text: str) -> Any:
    try:
        return read_json(text)
    except (ValueError, RecursionError):
        return None


def is_dialogue(value: Any, asked: bool = True) -> bool:
    """Whether it is a text, or a prompt, of turns of `Human:` and `Assistant:`."""
    return isinstance(value, str) and bool((PROMPT if asked else DIALOGUE).match(value))


def _is_turn(value: Any) -> bool:
    spoken = isinstance(value, dict) and {"content", "value", *tools.KEYS} & value.keys()
    return bool(spoken) and str(value.get("role") or value.get("from")).lower() in ROLES
