"""Every pretraining objective beside its baselines, on the validation documents of real text.

Each is trained by its tiny configuration with the flags of `LONGER`, under three quarters of an hour on two cores; as
many at a time as there are cores, with one thread each, which is more steps an hour than one run of many threads. What
a run prints is in its folder's `log.txt`; other flags have another folder. A run that was stopped goes on where it was;
one that is done is evaluated again.

    make eval-pretrain                                   # all six
    make eval-pretrain ARGS="--objectives clm mlm --seeds 42 43 44 --flags --max_steps 100"
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.harness import ROOT
from tuner.evaluation.report import show_comparison
from tuner.objectives.records import Comparison
from tuner.objectives.registry import PRETRAINING as OBJECTIVES

RUNS = ROOT / "runs" / "eval-pretrain"
MINILM, ADAMW = "--model_name_or_path builtin:minilm-l6", "--optim adamw_torch_fused"
# Batches, steps and rates found by measurement (docs/pretraining.md). The longest begin first.
LONGER = {
    "mlm+nsp": f"{MINILM} --learning_rate 1e-3 --per_device_train_batch_size 32 --max_steps 900",
    "rtd": f"{MINILM} {ADAMW} --learning_rate 5e-4 --per_device_train_batch_size 32 --max_steps 450",
    "contrastive": (
        f"{MINILM} {ADAMW} --learning_rate 1e-4 --per_device_train_batch_size 128 --max_length 64 --max_steps 300"
    ),
    "clm": "--learning_rate 5e-3 --per_device_train_batch_size 16 --max_steps 1000",
    "mlm": "--learning_rate 3e-3 --per_device_train_batch_size 32 --max_steps 1200",
    "denoise": "--learning_rate 3e-3 --per_device_train_batch_size 64 --max_steps 3000",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objectives", nargs="+", choices=list(OBJECTIVES), default=list(OBJECTIVES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[42], help="one run of each objective for each")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time, with one thread each")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="more flags of recipes/pretrain.py")
    args = parser.parse_args()
    chosen = [name for name in LONGER if name in args.objectives]
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = {(name, seed): pool.submit(train, name, seed, args.flags) for name in chosen for seed in args.seeds}
    for name in (name for name in OBJECTIVES if name in chosen):
        show_comparison(together([runs[name, seed].result() for seed in args.seeds]), name)


def train(name: str, seed: int, flags: list[str]) -> Comparison:
    """Run one objective to its end; its comparison."""
    evaluated = "--test_split_size 0.05 --eval_on_start true --eval_strategy steps --eval_steps 500 --save_steps 500"
    own = f"--seed {seed} {evaluated} {LONGER[name]}"
    more = "-".join(flag.strip("-").replace("/", "-") for flag in flags)
    more = more if len(more) < 200 else hashlib.sha256(more.encode()).hexdigest()
    folder = RUNS / "-".join(filter(None, [name, str(seed), more]))
    comparison: Comparison = run(name, folder, [*own.split(), *flags])["comparison"]
    return comparison


def run(name: str, folder: Path, flags: list[str]) -> dict[str, Any]:
    """Train by an objective's tiny configuration, on one thread; its `metrics.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "recipes/pretrain.py", "--config", f"recipes/configs/pretrain/{name}-tiny.yaml"]
    command += ["--output_dir", str(folder), *flags]
    print(f"begun: {' '.join(command[1:])}", flush=True)
    start = time.monotonic()
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
        code = subprocess.run(
            command, cwd=ROOT, env=one_thread, stdout=log, stderr=subprocess.STDOUT, check=False
        ).returncode
    if code:
        sys.exit(f"{folder.name} ended with {code}: see {folder / 'log.txt'}")
    print(f"{folder.name}: {(time.monotonic() - start) / 60:.0f} minutes", flush=True)
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return metrics


def together(found: list[Comparison]) -> Comparison:
    """The mean over seeds, and with several also the smallest and largest of the trained model."""
    merged = {
        metric: {who: mean(run[metric][who] for run in found) for who in values} for metric, values in found[0].items()
    }
    if len(found) > 1:
        for metric, values in merged.items():
            trained = [run[metric]["trained"] for run in found]
            values |= {"smallest": min(trained), "largest": max(trained)}
    return merged


if __name__ == "__main__":
    main()
