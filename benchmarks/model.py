"""A forward and backward pass of our decoder against transformers' Llama of the same shape and weights, and what
experts cost.

Both models run alternately in one process, on the same tokens; a round is one pass of each and its ratio. Ours has
attention by blocks, eager and compiled, and for comparison SDPA. Then a mixture of experts: with four times as many
experts, and with as many times as many active ones.

    make bench-model                         # SmolLM2's width at 4 layers, 4 sequences of 512 tokens
    make bench-model ARGS="--dtype float32 --rounds 30"
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.harness import finish, spread
from tuner.model import TunerDecoderConfig, TunerDecoderForCausalLM
from tuner.model.convert import from_transformers
from tuner.ops.block_attention import BLOCK_ATTENTION

SHAPE: dict[str, Any] = {
    **{"vocab_size": 8192, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 4},
    **{"num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 2048},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    args = parser.parse_args()
    ratios: dict[str, dict[str, float]] = {}
    differences = {}
    for name in args.dtype:
        dtype = getattr(torch, name)
        ids = torch.randint(SHAPE["vocab_size"], (args.batch_size, args.length))
        theirs = LlamaForCausalLM._from_config(LlamaConfig(**SHAPE), dtype=dtype, attn_implementation="sdpa").train()
        ours = from_transformers(theirs).train()
        with torch.no_grad():
            differences[name] = float((ours(ids).logits - theirs(ids).logits).abs().max())
        ours.set_attn_implementation(BLOCK_ATTENTION)
        ratios[f"{name}, eager: speed, ours / Llama"] = compare(ours, theirs, ids, args.rounds)
        ours.set_attn_implementation("sdpa")
        ratios[f"{name}, eager, SDPA on both sides: speed, ours / Llama"] = compare(ours, theirs, ids, args.rounds)
        print(ratios, flush=True)
        ours.set_attn_implementation(BLOCK_ATTENTION)
        compiled = [torch.compile(model) for model in (ours, theirs)]
        ratios[f"{name}, compiled: speed, ours / Llama"] = compare(*compiled, ids, args.rounds)
        torch.compiler.reset()
    ratios |= experts(torch.randint(SHAPE["vocab_size"], (args.batch_size, args.length)), args.rounds)
    finish("model", ratios, shape=SHAPE, rounds=args.rounds, logit_difference=differences)


def experts(ids: torch.Tensor, rounds: int) -> dict[str, dict[str, float]]:
    """Time with more experts, and with more active ones, over that with 4 of which 1 is active."""

    def mixture(count: int, active: int) -> PreTrainedModel:
        size = {"intermediate_size": 384, "num_local_experts": count, "num_experts_per_tok": active}
        return TunerDecoderForCausalLM(TunerDecoderConfig(**{**SHAPE, "num_hidden_layers": 2, **size})).train()

    few = mixture(4, 1)
    return {
        "experts 16 for 4, active 1: time": compare(few, mixture(16, 1), ids, rounds),
        "experts 16 for 4, active 4 for 1: time": compare(few, mixture(16, 4), ids, rounds),
    }


def compare(one: Callable[..., Any], other: Callable[..., Any], ids: torch.Tensor, rounds: int) -> dict[str, float]:
    """Seconds of `other` over seconds of `one`, each round its own ratio; the first two rounds warm up."""
    seconds = [(step(one, ids), step(other, ids)) for _ in range(rounds + 2)][2:]
    return spread([b / a for a, b in seconds])


def step(model: Callable[..., Any], ids: torch.Tensor) -> float:
    """Seconds of one forward and backward pass."""
    start = time.perf_counter()
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    elapsed = time.perf_counter() - start
    model.zero_grad()
    return elapsed


if __name__ == "__main__":
    main()
