"""What this machine is and what is fast on it."""

from __future__ import annotations

import os

from tuner import hardware


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
