"""Running a recipe as its user does: a subprocess, its output, its folder."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.processes import ROOT, Forked, environment, run_fresh, run_python, run_together

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
# A model whose steps take no time, where a test is not about what it learns.
NANO = [
    "--config_overrides",
    "hidden_size=64,num_hidden_layers=2,num_attention_heads=2,num_key_value_heads=1,intermediate_size=128",
]
# What of a log line depends on the clock.
TIMED = {"tokens_per_second", "supervised_tokens_per_second", "peak_share", "step_seconds", "train_runtime"}


def run_recipe(
    *flags: str | Path,
    recipe: str = "sft.py",
    kill_at: str | None = None,
    timeout: float = 300,
    fresh: bool = False,
    **env: str,
) -> subprocess.CompletedProcess[str]:
    """Run `recipes/<recipe>` with `flags`, killed with SIGKILL at `kill_at` (see `killer.py`).

    Args:
        fresh: by a new interpreter, not by a fork of one that has the imports behind it.
    """
    killer = [KILLER, kill_at] if kill_at else []
    run = run_fresh if fresh else run_python
    return run(*killer, ROOT / "recipes" / recipe, *flags, timeout=timeout, **env)


def start_recipe(*flags: str | Path, recipe: str = "sft.py") -> Forked:
    """A recipe that runs while the test goes on."""
    return Forked([str(ROOT / "recipes" / recipe), *map(str, flags)], environment())


def launch_recipe(
    processes: int, *flags: str | Path, recipe: str = "sft.py", fresh: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run a recipe on so many CPU processes that talk over gloo.

    Args:
        fresh: by torchrun, which is what `accelerate launch` itself calls for several accelerators; on CPUs it wants
            MPI instead.
    """
    script = ROOT / "recipes" / recipe
    if not fresh:
        return run_together(processes, script, *flags, timeout=500)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes))
    return run_fresh(*torchrun, script, *flags, timeout=500, OMP_NUM_THREADS="1")


def log_of(checkpoint: Path) -> list[dict[str, float]]:
    """A checkpoint's log, without what depends on the clock."""
    history = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [
        {k: v for k, v in entry.items() if k not in TIMED and not k.endswith(("per_second", "runtime"))}
        for entry in history
    ]


def metrics_of(folder: Path) -> dict[str, Any]:
    """What a finished run wrote of itself."""
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def losses_of(folder: Path) -> list[float]:
    """The training losses that a finished run logged."""
    return _logged(folder, "loss")


def eval_losses_of(folder: Path) -> list[float]:
    """The validation losses that a finished run logged; the first of them is the untrained model's."""
    return _logged(folder, "eval_loss")


def eval_loss_of(folder: Path) -> float:
    """The validation loss of a finished run."""
    return eval_losses_of(folder)[-1]


def untrained_loss_of(folder: Path) -> float:
    """The validation loss before the first step."""
    return eval_losses_of(folder)[0]


def _logged(folder: Path, name: str) -> list[float]:
    return [entry[name] for entry in metrics_of(folder)["log"] if name in entry]


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
