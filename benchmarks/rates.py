"""Learning rates: the loss that each objective's tiny configuration ends with, by optimizer and rate.

As many at a time as there are cores, with one thread each.

    make bench-rates                                     # all six
    make bench-rates ARGS="--objectives mlm --steps 300"
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.harness import ROOT, finish
from benchmarks.objectives import run
from tuner.objectives.registry import PRETRAINING as OBJECTIVES

RUNS = ROOT / "runs" / "rates"
TRIED = [("adamw_torch_fused", rate) for rate in ("1e-3", "3e-3")]
TRIED += [("muon", rate) for rate in ("1e-3", "3e-3", "1e-2")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objectives", nargs="+", choices=list(OBJECTIVES), default=list(OBJECTIVES))
    parser.add_argument("--steps", type=int, help="instead of the configuration's own number")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time, with one thread each")
    args = parser.parse_args()
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = {(name, *how): pool.submit(loss, name, *how, args.steps) for name in args.objectives for how in TRIED}
    tried = [f"{optim} {rate}" for optim, rate in TRIED]
    losses = {name: [runs[name, *how].result() for how in TRIED] for name in args.objectives}
    table = Table("objective", *tried)
    for name, found in losses.items():
        table.add_row(name, *(f"[bold]{value:.3f}" if value == min(found) else f"{value:.3f}" for value in found))
    Console().print("Loss on the validation documents:", table)
    finish("rates", {}, tried=tried, losses=losses, steps=args.steps)


def loss(name: str, optim: str, rate: str, steps: int | None) -> float:
    """The validation loss of one run, that begins anew."""
    folder = RUNS / f"{name}-{optim}-{rate}"
    shutil.rmtree(folder, ignore_errors=True)
    flags = f"--optim {optim} --learning_rate {rate} --eval_on_start false --eval_strategy no --save_strategy no"
    if steps is not None:
        flags += f" --max_steps {steps}"
    return float(run(name, folder, flags.split())["eval"]["loss"])


if __name__ == "__main__":
    main()
