"""Checks that go wrong in every way that one can, and one that does not."""

import os
import subprocess
import time

from benchmarks.gpu.setting import Finding, Skipped


def works(setting):
    return Finding("as it should | be", {"tables": {"Figures": [{"what": "tokens/s", "value": 3}]}})


def skips(setting):
    raise Skipped("no such kernel here")


def raises(setting):
    raise RuntimeError("out of\nmemory")


def dies(setting):
    print("the last words", flush=True)
    os._exit(3)


def hangs(setting):
    """With a child, which must not stay behind."""
    child = subprocess.Popen(["sleep", "600"])
    (setting.work / "child").write_text(str(child.pid), encoding="utf-8")
    time.sleep(600)
