"""Reward functions that tests name by file."""

import random


def digits(completions, bonus=None, **_):
    """The share of digits in a completion, and what its row adds."""
    bonus = bonus or [0.0] * len(completions)
    return [
        sum(c.isdigit() for c in text) / max(len(text), 1) + more for text, more in zip(completions, bonus, strict=True)
    ]


def of_messages(prompts, completions, **_):
    """1 where prompts and completions are messages."""
    pairs = zip(prompts, completions, strict=True)
    return [float(asked[1]["content"] == "2" and said[-1]["role"] == "assistant") for asked, said in pairs]


def moody(completions, **_):
    """One that is random: its random numbers come back when a run is continued."""
    return [random.random() for _ in completions]


def broken(completions, **_):
    return [1 / 0 for _ in completions]


def too_few(completions, **_):
    return [1.0] * (len(completions) - 1)


def not_a_number(completions, **_):
    return [float("nan")] * len(completions)


def silent(completions, **_):
    return [None] * len(completions)


def half_silent(completions, **_):
    return [None if number % 2 else 1.0 for number in range(len(completions))]


def a_word(completions, **_):
    return ["good"] * len(completions)


NOT_A_FUNCTION = 3
