"""Several training runs that take turns on one card, as processes that prepare beside each other (see `turns.py`)."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.setting import ROOT

ROUNDS = 3
LOGGED = 5  # steps a line of the log
WARM, COUNT = LOGGED, 2 * LOGGED
STEPS = ROUNDS * (WARM + COUNT) + LOGGED  # the last few are profiled


@dataclass
class Side:
    """One way to train.

    Attributes:
        command: without the interpreter.
        read: from the run's folder and log, of each timed turn its tokens and supervised tokens, and the losses.
        profile: whether single steps are looked into after the last round.
        turns: what each turn found.
        fault: why there is nothing, where it failed.
    """

    name: str
    command: list[str]
    read: Callable[[Path, str], dict[str, Any]]
    profile: bool = False
    turns: list[dict[str, Any]] = field(default_factory=list)
    profiled: dict[str, Any] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)
    fault: str = ""
    process: Any = None


def alternate(sides: list[Side], work: Path, patience: float) -> None:
    """Let the sides train by turns, in the opposite order every other round, and read what they found.

    Args:
        patience: seconds that a side may take to be ready, or for a turn.
    """
    for number, side in enumerate(sides):
        _start(side, _folder(work, number))
    for turn in range(ROUNDS + 1):
        order = list(enumerate(sides))
        for number, side in order if turn % 2 == 0 else order[::-1]:
            folder = _folder(work, number)
            for other_number, other in order:  # who still prepares would disturb
                if not other.fault:
                    _appears(other, _folder(work, other_number) / f"ready-{turn}", patience)
            if side.fault:
                continue
            (folder / f"go-{turn}").touch()
            if _appears(side, folder / f"done-{turn}.json", patience):
                found = json.loads((folder / f"done-{turn}.json").read_text(encoding="utf-8"))
                if turn < ROUNDS:
                    side.turns.append(found)
                else:
                    side.profiled = found
    for number in range(len(sides)):
        (_folder(work, number) / f"go-{ROUNDS + 1}").touch()
    for number, side in enumerate(sides):
        _finish(side, _folder(work, number), patience)


def _folder(work: Path, number: int) -> Path:
    return work / f"side-{number}"


def _start(side: Side, folder: Path) -> None:
    folder.mkdir(parents=True)
    options = {"rounds": ROUNDS, "warm": WARM, "count": COUNT, "profile": side.profile}
    command = [sys.executable, "-m", "benchmarks.gpu.turns", str(folder), json.dumps(options), *side.command]
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        side.process = subprocess.Popen(
            [word.replace("FOLDER", str(folder)) for word in command], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log,
            stderr=log,
        )  # fmt: skip


def _appears(side: Side, path: Path, patience: float) -> bool:
    """Wait for a side's file; one that ends or takes too long is out."""
    end = time.monotonic() + patience
    while not path.exists():
        if side.process.poll() is not None or time.monotonic() > end:
            how = "too slow" if side.process.returncode is None else f"ended with {side.process.returncode}"
            side.fault = f"{how} before {path.name}: {_last_lines(path.parent)}"
            side.process.kill()
            side.process.wait()
            return False
        time.sleep(0.01)
    return True


def _finish(side: Side, folder: Path, patience: float) -> None:
    log = folder / "log.txt"
    if not side.fault:
        try:
            side.process.wait(patience)
            if side.process.returncode:
                side.fault = f"ended with {side.process.returncode}: {_last_lines(folder)}"
            else:
                side.found = side.read(folder, log.read_text(encoding="utf-8"))
        except subprocess.TimeoutExpired:
            side.fault = f"did not end: {_last_lines(folder)}"
            side.process.kill()
            side.process.wait()
    print(f"----- {side.name}\n{log.read_text(encoding='utf-8', errors='replace')[-3000:]}", flush=True)


def _last_lines(folder: Path) -> str:
    lines = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    return " | ".join(line for line in lines[-3:] if line.strip())[-300:]
