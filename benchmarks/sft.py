"""Supervised fine-tuning of SmolLM2-135M on real conversations, all weights or LoRA: ours against TRL's `SFTTrainer`.

Both sides get the same model, the same conversations in the same order, 512 tokens, 8 sequences a step, AdamW at 2e-5,
and learn the same (the assistant's) tokens. The comparisons:

- `default`: TRL with its defaults (bf16 mixed precision and activation checkpointing are among them in 1.12).
- `packing`: TRL with bf16 and packing on.
- `informed` (with `--only informed`): TRL as an informed user sets it on a CPU: bf16, no activation checkpointing.
- `lora`, `lora-packing` (`make bench-lora`): as the first two, with PEFT's LoRA of rank 16 on all linear layers.

`--peer '{"bf16": false}'` changes TRL's settings, for a CPU on which bfloat16 is imitated.

A step's speed is its supervised tokens over its seconds; a run's is that of all steps but the first, which warms up.
The losses of both sides are in the result, step by step.

    make bench-sft                 # three rounds
    make bench-sft ARGS="--rounds 5 --only default informed"
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

PEER = ["torch", "transformers", "trl", "datasets", "accelerate", "peft"]
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
# What each comparison trains: steps, rows to take, TRL's settings, our flags.
COMPARISONS: dict[str, tuple[int, int, dict[str, Any], list[str]]] = {
    "default": (6, 48, {}, ["--packing", "false"]),
    "packing": (3, 40, {"packing": True, "bf16": True}, ["--packing", "true"]),
    "informed": (6, 48, {"bf16": True, "gradient_checkpointing": False}, ["--packing", "false"]),
    "lora": (3, 24, {"lora": LORA}, ["--packing", "false", "--use_peft", "true", "--own_model", "false"]),
    "lora-packing": (
        3,
        40,
        {"lora": LORA, "packing": True, "bf16": True},
        ["--packing", "true", "--use_peft", "true", "--own_model", "false"],
    ),
}
# bfloat16 weights with their next bits in the optimizer, and activation checkpointing, which TRL has by default. The 8
# sequences are joined into one row, where nothing is padded: our default on CPUs, like the attention that makes it pay.
FAST = "--dtype bfloat16 --activation_checkpointing true --per_device_train_batch_size 8"
# Frozen weights have neither gradients nor an optimizer's state: what takes memory is what a batch leaves for the
# backward pass. A sequence at a time leaves little, with activation checkpointing, which TRL has by default, the least;
# a step has 8 on both sides.
FAST_LORA = "--per_device_train_batch_size 1 --gradient_accumulation_steps 8 --activation_checkpointing true"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="at least 3 (default: 3)")
    parser.add_argument(
        "--only", nargs="+", choices=COMPARISONS, default=["default", "packing"], help="which comparisons"
    )
    parser.add_argument("--flags", help=f"our flags (default: {FAST}; of an adapter: {FAST_LORA})")
    parser.add_argument("--peer", type=json.loads, default={}, help="settings of TRL over the comparison's, as JSON")
    args = parser.parse_args()
    python, our_python = own_python("trl", PEER), own_python("tuner", ["-e", "."])
    ratios: dict[str, dict[str, float]] = {}
    losses: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as work:
        model = prepare_model(Path(work) / "model")
        for name, (steps, count, settings, flags) in COMPARISONS.items():
            if name not in args.only:
                continue
            rows = prepare_rows(Path(work) / name, count)
            fast = args.flags or (FAST_LORA if "lora" in settings else FAST)
            pairs = []
            for number in range(args.rounds):
                theirs = measure(
                    [
                        python,
                        "benchmarks/peers/trl_sft.py",
                        str(model),
                        str(rows / "train.jsonl"),
                        str(steps),
                        json.dumps(settings | args.peer),
                    ]
                )
                ours = run_ours(
                    our_python, model, rows, steps, [*flags, *fast.split()], Path(work) / f"{name}-{number}"
                )
                pairs.append((ours, theirs))
                print(
                    f"{name} round {number + 1}: ours {speed(ours):.0f} supervised tokens/s, {ours.peak_mib:.0f} MiB; "
                    f"TRL {speed(theirs):.0f}, {theirs.peak_mib:.0f} MiB",
                    flush=True,
                )
            ratios[f"{name}: speed, ours / TRL"] = spread([speed(a) / speed(b) for a, b in pairs])
            ratios[f"{name}: peak memory, ours / TRL"] = spread([a.peak_mib / b.peak_mib for a, b in pairs])
            ratios[f"{name}: mean loss, ours / TRL"] = spread([mean_loss(a) / mean_loss(b) for a, b in pairs])
            losses[name] = {
                side: [step["loss"] for step in pairs[0][i].data["steps"]] for i, side in ((0, "ours"), (1, "TRL"))
            }
            trl = pairs[0][1].data["trl"]
    finish(
        "sft",
        ratios,
        losses=losses,
        flags=args.flags or [FAST, FAST_LORA],
        peer=args.peer,
        rounds=args.rounds,
        versions={"trl": trl},
    )


def prepare_model(folder: Path) -> Path:
    """SmolLM2 as a plain folder in float32, with a template that marks the answers (TRL needs one too)."""
    from tuner.loading.checkpoints import pretrained_decoder, resolve
    from tuner.text.load_tokenizer import load_pretrained_tokenizer

    path, how = resolve("builtin:smollm2-135m-instruct")
    tokenizer = load_pretrained_tokenizer(path, "chatml", **how)
    pretrained_decoder("builtin:smollm2-135m-instruct", tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def prepare_rows(folder: Path, count: int) -> Path:
    """A folder with conversations in a fixed order, and two more for the validation that our recipe ends with."""
    from tuner.data.sources import load_splits

    train, _ = load_splits("builtin:chitchat")
    folder.mkdir()
    for name, first, last in (("train", 0, count), ("test", count, count + 2)):
        lines = [json.dumps({"messages": row["messages"]}) + "\n" for row in train.select(range(first, last))]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def our_command(model: Path, rows: Path, steps: int, output: Path, flags: list[str]) -> list[str]:
    """Our recipe as a user runs it, without the interpreter; later flags override earlier ones."""
    command = ["recipes/sft.py", "--dataset_name", str(rows), "--model_name_or_path", str(model)]
    fixed = "--own_model true --max_length 512 --truncation_mode keep_start --max_labels_lost 1 --learning_rate 2e-5 "
    fixed += "--lr_scheduler_type linear --warmup_steps 0 --train_sampling_strategy sequential --logging_steps 1 "
    fixed += "--save_strategy no --eval_strategy no --eval_on_start false"
    return [*command, *fixed.split(), "--max_steps", str(steps), "--output_dir", str(output), *flags]


def run_ours(python: str, model: Path, rows: Path, steps: int, flags: list[str], output: Path) -> Measured:
    """Our recipe in a process; the steps are read from its metrics."""
    run = measure([python, *our_command(model, rows, steps, output, ["--chat_template_path", "chatml", *flags])])
    run.data["steps"] = [
        {
            "loss": entry["loss"],
            "seconds": entry["step_seconds"],
            "supervised": entry["supervised_tokens_per_second"] * entry["step_seconds"],
        }
        for entry in our_log(output)
    ]
    return run


def our_log(output: Path) -> list[dict[str, float]]:
    """The entries of a run's log that have a loss."""
    log = json.loads((output / "metrics.json").read_text(encoding="utf-8"))["log"]
    return [entry for entry in log if "loss" in entry]


def speed(run: Measured) -> float:
    """Supervised tokens a second, the first step left out."""
    steps = run.data["steps"][1:]
    return sum(s["supervised"] for s in steps) / sum(s["seconds"] for s in steps)


def mean_loss(run: Measured) -> float:
    """Mean over the supervised tokens of all steps."""
    steps = run.data["steps"]
    return sum(s["loss"] * s["supervised"] for s in steps) / sum(s["supervised"] for s in steps)


if __name__ == "__main__":
    main()
