"""Time to loss: how long until a model that begins with nothing predicts unseen conversations as well as a peer's does.

Three sides learn `builtin:chitchat`, tokenized by one tokenizer, in steps of 8 x 1,024 tokens, with as many parameters:

- `defaults`: transformers' `Trainer` and `LlamaForCausalLM` with the settings of its causal-LM example: float32, AdamW
  at 5e-5 falling linearly over three epochs;
- `informed`: the same as one sets it who knows the machine: bfloat16 and compiled where the hardware is fast in it,
  AdamW with decay, warm-up and a cosine that ends with the time, at each of `--rates`, of which the best counts;
- `tuner`: `recipes/pretrain.py`.

The clock starts with the process: imports, data and compilation count. Every checkpoint has its time and, when all is
over, its loss: each validation document by itself, nats a byte, one evaluator for all. `--apart` then takes from ours
one thing at a time.

    make bench-pretrain                                  # 15 minutes for each peer, 9 for us, and the curves
    make bench-pretrain ARGS="--tune tuner --rates 5e-3 1e-2"
    make bench-pretrain ARGS="--apart --minutes 5"
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.harness import ROOT, finish, own_python, spread
from tuner.hardware import has_fast_bf16

LENGTH, BATCH, VOCABULARY = 1024, 8, 4096
SHAPE: dict[str, Any] = {
    **{"vocab_size": VOCABULARY, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048},
    **{"tie_word_embeddings": True, "model_type": "llama", "architectures": ["LlamaForCausalLM"]},
}
PEER = ["torch", "transformers", "datasets", "accelerate"]
# Our share of a peer's time; checkpoints of a run; steps that are timed first, to know how many fit.
SHARE, CHECKPOINTS, TIMED = 0.6, 20, 30
DOCUMENTS = 100  # that are evaluated
DEFAULTS: dict[str, Any] = {"learning_rate": 5e-5, "num_train_epochs": 3}
FAST = has_fast_bf16("cpu")  # without it compiling does not pay for them either
INFORMED: dict[str, Any] = {
    **{"bf16": FAST, "torch_compile": FAST, "lr_scheduler_type": "cosine"},
    **{"warmup_steps": 0.05, "weight_decay": 0.1, "adam_beta2": 0.95},
}
OURS = "--optim muon --learning_rate 1e-2 --lr_scheduler_type cosine --warmup_steps 0.05 --weight_decay 0.1"
# What is taken from ours, one at a time; and compilation, which is not in it.
APART = {
    "ours": "",
    "float32": "--bf16 false",
    "compiled": "--torch_compile true",
    "padded": "--packing false --padding_free false",
    "Llama": "--model_name_or_path {llama}",
    "AdamW": "--optim adamw_torch_fused --adam_beta2 0.95 --learning_rate 4e-3",
}

Curve = list[tuple[float, float]]  # seconds, nats a byte


@dataclass
class Side:
    """One way to train: a command that takes its folder and its number of steps, and how long it may."""

    command: Callable[[Path, int, int], list[str]]  # folder, steps (-1: its own number), steps between checkpoints
    minutes: float
    steps: int | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15, help="for each peer; we take 0.6 of it")
    parser.add_argument("--tune", choices=["informed", "tuner"], help="one side alone, at each of the rates")
    parser.add_argument("--rates", nargs="+", default=["1e-3"], help="learning rates of `informed`, or to tune")
    parser.add_argument("--apart", action="store_true", help="instead, take from ours one thing at a time")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        corpus = prepare(Path(work) / "corpus")
        theirs, ours = own_python("transformers", PEER), own_python("tuner", ["-e", "."])
        if args.tune:
            sides = {rate: _with_rate(args.tune, rate, corpus, theirs, ours, args.minutes) for rate in args.rates}
        elif args.apart:
            sides = {
                name: Side(_ours(ours, corpus, flags), args.minutes * SHARE, None) for name, flags in APART.items()
            }
        else:
            sides = {
                "defaults": Side(_peer(theirs, corpus, DEFAULTS), args.minutes, -1),
                **{rate: _with_rate("informed", rate, corpus, theirs, ours, args.minutes) for rate in args.rates},
                "tuner": Side(_ours(ours, corpus), args.minutes * SHARE),
            }
        folders = {name: Path(work) / f"run-{number}" for number, name in enumerate(sides)}
        steps: int | None = None
        for name, side in sides.items():
            if name in args.rates:  # which does not change the speed: timed once
                side.steps = steps
                steps = train(name, side, folders[name])
            else:
                train(name, side, folders[name])
        curves = {name: evaluate(name, corpus, folder, last=bool(args.tune)) for name, folder in folders.items()}
    reached = {name: curve[-1][1] for name, curve in curves.items()}
    for name, loss in reached.items():
        print(f"{name:10s} {loss:.4f} nats a byte after {curves[name][-1][0]:.0f} s")
    if args.tune:
        return finish(f"pretrain_tune_{args.tune}", {}, nats_per_byte=reached, minutes=args.minutes)
    if args.apart:
        gains = {
            f"without it: {who}; our time to its loss / its own": _share(curves, "ours", who) for who in list(APART)[1:]
        }
        return finish("pretrain_apart", gains, curves=curves, minutes=args.minutes)
    best = min(args.rates, key=lambda rate: reached[rate])
    plot({"defaults": curves["defaults"], "informed": curves[best], "tuner": curves["tuner"]})
    ratios = {
        f"{label}: our time to its loss {reached[name]:.3f} / its own": _share(curves, "tuner", name)
        for label, name in (("defaults", "defaults"), (f"informed, {best}", best))
    }
    return finish("pretrain", ratios, curves=curves, flags=OURS, informed=INFORMED, minutes=args.minutes)


def _share(curves: dict[str, Curve], one: str, other: str) -> dict[str, float]:
    """One's time to the other's last loss, as a share of the other's time."""
    seconds, loss = curves[other][-1]
    return spread([time_to(curves[one], loss) / seconds])


def _peer(python: str, corpus: Path, settings: dict[str, Any]) -> Callable[[Path, int, int], list[str]]:
    return lambda folder, steps, every: [
        *(python, "benchmarks/peers/run_clm.py", str(corpus), str(folder), str(steps)),
        json.dumps({**settings, "per_device_train_batch_size": BATCH, "save_steps": every}),
    ]


def _ours(python: str, corpus: Path, flags: str = "") -> Callable[[Path, int, int], list[str]]:
    fixed = f"--dataset_name {corpus} --tokenizer_name_or_path {corpus} --preset tiny --max_length {LENGTH}"
    fixed += f" --per_device_train_batch_size {BATCH} --eval_strategy no --eval_on_start false --save_total_limit 100"
    more = f"{OURS} {flags.format(llama=corpus / 'llama')}"
    return lambda folder, steps, every: [
        *(python, "recipes/pretrain.py", *fixed.split(), *more.split(), "--output_dir", str(folder)),
        *("--max_steps", str(steps), "--save_steps", str(every)),
    ]


def _with_rate(which: str, rate: str, corpus: Path, theirs: str, ours: str, minutes: float) -> Side:
    if which == "tuner":
        return Side(_ours(ours, corpus, f"--learning_rate {rate}"), minutes)
    return Side(_peer(theirs, corpus, {**INFORMED, "learning_rate": float(rate)}), minutes)


def prepare(folder: Path) -> Path:
    """Documents of both splits as text, a tokenizer that puts a mark before and after each, and a Llama's shape."""
    from tokenizers.processors import TemplateProcessing
    from transformers import LlamaConfig, LlamaForCausalLM

    from tuner.corpus.segments import to_documents
    from tuner.data.schema import canonicalize
    from tuner.data.sources import load_splits
    from tuner.text.train_tokenizer import train_tokenizer

    folder.mkdir()
    for name, split in zip(("train", "test"), load_splits("builtin:chitchat"), strict=True):
        kind, rows, _ = canonicalize(split, name)
        texts = to_documents(rows, kind)["text"]
        lines = [json.dumps({"text": text}) + "\n" for text in texts]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        if name == "train":
            tokenizer = train_tokenizer(texts, "bpe", VOCABULARY, "clm")
    ends = [(mark, tokenizer.convert_tokens_to_ids(mark)) for mark in (tokenizer.bos_token, tokenizer.eos_token)]
    around = TemplateProcessing(f"{ends[0][0]} $A {ends[1][0]}", None, ends)
    tokenizer.backend_tokenizer.post_processor = around
    marks = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = LlamaConfig(**SHAPE, **marks)
    tokenizer.save_pretrained(folder)
    config.save_pretrained(folder)
    torch.manual_seed(42)
    LlamaForCausalLM(config).save_pretrained(folder / "llama")
    tokenizer.save_pretrained(folder / "llama")
    return folder


def train(name: str, side: Side, folder: Path) -> int:
    """Run a side for its minutes. One without a number of steps is timed for a few first, to know how many fit.

    Returns:
        Its number of steps.
    """
    limit = side.minutes * 60
    steps = side.steps
    if steps is None:
        trial = folder.with_name(f"{folder.name}-trial")
        run(side.command(trial, TIMED, TIMED // 3), trial, None)
        seen = checkpoints(trial)
        a_step = (seen[TIMED] - seen[TIMED // 3]) / (TIMED - TIMED // 3)
        steps = max(int((limit - (seen[TIMED] - TIMED * a_step)) / a_step), TIMED)
        print(f"{name}: {a_step:.2f} s a step, {steps} steps in {side.minutes:g} minutes", flush=True)
        shutil.rmtree(trial)
    # What was timed was noisy too: a schedule may end a little late, and its end then counts.
    every, late = (max(steps // CHECKPOINTS, 1), 1.1) if steps > 0 else (10, 1.0)
    run(side.command(folder, steps, every), folder, limit * late)
    return steps


def run(command: list[str], folder: Path, limit: float | None) -> None:
    """A process that writes into `folder`, from its start to its end, or to the limit in seconds."""
    folder.mkdir()
    (folder / "started").touch()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
    with open(folder / "log.txt", "w", encoding="utf-8") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()
        else:
            if process.returncode:
                sys.exit(f"{' '.join(command)} failed:\n{(folder / 'log.txt').read_text(encoding='utf-8')[-3000:]}")


def checkpoints(folder: Path) -> dict[int, float]:
    """Step and seconds since the start of each checkpoint, in their order."""
    start = (folder / "started").stat().st_mtime
    files = {int(path.parent.name.split("-")[1]): path for path in folder.glob("checkpoint-*/model.safetensors")}
    return {step: files[step].stat().st_mtime - start for step in sorted(files)}


def evaluate(name: str, corpus: Path, folder: Path, last: bool) -> Curve:
    """The loss of every checkpoint or of the last: of documents by themselves, their first 1,024 tokens, in float32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    import tuner.model  # noqa: F401  (its classes are known to Auto then)

    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(corpus)
    with open(corpus / "test.jsonl", encoding="utf-8") as stream:
        texts = [json.loads(line)["text"] for line in stream][:DOCUMENTS]
    encoded = [tokenizer(text)["input_ids"][:-1][:LENGTH] for text in texts]  # its end is not asked for
    encoded.sort(key=len)
    size = sum(len(tokenizer.decode(ids[1:]).encode()) for ids in encoded)
    curve: Curve = []
    for step, seconds in list(checkpoints(folder).items())[-1 if last else 0 :]:
        model = AutoModelForCausalLM.from_pretrained(folder / f"checkpoint-{step}", dtype=torch.float32).eval()
        nats = 0.0
        for start in range(0, len(encoded), 4):
            rows = [torch.tensor(ids) for ids in encoded[start : start + 4]]
            ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            labels = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)[:, 1:]
            with torch.no_grad():
                logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1)
            nats += float(torch.nn.functional.cross_entropy(logits, labels.flatten(), reduction="sum"))
        curve.append((seconds, nats / size))
        print(f"{name}: {seconds:5.0f} s  {nats / size:.4f} nats a byte", flush=True)
    return curve


def time_to(curve: Curve, loss: float) -> float:
    """Seconds until a curve is at a loss, between two checkpoints on the line through them; infinite if never."""
    before: tuple[float, float] | None = None
    for seconds, reached in curve:
        if reached <= loss:
            if before is None:
                return seconds
            return before[0] + (seconds - before[0]) * (before[1] - loss) / (before[1] - reached)
        before = (seconds, reached)
    return math.inf


def plot(curves: dict[str, Curve]) -> None:
    """The curves against minutes, as `docs/time-to-loss.png`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = {"defaults": "transformers, its example's defaults", "informed": "transformers, tuned", "tuner": "tuner"}
    figure, axes = plt.subplots(figsize=(7, 4), dpi=150)
    for name, colour in zip(names, ("#9aa0a6", "#4c78a8", "#e45756"), strict=True):
        axes.plot(*zip(*[(s / 60, loss) for s, loss in curves[name]], strict=True), color=colour, label=names[name])
    for name, colour in (("defaults", "#9aa0a6"), ("informed", "#4c78a8")):
        axes.axhline(curves[name][-1][1], color=colour, linewidth=0.7, linestyle=":")
    axes.set(xlabel="minutes since the process started", ylabel="validation loss, nats a byte", xlim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(ROOT / "docs" / "time-to-loss.png")


if __name__ == "__main__":
    main()
