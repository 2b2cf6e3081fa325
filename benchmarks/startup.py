"""How long the door takes: `tuner --help`, a recipe's `--help`, and the first step of `make sft`, beside their peers.

Each round runs one of ours and one of theirs: TRL's command line, and transformers' import, which is what any recipe
built on it waits for.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.harness import finish, measure, spread

BIN = Path(sys.executable).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    pairs = {
        "tuner --help / trl --help": ([str(BIN / "tuner"), "--help"], [str(BIN / "trl"), "--help"]),
        "recipes/sft.py --help / trl sft --help": (
            [sys.executable, "recipes/sft.py", "--help"],
            [str(BIN / "trl"), "sft", "--help"],
        ),
    }
    ratios, seconds = {}, {}
    for name, (ours, theirs) in pairs.items():
        runs = [(measure(ours).seconds, measure(theirs).seconds) for _ in range(args.rounds)]
        ratios[name] = spread([a / b for a, b in runs])
        seconds[name] = {"ours": spread([a for a, _ in runs]), "theirs": spread([b for _, b in runs])}
    work = Path(tempfile.mkdtemp())
    config = ["--preset", "tiny", "--max_length", "512", "--max_steps", "1", "--save_strategy", "no"]
    launch = [str(BIN / "accelerate"), "launch", "--quiet", "recipes/sft.py", *config]
    first = [measure([*launch, "--output_dir", str(work / str(i))]).seconds for i in range(3)]
    shutil.rmtree(work)
    seconds["recipes/sft.py --preset tiny with one step, report included"] = spread(first)
    finish("startup", ratios, seconds=seconds)


if __name__ == "__main__":
    main()
