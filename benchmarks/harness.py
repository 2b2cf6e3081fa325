"""Two sides of one comparison, run alternately as whole processes, and the ratio of their figures.

Machines are noisy: a figure is a ratio of two runs next to each other, quoted as the median over the rounds with its
smallest and largest. An absolute time is printed to be looked at, not to be kept.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import threading
import time
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PEERS = ROOT / "benchmarks" / ".peers"


@dataclass
class Measured:
    """One run of one side: what it printed as JSON on its last line, its seconds and its peak memory in MiB."""

    data: dict[str, Any]
    seconds: float
    peak_mib: float


def own_python(name: str, packages: list[str]) -> str:
    """The interpreter of one side's own environment, made when it is not there, under the project's constraints.

    Ours has one too: `make install` adds what tests and extras need, and importing that costs time and memory.
    """
    folder = PEERS / name
    python = folder / "bin" / "python"
    stamp = folder / ".installed"
    wanted = "\n".join([*packages, *((ROOT / file).read_text() for file in ("constraints.txt", "pyproject.toml"))])
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"installing {' '.join(packages)} into {folder.relative_to(ROOT)}", flush=True)
        venv.create(folder, with_pip=True)
        constraints = ["-c", str(ROOT / "constraints.txt")]
        subprocess.run([python, "-m", "pip", "install", "-qq", *constraints, *packages], check=True)
        stamp.write_text(wanted)
    return str(python)


def measure(command: list[str], **environment: str) -> Measured:
    """Run a command to its end; its peak memory is what the kernel accounts for the process and what it waited for."""
    start = time.perf_counter()
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1", **environment}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        errors: list[str] = []
        drain = threading.Thread(target=lambda: errors.extend(process.stderr or []))
        drain.start()
        lines = [line for line in process.stdout or [] if line.strip()]
        drain.join()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{''.join(errors[-40:])}")
    return Measured(last_json(lines), time.perf_counter() - start, usage.ru_maxrss / 1024)


def last_json(lines: list[str]) -> dict[str, Any]:
    """The last line that is a JSON object, or nothing."""
    for line in reversed(lines):
        try:
            return dict(json.loads(line))
        except (ValueError, TypeError):  # a log line for people
            continue
    return {}


def spread(ratios: list[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": round(statistics.median(ratios), 3), "min": round(min(ratios), 3), "max": round(max(ratios), 3)}


def finish(name: str, ratios: dict[str, dict[str, float]], **more: Any) -> None:
    """Print the ratios, write `results/<name>.json`, and end with that JSON on one line."""
    versions = {p: importlib.metadata.version(p) for p in ("torch", "transformers", "tuner")}
    result = {"bench": name, "ratios": ratios, "versions": {**versions, **more.pop("versions", {})}, **more}
    for what, values in ratios.items():
        print(f"{what:45s} median {values['median']:.2f}  ({values['min']:.2f} to {values['max']:.2f})")
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result), flush=True)
