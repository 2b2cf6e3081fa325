"""What tests share: real conversations in a file, and a heap of imports that is not searched for garbage."""

import gc
import json
import os
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


def pytest_collection_finish() -> None:
    """What is imported by now stays: no collection goes through it again, the ones at exit neither."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """What a library that a test imports sets in the environment is not there in the next."""
    with patch.dict(os.environ):
        yield


@pytest.fixture(scope="session")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 short conversations of `builtin:chitchat` as JSON lines."""
    from tuner.data.sources import load_splits

    train, _ = load_splits("builtin:chitchat")
    short = [row for row in train.select(range(1500)) if len(row["messages"]) < 12][:120]
    path = tmp_path_factory.mktemp("data") / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": row["messages"]}) + "\n" for row in short), encoding="utf-8")
    return path
