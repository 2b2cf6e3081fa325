"""Classes of news articles (`builtin:bbc-news`, stratified 80/20): every strategy beside words alone, and a head over
features beside transformers' `Trainer`, timed to the same accuracy.

- `accuracy`: MiniLM as our encoder, by each strategy, on three splits; TF-IDF + SVM on the same.
- `speed`: `--strategy head`, the whole process, beside the `Trainer` fine-tuning the same checkpoint until its accuracy
  on the validation rows is TARGET (its evaluations not counted; ours are).
- `fewshot`: eight texts a class, beside TF-IDF + SVM on the same forty.
- `pretraining`: our own encoder of 5 M, pretrained on sentences of the training texts alone (contrastive), beside one
  that was not; with all labels, and with eight a class.

    make bench-classify                            # all of it: hours on two cores
    make bench-classify ARGS="--only speed --splits 0"
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.harness import Measured, finish, measure, own_python, spread

PEER = ["torch", "transformers", "datasets", "accelerate"]
EACH = 8
OWN = "--own_model true --classifier_pooling mean --model_name_or_path {minilm}"
# Our flags of each strategy. An adapter names a checkpoint that PEFT finds again, so it is trained in transformers'
# class.
STRATEGIES = {
    "head": f"--strategy head {OWN} --learning_rate 2e-2",
    "full": f"--strategy full {OWN} --learning_rate 1e-4 --train_sampling_strategy group_by_length",
    "lora": "--strategy lora --learning_rate 1e-3 --model_name_or_path {minilm}",
}
FEWSHOT = f"--strategy fewshot {OWN}"
NEW = "--strategy full --classifier_pooling mean --max_length 128"
# By labels a class, how long a new encoder learns.
STEPS = {None: "--num_train_epochs 4", EACH: "--max_steps 60 --eval_strategy no"}
PRETRAIN = (
    "--objective contrastive --preset tiny --train_tokenizer wordpiece --optim muon --learning_rate 1e-3 "
    "--weight_decay 0.1 --warmup_steps 0.05 --max_length 64 --per_device_train_batch_size 64 --max_steps 200 "
    "--eval_strategy no --eval_on_start false --save_strategy no"
)
# What an informed user sets: dynamic padding is the Trainer's own.
TRAINER = {"per_device_train_batch_size": 16, "learning_rate": 5e-5, "num_train_epochs": 4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("accuracy", "speed", "fewshot", "pretraining")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, help="which parts (default: all)")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES), help="of `accuracy`")
    parser.add_argument("--splits", type=int, nargs="+", default=[0, 1, 2], help="splits, by seed (default: 0 1 2)")
    parser.add_argument("--max_length", type=int, default=512, help="tokens of a text, on both sides (default: 512)")
    parser.add_argument("--target", type=float, default=0.97, help="accuracy of `speed` (default: 0.97)")
    parser.add_argument("--flags", default="", help="flags of ours beside the strategy's")
    args = parser.parse_args()
    ratios: dict[str, dict[str, float]] = {}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as work:
        for part in args.only:
            PARTS[part](args, Path(work), found, ratios)
    finish("classify", ratios, found=found, splits=args.splits, max_length=args.max_length, flags=args.flags)


def write_split(work: Path, seed: int, each: int | None = None) -> Path:
    """A folder with `train.jsonl` (of `each` texts a class, if that is given) and `test.jsonl`."""
    from tuner.data.sources import load_splits

    folder = work / f"split-{seed}-{each}"
    if folder.exists():
        return folder
    train, test = load_splits("builtin:bbc-news", test_split_size=0.2, split_seed=seed, stratify=True)
    if each:
        shuffled = train.shuffle(seed=seed)
        kept = [number for name in sorted(set(train["label"])) for number in _first(shuffled["label"], name, each)]
        train = shuffled.select(kept)
    folder.mkdir()
    for name, rows in (("train", train), ("test", test)):
        lines = [json.dumps({"text": row["text"], "label": row["label"]}) + "\n" for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def _first(labels: Any, name: str, count: int) -> list[int]:
    return [number for number, label in enumerate(labels) if label == name][:count]


def minilm() -> str:
    """The folder that MiniLM's package brings; the environments of the two sides need not have it."""
    from tuner.loading.checkpoints import resolve

    return resolve("builtin:minilm-l6")[0]


def classify(args: Any, work: Path, rows: Path, seed: int, flags: str) -> tuple[Measured, dict[str, float]]:
    """Our recipe in a process, and the accuracies that it compares."""
    output = Path(tempfile.mkdtemp(dir=work))
    fixed = (
        f"--dataset_name {rows} --max_length {args.max_length} --seed {seed} --save_strategy no --output_dir {output}"
    )
    python = own_python("tuner-eval", ["-e", ".[demo,eval]"])
    given = flags.format(minilm=minilm()).split()
    # Features of an earlier run would be found: each has a cache of its own.
    run = measure([python, "recipes/classify.py", *fixed.split(), *given, *args.flags.split()], HF_HOME=str(output))
    return run, json.loads((output / "metrics.json").read_text(encoding="utf-8"))["comparison"]["accuracy"]


def accuracy(args: Any, work: Path, found: dict[str, Any], ratios: dict[str, dict[str, float]]) -> None:
    """Each strategy on each split."""
    for name in args.strategies:
        for seed in args.splits:
            run, known = classify(args, work, write_split(work, seed), seed, STRATEGIES[name])
            found.setdefault("TF-IDF + SVM", {})[seed] = known["TF-IDF + SVM"]
            found.setdefault(name, {})[seed] = known["trained"]
            print(f"{name}, split {seed}: {known['trained']:.4f} in {run.seconds:.0f} s; {known}", flush=True)
    for name in ("TF-IDF + SVM", *args.strategies):
        print(f"{name}: mean accuracy {statistics.fmean(found[name].values()):.4f}", flush=True)


def speed(args: Any, work: Path, found: dict[str, Any], ratios: dict[str, dict[str, float]]) -> None:
    """Ours, then theirs, on each split."""
    pairs = []
    python = own_python("transformers", PEER)
    for seed in args.splits:
        rows = write_split(work, seed)
        ours, known = classify(args, work, rows, seed, STRATEGIES["head"])
        script = ["benchmarks/peers/trainer_classify.py", str(rows), minilm(), str(work / f"trainer-{seed}")]
        settings = {**TRAINER, "max_length": args.max_length, "seed": seed}
        theirs = measure([python, *script, str(args.target), json.dumps(settings)])
        reached = list(theirs.data["accuracy"].values())[-1]
        seconds = theirs.seconds - theirs.data["evaluating"]
        print(f"split {seed}: ours {known['trained']:.4f} in {ours.seconds:.0f} s", end="; ")
        print(f"Trainer {reached:.4f} in {seconds:.0f} s", flush=True)
        pairs.append({"ours": [known["trained"], ours.seconds], "Trainer": [reached, seconds, theirs.data]})
    found["speed"] = pairs
    ratios["head: seconds, Trainer / ours"] = spread([pair["Trainer"][1] / pair["ours"][1] for pair in pairs])


def fewshot(args: Any, work: Path, found: dict[str, Any], ratios: dict[str, dict[str, float]]) -> None:
    """Eight texts a class."""
    found["fewshot"] = []
    for seed in args.splits:
        run, known = classify(args, work, write_split(work, seed, EACH), seed, FEWSHOT)
        found["fewshot"].append(known)
        print(f"fewshot, split {seed}: {known} in {run.seconds:.0f} s", flush=True)


def pretraining(args: Any, work: Path, found: dict[str, Any], ratios: dict[str, dict[str, float]]) -> None:
    """A new encoder, and one that has read the training texts."""
    found["pretraining"] = []
    python = own_python("tuner-eval", ["-e", ".[demo,eval]"])
    for seed in args.splits:
        rows, encoder = write_split(work, seed), work / f"encoder-{seed}"
        flags = [*PRETRAIN.split(), "--dataset_name", str(rows), "--output_dir", str(encoder), "--seed", str(seed)]
        measure([python, "recipes/pretrain.py", *flags])
        for each, steps in STEPS.items():
            rows, how = write_split(work, seed, each), f"{NEW} {steps}"
            _, after = classify(args, work, rows, seed, f"{how} --model_name_or_path {encoder}")
            _, before = classify(args, work, rows, seed, f"{how} --preset tiny --tokenizer_name_or_path {encoder}")
            found["pretraining"].append({"labels": each or "all", "pretrained": after["trained"], **before})
            print(f"own encoder, split {seed}: {found['pretraining'][-1]}", flush=True)


PARTS = {"accuracy": accuracy, "speed": speed, "fewshot": fewshot, "pretraining": pretraining}


if __name__ == "__main__":
    main()
