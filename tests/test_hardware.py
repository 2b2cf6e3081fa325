"""What this machine is and what is fast on it: memory that is kept, and given back."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from tuner import hardware


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks for glibc")
def test_what_the_allocator_keeps_is_given_back_where_it_has_doubled():
    program = """
import psutil, torch
from tuner.hardware import KeptMemory, keep_freed_memory
keep_freed_memory()
kept, seen = KeptMemory(), []
def step(megabytes):
    torch.ones(megabytes * 2**18)
    seen.append(psutil.Process().memory_info().rss >> 20)
    kept.check()
    seen.append(psutil.Process().memory_info().rss >> 20)
for size in (40, 40, 40, 900, 900, 900, 900):
    step(size)
print(*seen)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=100)
    sizes = [int(word) for word in done.stdout.split()]
    before, after = sizes[::2], sizes[1::2]
    assert before[3] > 2 * before[2] and after[3] < before[3] - 800, "it had doubled"
    assert all(after[step] > before[step] - 100 for step in (0, 1, 2, 4, 5, 6)), "it takes that much now"


def test_cores_where_the_system_does_not_say(monkeypatch):
    """macOS and Windows have no `os.sched_getaffinity`."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert hardware.cpu_cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert hardware.cpu_cores() == 1


def test_the_machine_has_memory_and_cores():
    assert hardware.cpu_cores() >= 1
    assert hardware.memory_bytes() > 2**28
