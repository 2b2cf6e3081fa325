"""A server of `tuner feedback` in a process of its own, and pairs to ask about."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.processes import ROOT, environment

# The command in a process that writes down every address that it looks up or connects to.
WATCHED = """
import sys
out = open(sys.argv.pop(1), "a", buffering=1)
def watch(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"):
        print(event, args[1] if event == "socket.connect" else args[0], file=out)
sys.addaudithook(watch)
from tuner.cli import main
main(sys.argv[1:])
"""


class Served:
    """A running server. `args` are those of `tuner feedback`; it takes a free port."""

    def __init__(self, folder: Path, *args: str | Path):
        self.addresses = folder / "addresses.txt"
        words = [sys.executable, "-c", WATCHED, self.addresses, "feedback", *args, "--port", "0"]
        env = environment(HF_HUB_OFFLINE="0")  # nothing is asked for because nothing is to be asked for
        self.process = subprocess.Popen(list(map(str, words)), cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
        self.said = ""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said += line
            if line.startswith("http://"):
                break
        else:
            raise AssertionError(self.said)
        self.url, _, self.token = line.split()[0].partition("?token=")
        self.client = httpx.Client(timeout=30, headers={"Authorization": f"Bearer {self.token}"} if self.token else {})

    def call(self, name: str, *data: Any) -> Any:
        """What an endpoint of the page returns: said, progress, prompt, cards, choice, edit, pair."""
        found = self.client.post(f"{self.url}gradio_api/run/{name}", json={"data": data})
        assert found.status_code == 200, found.text
        return found.json()["data"]

    def next(self, name: str, *data: Any) -> int | None:
        """The pair that is shown after a call."""
        said, *_, pair = self.call(name, *data)[:7]
        assert said == "", said
        return pair

    def end(self, signal_number: int = signal.SIGKILL) -> int:
        os.kill(self.process.pid, signal_number)
        return self.process.wait(30)


def write_pairs(path: Path, count: int) -> Path:
    rows = [
        {"prompt": f"Which, {n}?", "chosen": f"This one, {n}.", "rejected": f"The other, {n}."} for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with 40 pairs, the first of which tries what a text might."""
    folder = tmp_path_factory.mktemp("served")
    pairs = write_pairs(folder / "pairs.jsonl", 40)
    _, *others = pairs.read_text(encoding="utf-8").splitlines()
    first = {"prompt": HOSTILE, "chosen": f"one {HOSTILE}", "rejected": f"two {HOSTILE}"}
    pairs.write_text("\n".join([json.dumps(first), *others]), encoding="utf-8")
    rules = folder / "rules.md"
    rules.write_text("# Rules\n\nPrefer what is **true**.", encoding="utf-8")
    server = Served(folder, "--prompts", pairs, "--output", folder / "f.sqlite", "--guidelines", rules)
    yield server
    server.end()


HOSTILE = """<img src=x onerror="document.title='taken'"><script>document.title='taken'</script> **bold** # [a](http://a.example)
&amp; ${document.title='taken'} {{value}} \\n `code` <b>x</b>"""
