"""Whatever happens to a check, its result is put down, the files are whole, and the others run."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import psutil
import pytest

from benchmarks.gpu.ledger import BEGIN, END, Ledger
from benchmarks.gpu.schedule import Check, Schedule
from benchmarks.gpu.setting import Setting
from tests.recipes import ROOT, environment

FAULTY = "tests.gpu.faulty"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The results of one run of every kind of check, and the folders it worked in."""
    work, output = (tmp_path_factory.mktemp(name) for name in ("work", "output"))
    docs = output / "page.md"
    docs.write_text(f"before\n{BEGIN}\nan old table\n{END}\nafter\n", encoding="utf-8")
    ledger = Ledger(output, {"card": "none"}, docs)
    checks = [Check(name, f"{FAULTY}:{name}", 60) for name in ("raises", "dies", "skips", "works")]
    checks.insert(1, Check("hangs", f"{FAULTY}:hangs", 1.0))
    checks += [Check("no such check", f"{FAULTY}:absent", 60), Check("last", f"{FAULTY}:works", 60, alone=True)]
    Schedule(Setting(work, "cpu", small=True), ledger, minutes=5, jobs=7).run(checks)
    return ledger, work, output


@pytest.mark.slow
def test_every_result_is_in_the_json(results):
    ledger, _, output = results
    found = {entry["name"]: entry for entry in json.loads((output / "gpu.json").read_text())["checks"]}
    statuses = {name: entry["status"] for name, entry in found.items()}
    assert statuses == {
        **{"raises": "fail", "hangs": "timeout", "dies": "fail", "skips": "skip", "works": "pass"},
        **{"no such check": "fail", "last": "pass"},
    }
    assert "out of" in found["raises"]["message"] and "the last words" in found["dies"]["message"]
    assert found["skips"]["message"] == "no such kernel here"
    assert ledger.failed == ["raises", "hangs", "dies", "no such check"]


@pytest.mark.slow
def test_the_table_has_a_row_for_each_and_replaces_the_one_in_the_docs(results):
    _, _, output = results
    table = (output / "gpu.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")]
    assert ["| raises", "fail"] in [row[:2] for row in rows] and "out of memory" in table
    assert "| works | pass |" in table and "as it should / be" in table, "a bar in a message is no column"
    assert "| tokens/s | 3 |" in table
    assert (output / "page.md").read_text(encoding="utf-8") == f"before\n{BEGIN}\n{table}{END}\nafter\n"


def test_what_a_check_started_does_not_outlive_it(results):
    _, work, _ = results
    pid = int((work / "child").read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_without_time_nothing_starts(tmp_path):
    ledger = Ledger(tmp_path, {})
    Schedule(Setting(tmp_path, "cpu", small=True), ledger, minutes=0, jobs=1).run(
        [Check("works", f"{FAULTY}:works", 60)], first=Check("first", f"{FAULTY}:works", 60)
    )
    assert [entry["status"] for entry in ledger.entries] == ["no time", "no time"]


@pytest.mark.slow
@pytest.mark.skipif("CUDA_VISIBLE_DEVICES" in os.environ, reason="asks for the rehearsal")
def test_a_rehearsal_writes_whole_files(tmp_path):
    """The script itself, with its cheapest checks."""
    command = [sys.executable, "benchmarks/gpu_check.py", "--only", "chunked loss", "--output", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1"), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert [entry["status"] for entry in result["checks"]] == ["pass", "pass"]
    assert result["about"]["card"] == "none: a rehearsal on the CPU" and result["about"]["torch"]
    assert "| chunked loss | pass |" in (tmp_path / "gpu.md").read_text(encoding="utf-8")
