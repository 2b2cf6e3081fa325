"""Training runs that take turns: never two at once, every turn timed, and one that fails stops no other."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys

import pytest

from benchmarks.gpu.alternate import COUNT, ROUNDS, STEPS, WARM, Side, alternate
from tests.recipes import ROOT, environment

# Writes when each step ended; an optimizer within an optimizer is one step.
SCRIPT = """
import sys, time, torch
class Two(torch.optim.Optimizer):
    def __init__(self, params):
        super().__init__(params, {})
        self.inner = torch.optim.SGD(self.param_groups[0]["params"], 0.1)
    def step(self):
        self.inner.step()
weight = torch.nn.Parameter(torch.ones(3))
optimizer, times = Two([weight]), []
for step in range(int(sys.argv[2])):
    (weight ** 2).sum().backward()
    optimizer.step()
    times.append(time.time())
    if sys.argv[3] == str(step):
        raise RuntimeError("out of memory")
    time.sleep(0.002)
open(sys.argv[1] + "/times", "w").write(repr(times))
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(SCRIPT, encoding="utf-8")
    return str(path)


@pytest.mark.long
def test_sides_train_by_turns_and_one_that_fails_is_left_out(script, tmp_path, monkeypatch):
    for name, value in environment(OMP_NUM_THREADS="1").items():
        monkeypatch.setenv(name, value)

    def side(name, fails_at=-1, steps=str(STEPS)):
        command = [script, "FOLDER", steps, str(fails_at)]
        return Side(name, command, lambda folder, log: {"times": json.loads((folder / "times").read_text())}, True)

    one, two, failing = side("one"), side("two"), side("failing", WARM + COUNT + 2)
    absent = side("absent", steps="no number")
    alternate([absent, one, failing, two], tmp_path / "work", 100)
    assert "no number" in absent.fault and not absent.turns
    assert "out of memory" in failing.fault and not one.fault and not two.fault
    assert all(len(s.turns) == ROUNDS and all(turn["seconds"] > 0 for turn in s.turns) for s in (one, two))
    assert all("kernels" in s.profiled and "host_waits" in s.profiled for s in (one, two))
    length = WARM + COUNT
    # A turn begins with the second step's end: the first one's gradients were there before it.
    turns = [
        (t[n * length + 1], t[(n + 1) * length - 1], s.name)
        for s in (one, two)
        for t in [s.found["times"]]
        for n in range(ROUNDS)
    ]
    turns.sort()
    assert [name for *_, name in turns] == ["one", "two", "two", "one", "one", "two"]
    assert all(earlier[1] < later[0] for earlier, later in itertools.pairwise(turns)), "two at once"


@pytest.mark.long
def test_a_run_is_killed_before_the_step_that_is_named(script, tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu.turns", str(tmp_path), '{"kill_at": 3}', script, str(tmp_path)]
    done = subprocess.run(
        [*command, "9", "1"], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=100
    )
    assert "out of memory" in done.stderr and done.returncode == 1, "after the second step it was still there"
    done = subprocess.run(
        [*command, "9", "2"], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=100
    )
    assert done.returncode == -signal.SIGKILL and "out of memory" not in done.stderr, "the third step never began"
