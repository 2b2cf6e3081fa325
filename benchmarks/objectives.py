"""Every pretraining objective beside its baselines, on the validation documents of real text.

Each objective is trained by its tiny configuration (a run that was stopped goes on where it was), and its report is
shown again at the end, one table an objective.

    make eval-pretrain                                   # all six
    make eval-pretrain ARGS="--objectives clm mlm --flags --max_steps 100"
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.harness import ROOT
from tuner.evaluation.pretraining import show_comparison
from tuner.train.objectives import OBJECTIVES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objectives", nargs="+", choices=list(OBJECTIVES), default=list(OBJECTIVES))
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="more flags of recipes/pretrain.py")
    args = parser.parse_args()
    for objective in args.objectives:
        config = f"recipes/configs/pretrain/{objective}-tiny.yaml"
        command = [sys.executable, "recipes/pretrain.py", "--config", config, *args.flags]
        print(f"\n{' '.join(command[1:])}", flush=True)
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            sys.exit(1)
    for objective in args.objectives:
        metrics = json.loads((ROOT / f"runs/pretrain/{objective}-tiny/metrics.json").read_text(encoding="utf-8"))
        show_comparison(metrics["comparison"], objective)


if __name__ == "__main__":
    main()
