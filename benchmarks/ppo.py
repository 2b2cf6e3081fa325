"""PPO of SmolLM2-135M: ours against TRL 1.12's, with the same models, prompts and number of optimizer steps.

Both sides sample 64 prompts, up to 53 tokens each, and make four passes, each one step of the optimizer over all of
them. TRL's has what an informed user mends (`benchmarks/peers/trl_ppo.py`). It pads all prompts to the longest, and the
data has one of 266 tokens: `--longest 64` leaves such prompts out.

- `whole`: all weights learn, and a value model of its own on both sides.
- `lora`: an adapter learns; ours has its value on the policy's trunk, TRL's needs a value model, all of which learns.
- `upper`: as `lora`, ours with adapters in the upper half of the layers and the frozen half computed once an update.

    make bench-ppo
    make bench-ppo ARGS="--only lora upper --rounds 1 --longest 64"
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.harness import Measured, finish, measure, own_python, spread

PEER = ["torch", "transformers", "trl", "datasets", "accelerate", "peft", "pandas", "rich"]
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
OWN_LORA = "--use_peft --learning_rate 3e-5"
COMPARISONS: dict[str, tuple[dict[str, Any], str]] = {
    "whole": ({}, "--value separate --learning_rate 3e-6"),
    "lora": ({"lora": LORA, "learning_rate": 3e-5}, OWN_LORA),
    "upper": ({"lora": LORA, "learning_rate": 3e-5}, f"{OWN_LORA} --lora_layers upper"),
}
# Sequences of a micro-batch, and those that are sampled or scored at once, on both sides.
PROMPTS, TOKENS, AT_ONCE, SAMPLED = 64, 53, 8, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=COMPARISONS, default=list(COMPARISONS), help="which comparisons")
    parser.add_argument("--rounds", type=int, default=3, help="of each comparison (default: 3)")
    parser.add_argument("--updates", type=int, default=1, help="in a run (default: 1)")
    parser.add_argument("--longest", type=int, default=512, help="most tokens of a prompt (default: 512)")
    args = parser.parse_args()
    python, own = own_python("trl", PEER), own_python("tuner", ["-e", "."])
    ratios: dict[str, dict[str, float]] = {}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as work:
        model, reward, prompts = prepare(Path(work), args.longest)
        runs: dict[str, list[tuple[Measured, Measured]]] = {name: [] for name in args.only}
        for number in range(args.rounds):
            stock: dict[str, Measured] = {}  # `lora` and `upper` have the same opponent
            for name in args.only:
                settings, flags = COMPARISONS[name]
                ours = run_ours(own, model, reward, prompts, args.updates, flags, Path(work) / f"{name}-{number}")
                show(f"{name}, ours", ours)
                key = json.dumps(settings)
                if key not in stock:
                    stock[key] = run_theirs(python, model, reward, prompts, args.updates, settings)
                    show(f"{name}, TRL", stock[key])
                runs[name].append((ours, stock[key]))
        for name, pairs in runs.items():
            ratios[f"{name}: episodes/s, ours / TRL"] = spread([speed(a) / speed(b) for a, b in pairs])
            ratios[f"{name}: peak memory, ours / TRL"] = spread([a.peak_mib / b.peak_mib for a, b in pairs])
            found[name] = [{"ours": a.data, "TRL": b.data} for a, b in pairs]
    finish("ppo", ratios, found=found, updates=args.updates, rounds=args.rounds, longest=args.longest)


def prepare(work: Path, longest: int) -> tuple[Path, Path, Path]:
    """SmolLM2 as a folder whose padding token is not its end token; a reward model with a new head; prompts, tokenised
    for TRL and as text for ours."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from tuner.data.sources import load_splits
    from tuner.loading.checkpoints import pretrained_decoder, resolve
    from tuner.text.chat import generation_prompt
    from tuner.text.load_tokenizer import load_pretrained_tokenizer

    path, how = resolve("builtin:smollm2-135m-instruct")
    tokenizer = load_pretrained_tokenizer(path, "chatml", **how)
    policy = pretrained_decoder("builtin:smollm2-135m-instruct", tokenizer)
    tokenizer.pad_token = "<|endoftext|>"
    policy.config.pad_token_id = policy.generation_config.pad_token_id = tokenizer.pad_token_id
    policy.save_pretrained(work / "model")
    torch.manual_seed(0)
    scorer = AutoModelForSequenceClassification.from_pretrained(work / "model", num_labels=1)
    scorer.save_pretrained(work / "reward")
    for name in ("model", "reward"):
        tokenizer.save_pretrained(work / name)
    train, _ = load_splits("builtin:chitchat-small")
    lines = []
    for row in train:
        turn = next(i for i, message in enumerate(row["messages"]) if message["role"] == "assistant")
        prompt = row["messages"][:turn]
        ids = generation_prompt(tokenizer, prompt)["input_ids"][0].tolist()
        if len(ids) <= longest and len(lines) < PROMPTS:
            lines.append(json.dumps({"prompt": prompt, "input_ids": ids}) + "\n")
    (work / "prompts.jsonl").write_text("".join(lines), encoding="utf-8")
    (work / "data").mkdir()
    own = [json.dumps({"prompt": json.loads(line)["prompt"]}) + "\n" for line in lines]
    (work / "data" / "train.jsonl").write_text("".join(own), encoding="utf-8")
    (work / "data" / "test.jsonl").write_text(own[0], encoding="utf-8")
    return work / "model", work / "reward", work


def run_ours(python: str, model: Path, reward: Path, work: Path, updates: int, flags: str, output: Path) -> Measured:
    """Our recipe in a process; the seconds are those it logged."""
    named = {"model_name_or_path": model, "reward_model_path": reward, "dataset_name": work / "data"}
    fixed = (
        f"--output_dir {output} --max_steps {updates} --response_length {TOKENS} --num_ppo_epochs 4 "
        f"--local_rollout_forward_batch_size {SAMPLED} --per_device_train_batch_size {AT_ONCE} "
        f"--gradient_accumulation_steps {PROMPTS // AT_ONCE} --eval_strategy no --eval_on_start false "
        "--save_strategy no --num_sample_generations 0 --bf16 false"
    )
    given = [word for name, value in named.items() for word in (f"--{name}", str(value))]
    run = measure([python, "recipes/ppo.py", *given, *fixed.split(), *flags.split()])
    log = json.loads((output / "metrics.json").read_text(encoding="utf-8"))["log"]
    updates_logged = [entry for entry in log if "objective/scores" in entry]
    phases = ("rollout", "rewards", "advantages", "update")
    run.data = {
        "seconds": {phase: sum(entry[f"time/{phase}"] for entry in updates_logged) for phase in phases},
        "episodes": updates * PROMPTS,
        "log": updates_logged,
    }
    return run


def run_theirs(python: str, model: Path, reward: Path, work: Path, updates: int, settings: dict[str, Any]) -> Measured:
    """TRL's trainer in a process, one optimizer step a pass."""
    fixed = {
        "per_device_train_batch_size": AT_ONCE, "gradient_accumulation_steps": PROMPTS // AT_ONCE,
        "total_episodes": updates * PROMPTS, "response_length": TOKENS, "num_ppo_epochs": 4,
        "local_rollout_forward_batch_size": SAMPLED,
    }  # fmt: skip
    script = ["benchmarks/peers/trl_ppo.py", str(model), str(reward), str(work / "prompts.jsonl")]
    return measure([python, *script, json.dumps(fixed | settings)], TRL_EXPERIMENTAL_SILENCE="1")


def show(side: str, run: Measured) -> None:
    """A line of a run's time by phase."""
    phases = ", ".join(f"{phase} {value:.1f}" for phase, value in run.data["seconds"].items())
    print(f"{side}: {phases} s; {run.peak_mib:,.0f} MiB", flush=True)


def speed(run: Measured) -> float:
    """Episodes a second."""
    return float(run.data["episodes"] / sum(run.data["seconds"].values()))


if __name__ == "__main__":
    main()
