"""Runs a training script that trains only when it is its turn, so that several are timed alternately in one minute.

`turns.py FOLDER OPTIONS_JSON SCRIPT ARGUMENTS...`: the script prepares beside others; its first step waits for a lock;
then it waits before each turn, a fixed number of steps, until `FOLDER/go-N` is there, and writes the turn's seconds and
memory to `FOLDER/done-N.json`. Steps are seen through the optimizer, so any script will do. OPTIONS: `rounds`, `warm`
(steps of a turn before the clock), `count` (those it times), `profile` (one more turn, of single steps), `kill_at` (the
process kills itself with SIGKILL before that step, counted from 1).
"""

from __future__ import annotations

import fcntl
import json
import os
import runpy
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from benchmarks.gpu.setting import synchronize
from benchmarks.gpu.step_profile import HostWaits, StepProfile

# Steps that a profiled turn takes: one to get going, one under the profiler, one that counts waits.
PROFILED = 3


class Turns:
    """Hooks around every optimizer's step."""

    def __init__(
        self, folder: Path, rounds: int = 0, warm: int = 0, count: int = 1, profile: bool = False, kill_at: int = 0
    ):
        self.folder, self.rounds, self.warm, self.count = folder, rounds, warm, count
        self.profile, self.kill_at = profile, kill_at
        self.step = self.depth = 0
        self.started, self.lock, self.watch = 0.0, None, None

    def install(self) -> None:
        """For this process."""
        register_optimizer_step_pre_hook(self.before)
        register_optimizer_step_post_hook(self.after)
        if not self.rounds:
            return
        make = torch.optim.Optimizer.__init__

        def locked(*args: Any, **kwargs: Any) -> None:
            # All activations of a first step together would not fit on a card.
            if self.lock is None:
                self.lock = (self.folder.parent / "first").open("w")
                fcntl.flock(self.lock, fcntl.LOCK_EX)
            make(*args, **kwargs)

        torch.optim.Optimizer.__init__ = locked

    def before(self, *_: Any) -> None:
        """Gradients are there, weights are not changed yet."""
        self.depth += 1
        if self.depth > 1:  # an optimizer within one
            return
        if self.kill_at and self.step + 1 == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        turn, place = divmod(self.step, self.warm + self.count)
        if self.rounds and turn <= self.rounds and place == 0:
            self._wait(turn)
        if self.rounds and self.step == self._profile_begins() + PROFILED:
            self._wait(self.rounds + 1)  # until all are ready: what follows the last step would disturb them

    def after(self, *_: Any) -> None:
        """A step is done; on a card it may still run."""
        self.depth -= 1
        if self.depth:
            return
        self.step += 1
        turn, place = divmod(self.step - 1, self.warm + self.count)
        if turn < self.rounds:
            if place == self.warm - 1:
                synchronize()
                self.started = time.perf_counter()
            elif place == self.warm + self.count - 1:
                synchronize()
                self._done(turn, {"seconds": time.perf_counter() - self.started, **_memory()})
        elif self.rounds:
            self._profiled(self.step - self._profile_begins())

    def _profile_begins(self) -> int:
        return self.rounds * (self.warm + self.count)

    def _profiled(self, step: int) -> None:
        """Starts or ends what is watched after the first, second and third step of the last turn."""
        if not self.profile:
            if step == PROFILED:
                self._done(self.rounds, {})
        elif step == 1:
            self.watch = StepProfile()
        elif step == 2:
            self.found = self.watch.stop()
            self.watch = HostWaits()
        elif step == PROFILED:
            self._done(self.rounds, {**self.found, **self.watch.stop()})

    def _wait(self, turn: int) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        if self.lock is not None:
            self.lock.close()
        (self.folder / f"ready-{turn}").touch()
        parent = os.getppid()
        while not (self.folder / f"go-{turn}").exists():
            if os.getppid() != parent:
                sys.exit("whose turn it is nobody says any more")
            time.sleep(0.005)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def _done(self, turn: int, found: dict[str, Any]) -> None:
        path = self.folder / f"done-{turn}.json"
        aside = path.with_suffix(".new")
        aside.write_text(json.dumps(found), encoding="utf-8")
        aside.rename(path)


def _memory() -> dict[str, float]:
    """MiB at the peak since the turn began."""
    if not torch.cuda.is_available():
        return {}
    allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return {"allocated": allocated / 2**20, "reserved": reserved / 2**20}


if __name__ == "__main__":
    turns = Turns(Path(sys.argv[1]), **json.loads(sys.argv[2]))
    turns.install()
    sys.argv = sys.argv[3:]
    sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))
    runpy.run_path(sys.argv[0], run_name="__main__")
