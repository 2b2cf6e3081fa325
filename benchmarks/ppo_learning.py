"""What PPO makes of the same small model with the same reward model: ours beside TRL 1.12's, over several seeds.

The policy is the fine-tuned model of `make ladder` as a Qwen3, the reward model a copy of it that learnt by
`recipes/reward.py` which of two sentences is more positive, so that TRL's, whose reward reads the policy's tokens, can
use it too. Both sides have the same prompts, settings and number of completions. Reward against divergence is compared
where both are: at the smaller of the two last divergences, each read off its own curve.

    make ladder && make bench-ppo-learning
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np

from benchmarks.harness import ROOT, finish, measure, own_python, spread
from benchmarks.ppo import PEER

SIZE, TOKENS, LONGEST = 64, 32, 64
# The means of so many updates are a point of a curve: of one update they are noise.
WINDOW = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, default=ROOT / "runs/sft/ladder", help="the policy (default: of `make ladder`)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--reward_steps", type=int, default=200, help="optimizer steps of the reward model")
    args = parser.parse_args()
    own, peer = own_python("tuner-eval", ["-e", ".[demo,eval]"]), own_python("trl", PEER)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as work:
        model, reward, prompts = prepare(own, args.model, Path(work), args.reward_steps)
        for seed in args.seeds:
            ours, theirs = Path(work) / f"ours-{seed}", Path(work) / f"theirs-{seed}"
            curves = {
                "ours": run_ours(own, model, reward, Path(work), ours, seed, args),
                "TRL": run_theirs(peer, model, reward, prompts, theirs, seed, args),
            }
            matched = at_matched_kl(curves)
            print(f"seed {seed}: {matched}", flush=True)
            ends = compare(own, model, reward, Path(work), {"ours": ours, "TRL": theirs})
            found.append({"seed": seed, "matched": matched, "ends": ends, "curves": curves})
            print(f"  {ends}", flush=True)
    difference = [one["matched"]["ours"] - one["matched"]["TRL"] for one in found]
    print("at matched KL, reward of ours less TRL's, by seed:", [round(each, 4) for each in difference])
    finish("ppo_learning", {"reward, ours - TRL": spread(difference)}, found=found, updates=args.updates)


def prepare(python: str, model: Path, work: Path, steps: int) -> tuple[Path, Path, Path]:
    """The policy as a Qwen3, the reward model, and prompts: tokenised for TRL's, as a folder for ours."""
    from tuner.data.sources import load_splits
    from tuner.text.chat import generation_prompt
    from tuner.text.load_tokenizer import load_pretrained_tokenizer

    policy = work / "policy"
    subprocess.run(
        [python, "-m", "tuner.cli", "convert", str(model), str(policy), "--to", "qwen3"], check=True, cwd=ROOT
    )
    flags = (
        f"--model_name_or_path {policy} --dataset_name builtin:sentiment-pairs --output_dir {work / 'reward'} "
        f"--max_length 128 --test_split_size 400 --max_steps {steps} --per_device_train_batch_size 16 "
        "--learning_rate 1e-3 --train_sampling_strategy group_by_length --save_strategy no"
    )
    measure([python, "recipes/reward.py", *flags.split()])
    print("reward model:", json.loads((work / "reward" / "metrics.json").read_text())["eval"], flush=True)
    tokenizer = load_pretrained_tokenizer(str(policy))
    train, held_out = load_splits("builtin:chitchat", test_split_size=200)
    (work / "data").mkdir()
    lines = []
    for name, rows in (("train", train), ("test", held_out)):
        kept = []
        for row in rows:
            turn = next(i for i, message in enumerate(row["messages"]) if message["role"] == "assistant")
            ids = generation_prompt(tokenizer, row["messages"][:turn])["input_ids"][0].tolist()
            if len(ids) <= LONGEST:
                kept.append(json.dumps({"prompt": row["messages"][:turn]}) + "\n")
                lines += [json.dumps({"input_ids": ids}) + "\n"] * (name == "train")
        (work / "data" / f"{name}.jsonl").write_text("".join(kept), encoding="utf-8")
    (work / "prompts.jsonl").write_text("".join(lines), encoding="utf-8")
    return policy, work / "reward", work / "prompts.jsonl"


def run_ours(
    python: str, model: Path, reward: Path, work: Path, output: Path, seed: int, args: argparse.Namespace
) -> list[list[float]]:
    """Our recipe; of each update the divergence and the score. The reward model reads text, and this template's tokens
    are the policy's."""
    flags = (
        f"--model_name_or_path {model} --reward_model_path {reward} --dataset_name {work / 'data'} "
        f"--output_dir {output} --seed {seed} --max_steps {args.updates} --learning_rate {args.learning_rate} "
        f"--response_length {TOKENS} --per_device_train_batch_size {SIZE} --gradient_accumulation_steps 1 "
        "--value separate --eval_strategy no --eval_on_start false --save_strategy no --num_sample_generations 0 "
        "--bf16 false"
    )
    measure([python, "recipes/ppo.py", *flags.split()])
    return curve(json.loads((output / "metrics.json").read_text(encoding="utf-8"))["log"])


def run_theirs(
    python: str, model: Path, reward: Path, prompts: Path, output: Path, seed: int, args: argparse.Namespace
) -> list[list[float]]:
    """TRL's trainer, with the same settings."""
    settings = {
        "per_device_train_batch_size": SIZE, "gradient_accumulation_steps": 1, "total_episodes": args.updates * SIZE,
        "response_length": TOKENS, "num_ppo_epochs": 4, "local_rollout_forward_batch_size": SIZE, "seed": seed,
        "learning_rate": args.learning_rate, "logging_steps": 1, "save": str(output),
    }  # fmt: skip
    script = ["benchmarks/peers/trl_ppo.py", str(model), str(reward), str(prompts), json.dumps(settings)]
    return curve(measure([python, *script], TRL_EXPERIMENTAL_SILENCE="1").data["log"])


def curve(log: list[dict[str, Any]]) -> list[list[float]]:
    """Divergence and score of each update."""
    return [[entry["objective/kl"], entry["objective/scores"]] for entry in log if "objective/scores" in entry]


def at_matched_kl(curves: dict[str, list[list[float]]]) -> dict[str, float]:
    """Each side's reward at the smaller of their last divergences, by lines between the means of `WINDOW` updates."""
    smooth = {
        name: np.array([np.mean(points[start : start + WINDOW], axis=0) for start in range(len(points) - WINDOW + 1)])
        for name, points in curves.items()
    }
    at = min(float(points[-1, 0]) for points in smooth.values())
    reached = {}
    for name, points in smooth.items():
        order = np.argsort(points[:, 0])
        reached[name] = float(np.interp(at, points[order, 0], points[order, 1]))
    return {"kl": at, **reached}


def compare(python: str, model: Path, reward: Path, work: Path, ends: dict[str, Path]) -> list[dict[str, Any]]:
    """`tuner compare` of where both sides ended: reward, divergence, and how likely what they say is to the policy that
    they began with."""
    table = work / "table.json"
    flags = f"--reward_model_path {reward} --dataset_name {work / 'data'} --response_length {TOKENS} --output {table}"
    measure([python, "-m", "tuner.cli", "compare", str(model), *map(str, ends.values()), *flags.split()])
    rows = json.loads(table.read_text(encoding="utf-8"))
    kept = ("kl", "said", "length")
    names = ["before", *ends]
    return [
        {"who": who, "reward": row["reward"]["value"]} | {key: row[key] for key in kept}
        for who, row in zip(names, rows, strict=True)
    ]


if __name__ == "__main__":
    main()
