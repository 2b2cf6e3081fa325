"""Recipes and commands as their users run them, on the card."""

from __future__ import annotations

import json
import math
import shutil
import signal
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.gpu.setting import ROOT, Finding, Setting, Skipped, python
from benchmarks.sft import prepare_rows

STEPS = 12
# A 4.5 M model on short real conversations: seconds of training, as in the tests.
FLAGS = "--vocab_size 512 --max_length 256 --learning_rate 1e-3 --per_device_train_batch_size 4 --logging_steps 1"
FLAGS += f" --max_steps {STEPS} --eval_strategy no --eval_on_start false --save_strategy no --test_split_size 6"
SMALLER = " --config_overrides hidden_size=128,intermediate_size=192,num_hidden_layers=2"
# A scale that overflows for the first steps, whatever the gradients are; torch's own begins at 2**16.
SCALED = (
    "import runpy, sys, torch; scaler = torch.amp.GradScaler.__init__; "
    "scaler.__defaults__ = (scaler.__defaults__[0], 2.0**32, *scaler.__defaults__[2:]); "
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


def prepare(setting: Setting) -> Finding:
    """What the other checks read: a model of SmolLM2's shape, its tokenizer, and conversations."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from tuner.data.sources import load_splits
    from tuner.text.train_tokenizer import train_tokenizer

    train, _ = load_splits("builtin:chitchat")
    short = [row["messages"] for row in train.select(range(1500)) if len(row["messages"]) < 12][:120]
    lines = [json.dumps({"messages": messages}) + "\n" for messages in short]
    (setting.work / "chats.jsonl").write_text("".join(lines), encoding="utf-8")
    prepare_rows(setting.work / "rows", 40 if setting.small else 800)
    texts = [turn["content"] for row in train.select(range(400 if setting.small else 2000)) for turn in row["messages"]]
    tokenizer = train_tokenizer(texts, "bpe", 512 if setting.small else 8192, "clm")
    marks = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    torch.manual_seed(42)
    model = LlamaForCausalLM(LlamaConfig(**setting.llama(**marks)))
    model.save_pretrained(setting.work / "model")
    tokenizer.save_pretrained(setting.work / "model")
    return Finding(f"{sum(p.numel() for p in model.parameters()):,} random weights, {len(tokenizer):,} tokens")


def _train(
    setting: Setting, name: str, *flags: str | Path, before: tuple[str | Path, ...] = (), recipe: str = "sft"
) -> list[float]:
    """Run a recipe in a folder of its own; the losses that it logged, all finite."""
    folder = setting.work / name
    shutil.rmtree(folder, ignore_errors=True)
    data = ["--dataset_name", setting.work / "chats.jsonl", "--output_dir", folder]
    python(*before, ROOT / "recipes" / f"{recipe}.py", *data, *_flags(setting), *flags)
    return losses_of(folder)


def _flags(setting: Setting) -> list[str]:
    return (FLAGS + SMALLER * setting.small).split()


def losses_of(folder: Path) -> list[float]:
    """The losses in a run's log.

    Raises:
        AssertionError: none, or one that is not finite.
    """
    log = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["log"]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses and all(map(math.isfinite, losses)), f"losses {losses}"
    return losses


def _learns(losses: list[float]) -> Finding:
    first, last = (statistics.mean(part) for part in (losses[:3], losses[-3:]))
    assert last < first, f"the loss went from {first:.3f} to {last:.3f}"
    return Finding(f"loss {first:.3f} to {last:.3f} in {len(losses)} steps", {"losses": losses})


def plain(setting: Setting) -> Finding:
    """`python recipes/sft.py`: in float32 the losses are those on the CPU."""
    exact = ("--bf16", "false", "--attn_implementation", "sdpa")
    with ThreadPoolExecutor(2) as pool:
        here = pool.submit(_train, setting, "plain-cpu", *exact, "--use_cpu", "true")
        there = _train(setting, "plain", *exact)
    worst = max(abs(a - b) / b for a, b in zip(there, here.result(), strict=True))
    found = _learns(there)
    assert worst < 1e-3, f"losses on the card and on the CPU differ by up to {worst:.1e}: {there}, {here.result()}"
    return Finding(f"{found.message}; the CPU's differ by {worst:.1e} at most", found.figures)


def launched(setting: Setting) -> Finding:
    """`accelerate launch` without a configuration file."""
    return _learns(_train(setting, "launched", before=("-m", "accelerate.commands.launch")))


def launched_with_file(setting: Setting) -> Finding:
    """`accelerate launch` with the repository's configuration: that of several GPUs, on the one there is."""
    file = ROOT / "recipes" / "accelerate" / ("multi_gpu.yaml" if setting.on_card else "cpu.yaml")
    how = ("-m", "accelerate.commands.launch", "--config_file", file, "--num_processes", "1")
    return _learns(_train(setting, "launched-file", before=how))


def fp16(setting: Setting) -> Finding:
    """`--fp16 true`, with a scale whose first steps overflow: they are left out, and training goes on."""
    if not setting.on_card:
        raise Skipped("mixed precision in float16 is for accelerators")
    losses = _train(setting, "fp16", "--fp16", "true", "--max_steps", "40", before=("-c", SCALED))
    return _learns(losses)


def compiled(setting: Setting) -> Finding:
    """`--torch_compile true`."""
    return _learns(_train(setting, "compiled", "--torch_compile", "true", *(["--max_steps", "6"] * setting.small)))


def half(setting: Setting) -> Finding:
    """`--dtype bfloat16`: weights in bfloat16 with our optimizer."""
    return _learns(_train(setting, "half", "--dtype", "bfloat16"))


def muon(setting: Setting) -> Finding:
    """`--optim muon`."""
    return _learns(_train(setting, "muon", "--optim", "muon"))


def checkpointed(setting: Setting) -> Finding:
    """`--activation_checkpointing true` gives the losses that it gives without."""
    with ThreadPoolExecutor(2) as pool:
        without = pool.submit(_train, setting, "whole", "--bf16", "false")
        found = _train(setting, "checkpointed", "--bf16", "false", "--activation_checkpointing", "true")
    worst = max(abs(a - b) / b for a, b in zip(found, without.result(), strict=True))
    assert worst < 1e-3, f"losses differ by up to {worst:.1e}"
    return Finding(f"{_learns(found).message}; without it they differ by {worst:.1e} at most")


def flex(setting: Setting) -> Finding:
    """`--attn_implementation flex_attention`, packed."""
    if not setting.on_card:
        raise Skipped("flex_attention is compiled for a card")
    return _learns(_train(setting, "flex", "--attn_implementation", "flex_attention"))


def objectives(setting: Setting) -> Finding:
    """`recipes/pretrain.py` for each of its six objectives."""
    names = {"clm": "bpe", "mlm": "wordpiece", "mlm+nsp": "wordpiece", "rtd": "wordpiece", "denoise": "unigram"}
    names |= {"contrastive": "wordpiece"}
    size = ["--vocab_size", "2048", "--max_length", "64", "--max_steps", "4" if setting.small else "24"]

    def one(name: str) -> str:
        try:
            how = ("--objective", name, "--train_tokenizer", names[name], *size)
            losses = _train(setting, f"pretrain-{name}", *how, recipe="pretrain")
            return f"{name} {losses[0]:.2f} to {losses[-1]:.2f}"
        except (RuntimeError, AssertionError) as error:
            return f"{name} FAILED: {error}"

    with ThreadPoolExecutor(1 if setting.small else 3) as pool:
        found = list(pool.map(one, names))
    assert not any("FAILED" in line for line in found), "; ".join(found)
    return Finding("; ".join(found))


def talk(setting: Setting) -> Finding:
    """`tuner generate` with a seed twice, and `tuner chat` with its standard input piped."""
    model = setting.work / "model"
    how = ("-m", "tuner.cli", "generate", model, "Hello there", "--seed", "1", "--max_new_tokens", "8")
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: python(*how), range(2))
    assert one.strip() and one == other, f"one seed, two answers: {one!r}, {other!r}"
    command = [sys.executable, "-m", "tuner.cli", "chat", str(model), "--max_new_tokens", "8"]
    done = subprocess.run(command, input="Hello!\nAnd you?\n/quit\n", cwd=ROOT, capture_output=True, text=True)
    print(done.stdout, done.stderr, flush=True)
    assert done.returncode == 0, f"chat ended with {done.returncode}: {done.stderr[-300:]}"
    assert done.stdout.count("model") >= 2, f"two answers were asked for: {done.stdout!r}"
    return Finding("one seed gives one answer; chat answered twice")


def resume(setting: Setting) -> Finding:
    """Killed with SIGKILL and continued; and the same command twice."""
    return _resume(setting, "resume")


def resume_deterministic(setting: Setting) -> Finding:
    """The same with `--full_determinism true`."""
    return _resume(setting, "resume-full", "--full_determinism", "true")


def _resume(setting: Setting, name: str, *flags: str) -> Finding:
    """Whether weights are equal bit for bit: of two runs, and of a whole one and one that was killed and continued."""
    base = setting.work / name
    shutil.rmtree(base, ignore_errors=True)
    saves = ["--save_strategy", "steps", "--save_steps", "4", "--dropout", "0.1", "--resume_from_checkpoint", "true"]

    def train(which: str, kill_at: int = 0) -> None:
        command: list[str | Path] = [ROOT / "recipes" / "sft.py", "--dataset_name", setting.work / "chats.jsonl"]
        command += ["--output_dir", base / which, *_flags(setting), *saves, *flags]
        killer: list[str | Path] = ["-m", "benchmarks.gpu.turns", base, json.dumps({"kill_at": kill_at})]
        try:
            python(*(killer if kill_at else []), *command)
        except RuntimeError as error:
            if not kill_at or f"exit code {-signal.SIGKILL}:" not in str(error):
                raise

    base.mkdir()
    with ThreadPoolExecutor(1 if setting.small else 3) as pool:
        list(pool.map(lambda run: train(*run), [("one", 0), ("two", 0), ("killed", 7)]))
    assert (base / "killed" / "checkpoint-4").is_dir(), "it was not killed after a checkpoint"
    assert not (base / "killed" / "metrics.json").exists(), "it was not killed"
    train("killed")
    weights = {which: load_file(base / which / "model.safetensors") for which in ("one", "two", "killed")}
    said = []
    for which, what in (("two", "two runs"), ("killed", "whole and resumed")):
        differing = {
            key: (weights["one"][key].float() - weights[which][key].float()).abs().max() for key in weights["one"]
        }
        unequal = [key for key in differing if not torch.equal(weights["one"][key], weights[which][key])]
        largest = max((float(differing[key]) for key in unequal), default=0.0)
        said.append(
            f"{what}: {f'{len(unequal)} of {len(differing)} differ, by {largest:.1e}' if unequal else 'equal bits'}"
        )
    assert all("equal bits" in line for line in said), "; ".join(said)
    return Finding("; ".join(said))
