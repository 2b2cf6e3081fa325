"""Running a recipe as its user does: a subprocess, its output, its folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
KILLER = ROOT / "tests" / "train" / "killer.py"
# Twelve steps of a 4.5 M model on short real conversations: a second or two of training.
SMALL = [
    "--vocab_size",
    "512",
    "--max_length",
    "256",
    "--max_steps",
    "12",
    "--learning_rate",
    "1e-3",
    "--per_device_train_batch_size",
    "4",
    "--logging_steps",
    "3",
    "--save_steps",
    "4",
    "--eval_strategy",
    "steps",
    "--eval_steps",
    "6",
    "--test_split_size",
    "6",
]
# What of a log line depends on the clock.
TIMED = {"tokens_per_second", "supervised_tokens_per_second", "peak_share", "step_seconds", "train_runtime"}


def environment(**extra: str) -> dict[str, str]:
    """This process's environment without what a launcher left, and never asking the Hub."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "PYTEST_"))}
    return {**kept, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), **extra}


def run_recipe(
    *flags: str | Path, recipe: str = "sft.py", kill_at: str | None = None, timeout: int = 300, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run `recipes/<recipe>` with `flags`, killed with SIGKILL at `kill_at` (see `killer.py`)."""
    killer = [str(KILLER), kill_at] if kill_at else []
    command = [sys.executable, *killer, str(ROOT / "recipes" / recipe), *map(str, flags)]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )


def launch_recipe(processes: int, *flags: str | Path, recipe: str = "sft.py") -> subprocess.CompletedProcess[str]:
    """Run a recipe on so many CPU processes that talk over gloo.

    By torchrun, which is what `accelerate launch` itself calls for several accelerators; on CPUs it wants MPI instead.
    """
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)),
        *(str(ROOT / "recipes" / recipe), *map(str, flags)),
    ]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=500,
        stdin=subprocess.DEVNULL,
    )


def log_of(checkpoint: Path) -> list[dict[str, float]]:
    """A checkpoint's log, without what depends on the clock."""
    history = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [
        {k: v for k, v in entry.items() if k not in TIMED and not k.endswith(("per_second", "runtime"))}
        for entry in history
    ]


def losses_of(folder: Path) -> list[float]:
    """The training losses that a finished run logged."""
    return [loss for _, loss in json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["losses"]]


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, optimizer, schedule and logged losses are equal bit for bit."""
    assert equal(load_file(one / "model.safetensors"), load_file(other / "model.safetensors")), "weights differ"
    last = sorted(one.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))[-1].name
    for name in ("optimizer.pt", "scheduler.pt"):
        assert equal(torch.load(one / last / name), torch.load(other / last / name)), f"{name} differs"
    assert log_of(one / last) == log_of(other / last)


def equal(one: object, other: object) -> bool:
    """Equality that looks into dictionaries, lists and tensors."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return one == other
