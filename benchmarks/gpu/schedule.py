"""Runs checks as processes, each within its own time and all within one budget: a hang costs its own time alone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.ledger import Ledger
from benchmarks.gpu.setting import ROOT, Setting


@dataclass(frozen=True)
class Check:
    """A function of a `Setting`, and its seconds.

    Attributes:
        target: `module:function`.
        seconds: after which it is killed.
        alone: nothing else may run beside it: it is timed.
    """

    name: str
    target: str
    seconds: float
    alone: bool = False


class Schedule:
    """One budget for all checks.

    Args:
        minutes: after which no check starts and those that run are killed.
        jobs: checks at a time, of those that are not `alone`.
        share: of the budget, until those that are not `alone` are killed, so that the others come to their turn.
    """

    def __init__(self, setting: Setting, ledger: Ledger, minutes: float, jobs: int, share: float = 0.55):
        self.setting, self.ledger, self.jobs = setting, ledger, jobs
        self.start = time.monotonic()
        self.end, self.end_together = self.start + 60 * minutes, self.start + 60 * minutes * share

    def run(self, checks: Sequence[Check], first: Check | None = None) -> None:
        """All checks in their order: those together, then those alone; before them `first`, which others read from."""
        self.ledger.expect([check.name for check in [*filter(None, [first]), *checks]])
        if first is not None:
            self.one(first, self.end_together)
        with ThreadPoolExecutor(self.jobs) as pool:
            list(pool.map(lambda check: self.one(check, self.end_together), [c for c in checks if not c.alone]))
        for check in checks:
            if check.alone:
                self.one(check, self.end)

    def one(self, check: Check, end: float) -> None:
        """A process, its result and its seconds; killed with all that it started when its time is over."""
        begun = time.monotonic()
        # A rehearsal runs on a few cores, maybe beside other work.
        allowed = min(check.seconds * (5 if self.setting.device == "cpu" else 1), end - begun)
        if allowed < 1:
            self.ledger.record(check.name, "no time", "the budget was used up", 0.0, "", {})
            return
        number = [entry["name"] for entry in self.ledger.entries].index(check.name)
        result, log = (self.setting.work / f"check-{number}.{ending}" for ending in ("json", "log"))
        command = [sys.executable, "-m", "benchmarks.gpu.one", check.target, str(self.setting.work)]
        command += [self.setting.device, str(int(self.setting.small)), str(result)]
        with log.open("w", encoding="utf-8") as stream:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
                start_new_session=True,
            )  # fmt: skip
            try:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(allowed)
            finally:
                _kill_group(process)
        text = log.read_text(encoding="utf-8", errors="replace")
        seconds = time.monotonic() - begun
        found = _read(result)
        if found is None:
            ended = process.returncode not in (None, -signal.SIGKILL)
            last = " | ".join(line for line in text.splitlines()[-3:] if line.strip())
            how = f"ended with code {process.returncode}" if ended else f"killed after {allowed:.0f} s"
            status = "fail" if ended else "timeout"
            found = {"status": status, "message": f"{how}: {last[-300:]}", "figures": {}}
        self.ledger.record(check.name, found["status"], found["message"], seconds, text, found["figures"])


def environment() -> dict[str, str]:
    """This process's, with the repository to import from, and never asking the Hub."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "PYTEST_"))}
    fixed = {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(paths)}
    return {"OMP_NUM_THREADS": "4", **kept, **fixed}  # many run at a time


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """The process and its children: a launcher that is killed leaves them."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _read(result: Path) -> dict | None:
    try:
        return json.loads(result.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
