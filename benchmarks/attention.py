"""Time and memory of attention as a sequence grows: softmax, Linformer, Performer.

Every figure is a process of its own, which runs the attention of one layer forward and backward and is asked for its
peak; what a process needs before it computes is taken off. Softmax attention runs as transformers' SDPA and written
out. Writes `results/attention.json` and `docs/attention.png`.

    make bench-attention
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.harness import ROOT, finish, measure, spread

LENGTHS = (512, 2048, 8192)
KINDS = {
    "softmax, written out": ("eager", {}),
    "softmax, SDPA": ("sdpa", {}),
    "linformer, 128 keys": ("sdpa", {"attention_type": "linformer", "linformer_k": 128}),
    "performer, 256 features": ("sdpa", {"attention_type": "performer"}),
    "performer, causal": ("causal", {"attention_type": "performer"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=2, metavar=("KIND", "LENGTH"), help="measure one and print it (used by itself)")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one[0], int(args.one[1]))))
        return
    found: dict[str, dict[int, dict[str, float]]] = {kind: {} for kind in KINDS}
    growth = {}
    for kind in KINDS:
        rounds = [
            [measure([sys.executable, __file__, "--one", kind, str(length)]).data for length in LENGTHS]
            for _ in range(args.rounds)
        ]
        for number, length in enumerate(LENGTHS):
            names = rounds[0][number]
            found[kind][length] = {name: statistics.median(runs[number][name] for runs in rounds) for name in names}
        for name, what in (("seconds", "time"), ("mib", "memory")):
            ratios = [runs[-1][name] / runs[-2][name] for runs in rounds]
            growth[f"{kind}: {what}, {LENGTHS[-1]:,} / {LENGTHS[-2]:,} positions"] = spread(ratios)
    print(f"{'':26s}" + "".join(f"{length:>22,}" for length in LENGTHS))
    for kind, figures in found.items():
        cells = (f"{f['seconds'] * 1e3:,.0f} ms, {f['mib']:,.0f} MiB" for f in figures.values())
        print(f"{kind:26s}" + "".join(f"{cell:>22s}" for cell in cells))
    draw(found, ROOT / "docs" / "attention.png")
    finish("attention", growth, figures=found, rounds=args.rounds)


def one(kind: str, length: int) -> dict[str, float]:
    """Seconds of a forward and backward pass, the best of three, and MiB above what the process had before."""
    import torch

    from tuner.model import TunerEncoderConfig
    from tuner.model.attention import TunerAttention

    implementation, fields = KINDS[kind]
    config = TunerEncoderConfig(
        hidden_size=256, num_attention_heads=4, max_position_embeddings=length, position_embedding_type="none", **fields
    )
    config._attn_implementation = "eager" if implementation == "eager" else "sdpa"
    layer = TunerAttention(config, 0, is_causal=implementation == "causal")
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    if config.attention_type == "performer":
        layer.linear.features.copy_(layer.linear.draw_features())
    layer(torch.randn(1, 64, 256))[0].sum().backward()  # libraries are loaded by the first product
    states = torch.randn(1, length, 256, requires_grad=True)
    before, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, []
    for _ in range(3):
        start = time.perf_counter()
        layer(states)[0].sum().backward()
        seconds.append(time.perf_counter() - start)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": min(seconds), "mib": after - before}


def draw(found: dict[str, dict[int, dict[str, float]]], path: Path) -> None:
    """Time and memory over length, both axes logarithmic: linear growth has slope 1."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axes, name, label, scale in zip(panels, ("seconds", "mib"), ("milliseconds", "MiB"), (1e3, 1), strict=True):
        for kind, figures in found.items():
            axes.plot(list(figures), [f[name] * scale for f in figures.values()], "o-", label=kind)
        axes.set(xscale="log", yscale="log", xlabel="positions", ylabel=label)
        axes.set_xticks(LENGTHS, [f"{length:,}" for length in LENGTHS])
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
