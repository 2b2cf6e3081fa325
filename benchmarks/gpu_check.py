"""What only a GPU can answer, in one command of a few minutes: is it right there, is it exact, how fast is it.

Every check is a process with a time of its own; results are written after each one. Without a GPU the same checks run
on the CPU in tiny sizes, as a rehearsal. What each does and how to read the table: docs/gpu.md.

    make gpu-check
    python benchmarks/gpu_check.py --minutes 8 --output results --docs docs/gpu.md
    python benchmarks/gpu_check.py --only logits resume
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.gpu.ledger import Ledger
from benchmarks.gpu.schedule import Check, Schedule
from benchmarks.gpu.setting import Setting
from benchmarks.harness import RESULTS, ROOT

HERE = "benchmarks.gpu"
# The most important first, with those that take long; the seconds are a limit and not an estimate.
PREPARE = Check("prepare", f"{HERE}.recipes:prepare", 120)
CHECKS = [
    Check("logits", f"{HERE}.parity:logits", 90),
    Check("packed rows", f"{HERE}.parity:packed", 120),
    Check("resume", f"{HERE}.recipes:resume", 150),
    Check("torch_compile", f"{HERE}.recipes:compiled", 180),
    Check("resume, full_determinism", f"{HERE}.recipes:resume_deterministic", 150),
    Check("reward model and PPO", f"{HERE}.methods:rewards", 150),
    Check("PPO by groups, of an adapter", f"{HERE}.methods:groups", 150),
    Check("LoRA and preferences", f"{HERE}.methods:adapters", 150),
    Check("heads and seq2seq", f"{HERE}.methods:heads", 150),
    Check("flex_attention", f"{HERE}.recipes:flex", 150),
    Check("fp16", f"{HERE}.recipes:fp16", 90),
    Check("python recipes/sft.py", f"{HERE}.recipes:plain", 90),
    Check("accelerate launch", f"{HERE}.recipes:launched", 90),
    Check("accelerate launch --config_file", f"{HERE}.recipes:launched_with_file", 90),
    Check("dtype bfloat16", f"{HERE}.recipes:half", 90),
    Check("chunked loss", f"{HERE}.parity:loss", 60),
    Check("gradients twice", f"{HERE}.repeat:operations", 90),
    Check("muon", f"{HERE}.recipes:muon", 90),
    Check("activation_checkpointing", f"{HERE}.recipes:checkpointed", 90),
    Check("objectives", f"{HERE}.recipes:objectives", 120),
    Check("chat and generate", f"{HERE}.recipes:talk", 90),
    Check("peak", f"{HERE}.speed:peak", 40, alone=True),
    Check("fine-tuning", f"{HERE}.speed:sft", 200, alone=True),
    Check("pretraining", f"{HERE}.speed:pretraining", 180, alone=True),
    Check("kernels", f"{HERE}.kernels:kernels", 45, alone=True),
    Check("generation", f"{HERE}.speed:generation", 90, alone=True),
    Check("continuous batching", f"{HERE}.methods:continuous", 60, alone=True),
]
LIBRARIES = ("torch", "transformers", "trl", "accelerate", "liger-kernel", "flash-attn", "triton")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="for all checks together (default: 8 on a card, 40 without)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for gpu.json, gpu.md and log.txt")
    parser.add_argument("--docs", type=Path, help="Markdown file whose table is replaced")
    parser.add_argument("--only", nargs="+", choices=[check.name for check in CHECKS], help="which checks")
    parser.add_argument("--jobs", type=int, help="checks at a time (default: 8 on a card, 2 without)")
    parser.add_argument("--commit", help="what is measured, where there is no git")
    args = parser.parse_args()
    on_card = torch.cuda.is_available()
    ledger = Ledger(args.output, about(args.commit), args.docs)
    print(", ".join(f"{name} {value}" for name, value in ledger.about.items()), flush=True)
    if not on_card:
        print("No GPU: a rehearsal on the CPU in tiny sizes. Its figures say nothing.", flush=True)
    with tempfile.TemporaryDirectory() as work:
        setting = Setting(Path(work), "cuda" if on_card else "cpu", small=not on_card)
        schedule = Schedule(setting, ledger, args.minutes or (8 if on_card else 40), args.jobs or (8 if on_card else 2))
        schedule.run([check for check in CHECKS if not args.only or check.name in args.only], first=PREPARE)
    print(f"\n{ledger.markdown()}\nWritten to {args.output}: gpu.json, gpu.md, log.txt", flush=True)
    if ledger.failed:
        sys.exit(f"Failed: {', '.join(ledger.failed)}")


def about(commit: str | None) -> dict[str, str]:
    """What is measured on: card, driver, versions, date and commit."""
    card = _output("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    versions = {"python": platform.python_version(), "cuda": str(torch.version.cuda)}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    found = {"card": card or "none: a rehearsal on the CPU", **versions}
    found["date"] = datetime.datetime.now(datetime.UTC).date().isoformat()
    found["commit"] = commit or _output("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD") or "unknown"
    return found


def _output(*command: str) -> str:
    """What a command prints, or nothing where there is no such command or it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip().replace("\n", "; ")
    except (OSError, subprocess.TimeoutExpired):
        return ""


if __name__ == "__main__":
    main()
