"""Speed and memory: our recipe and TRL's `SFTTrainer`, alternately on one card; pretraining; generation.

All sides of a comparison are started together, prepare beside each other, and then train by turns (see `alternate.py`).
A figure is the median over the rounds, with the smallest and largest.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

from transformers.utils import is_flash_attn_2_available

from benchmarks.gpu.alternate import COUNT, LOGGED, ROUNDS, STEPS, WARM, Side, alternate
from benchmarks.gpu.setting import Finding, Setting
from benchmarks.harness import last_json, spread
from benchmarks.sft import our_command, our_log


def rates(side: Side, what: str = "tokens") -> list[float]:
    """Tokens a second, or supervised ones, of each round."""
    return [tokens / turn["seconds"] for tokens, turn in zip(side.found[what], side.turns, strict=True)]


def _read_ours(folder: Path, log: str) -> dict[str, Any]:
    """Lines of the log are aligned with the turns: the first of three is the warm-up, with the wait before it."""
    entries = our_log(folder / "run")
    lines = (WARM + COUNT) // LOGGED
    found: dict[str, Any] = {"losses": [entry["loss"] for entry in entries], "tokens": [], "supervised": []}
    shares = []
    for turn in range(ROUNDS):
        timed = entries[turn * lines + WARM // LOGGED : (turn + 1) * lines]
        for name, rate in (("tokens", "tokens_per_second"), ("supervised", "supervised_tokens_per_second")):
            found[name].append(sum(entry[rate] * entry["step_seconds"] * LOGGED for entry in timed))
        shares += [entry["peak_share"] for entry in timed]
    return {**found, "peak_share": statistics.median(shares)}


def _read_trl(folder: Path, log: str) -> dict[str, Any]:
    data = last_json(log.splitlines())
    found: dict[str, Any] = {"losses": data["losses"], "tokens": [], "supervised": []}
    for turn in range(ROUNDS):
        first = turn * (WARM + COUNT) + WARM
        for name in ("tokens", "supervised"):
            found[name].append(sum(step[name] for step in data["steps"][first : first + COUNT]))
    return found


def sft(setting: Setting) -> Finding:
    """All weights of SmolLM2-135M's shape on real conversations, 1,024 tokens, 8 sequences a step."""
    rows, model, length = setting.work / "rows", setting.work / "model", 128 if setting.small else 1024
    batch = 2 if setting.small else 8
    common = ["--max_length", str(length), "--per_device_train_batch_size", str(batch), "--logging_steps", str(LOGGED)]
    theirs = {"max_length": length, "per_device_train_batch_size": batch, "logging_steps": LOGGED}

    def ours(name: str, *flags: str, profile: bool = False) -> Side:
        # Rows that are cut lose labels on both sides.
        command = our_command(model, rows, STEPS, Path("FOLDER/run"), [*common, *flags])
        return Side(name, command, _read_ours, profile)

    def trl(name: str, profile: bool = False, **settings: Any) -> Side:
        settings = {**theirs, "bf16": setting.on_card, "gradient_checkpointing": False, **settings}
        arguments = [str(model), str(rows / "train.jsonl"), str(STEPS), json.dumps(settings)]
        return Side(name, ["benchmarks/peers/trl_sft.py", *arguments], _read_trl, profile)

    sides = [ours("ours", profile=True), trl("TRL, packing", True, packing=True), trl("TRL, padding")]
    if not setting.small:
        sides += [ours("ours, --dtype bfloat16", "--dtype", "bfloat16"), ours("ours, padding", "--packing", "false")]
    if setting.on_card and is_flash_attn_2_available():
        flash = {"attn_implementation": "flash_attention_2"}
        sides += [
            trl("TRL, packing, flash", packing=True, **flash),
            trl("TRL, padding-free", padding_free=True, **flash),
        ]
        sides += [ours("ours, flash", "--attn_implementation", "flash_attention_2")]
    if setting.on_card and importlib.util.find_spec("liger_kernel"):
        sides += [trl("TRL, packing, Liger", packing=True, use_liger_kernel=True)]
    alternate(sides, setting.work / "speed-sft", 400 if setting.small else 120)
    return _compared(sides, "Fine-tuning", "ours")


def pretraining(setting: Setting) -> Finding:
    """`recipes/pretrain.py`, preset `small` (30 M), 32 x 1,024 tokens a step, eager and compiled."""
    common = ["recipes/pretrain.py", "--objective", "clm", "--dataset_name"]
    common += [str(setting.work / "chats.jsonl") if setting.small else "builtin:chitchat", "--preset"]
    common += (
        ["tiny", "--vocab_size", "512", "--max_length", "64"] if setting.small else ["small", "--max_length", "1024"]
    )
    common += ["--per_device_train_batch_size", "2" if setting.small else "32", "--max_steps", str(STEPS)]
    common += f"--eval_strategy no --eval_on_start false --save_strategy no --logging_steps {LOGGED}".split()
    common += ["--num_train_epochs", "100", "--output_dir", "FOLDER/run"]
    sides = [Side("eager", common, _read_ours, True)]
    if setting.on_card:  # on a CPU compiling takes longer than a rehearsal is worth
        sides.append(Side("compiled", [*common, "--torch_compile", "true"], _read_ours, True))
    alternate(sides, setting.work / "speed-pretraining", 400 if setting.small else 150)
    return _compared(sides, "Pretraining, preset small", "eager")


def _compared(sides: list[Side], title: str, reference: str) -> Finding:
    """A table of all sides, the ratios to one of them, and what single steps showed.

    Raises:
        AssertionError: the side that others are compared with has failed.
    """
    rows, steps, losses, said = [], [], {}, []
    base = next(side for side in sides if side.name == reference)
    assert not base.fault, f"{base.name} {base.fault}"
    for side in sides:
        if side.fault:
            rows.append({"side": side.name, "tokens/s": side.fault})
            continue
        ratio = spread([one / other for one, other in zip(rates(base), rates(side), strict=True)])
        supervised = spread([a / b for a, b in zip(rates(base, "supervised"), rates(side, "supervised"), strict=True)])
        row = {
            "side": side.name,
            "tokens/s": _range(rates(side), 0),
            "supervised/s": _range(rates(side, "supervised"), 0),
        }
        row |= {"ms a step": _range([1e3 * turn["seconds"] / COUNT for turn in side.turns], 1)}
        if "allocated" in side.turns[0]:
            row |= {
                f"{kind}, MiB": f"{max(turn[kind] for turn in side.turns):.0f}" for kind in ("allocated", "reserved")
            }
        row |= {"share of the peak": side.found["peak_share"]} if "peak_share" in side.found else {}
        row |= {f"tokens/s, {reference} / it": _spread(ratio), f"supervised/s, {reference} / it": _spread(supervised)}
        rows.append(row)
        losses[side.name] = side.found["losses"]
        if side is not base:
            said.append(f"{reference} / {side.name} {_spread(ratio)}")
        if side.profiled:
            steps.append({"side": side.name, **{k: v for k, v in side.profiled.items() if not isinstance(v, dict)}})
    tables = {title: rows, f"{title}: one step": steps}
    for side in sides:
        for name in ("longest", "host_wait_places"):
            if side.profiled.get(name):
                lines = [{"what": what, "ms or times": value} for what, value in side.profiled[name].items()]
                tables[f"{title}: {side.name}, {name.replace('_', ' ')}"] = lines
    failed = [f"{side.name} failed: {side.fault}" for side in sides if side.fault]
    message = "; ".join([f"{base.name} {_range(rates(base), 0)} tokens/s", *said, *failed])
    return Finding(message, {"tables": tables, "losses": losses})


def _range(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def _spread(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"


def generation(setting: Setting) -> Finding:
    """`generate`, greedy in bfloat16, 64 tokens of prompt: ours and transformers' Llama with the same weights."""
    import torch
    from transformers import AutoModelForCausalLM

    from benchmarks.gpu.setting import synchronize
    from tuner.hardware import many_shapes
    from tuner.model.convert import from_transformers

    theirs = AutoModelForCausalLM.from_pretrained(setting.work / "model", dtype=torch.bfloat16)
    models = {"ours": from_transformers(theirs).to(setting.device).eval(), "Llama": theirs.to(setting.device).eval()}
    new, rows, said = 4 if setting.small else 64, [], []
    for batch in (1, 16):
        ids = torch.randint(5, theirs.config.vocab_size, (batch, 8 if setting.small else 64), device=setting.device)
        found: dict[str, list[float]] = {name: [] for name in models}
        for turn in range(ROUNDS + 1):
            for name, model in models.items():
                synchronize()
                start = time.perf_counter()
                with torch.inference_mode(), many_shapes():
                    out = model.generate(
                        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new,
                        do_sample=False, pad_token_id=0,
                    )  # fmt: skip
                synchronize()
                if turn:  # the first warms up
                    found[name].append(batch * (out.shape[1] - ids.shape[1]) / (time.perf_counter() - start))
        ratio = spread([one / other for one, other in zip(found["ours"], found["Llama"], strict=True)])
        rows.append(
            {
                "batch": batch,
                **{f"{name}, tokens/s": _range(found[name], 0) for name in models},
                "ours / Llama": _spread(ratio),
            }
        )
        said.append(f"batch {batch}: {_range(found['ours'], 0)} tokens/s, ours / Llama {_spread(ratio)}")
    return Finding("; ".join(said), {"tables": {"Generation": rows}})


def peak(setting: Setting) -> Finding:
    """Large products in bfloat16 on random data: the ceiling that shares are quoted of."""
    import torch

    from tuner.hardware import measure_peak

    found = measure_peak(torch.bfloat16, **({"size": 256} if setting.small else {})) / 1e12
    return Finding(f"{found:,.1f} TFLOP/s", {"tflops": found, "cores": os.cpu_count()})
