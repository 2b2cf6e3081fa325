"""What a card takes for our own operations, and for what could stand in their place: forward and backward, by itself.

The table decides what nobody could measure on a CPU: whether recomputing pays there, how large a slice of the
vocabulary is to be, and which attention suits packed rows and a text that grows.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch.nn import functional as F
from torch.nn.attention import sdpa_kernel

from benchmarks.gpu.repeat import BACKENDS
from benchmarks.gpu.setting import Finding, Setting, synchronize
from tuner.hardware import many_shapes
from tuner.model.recompute import rms_norm, rotate, silu_product
from tuner.ops import chunked_loss

TIMES = 12
Row = dict[str, str]


def kernels(setting: Setting) -> Finding:
    """At 8 x 1,024 tokens of SmolLM2-135M's shape, in the types that mixed precision gives them."""
    rows = [*_elementwise(setting), *_losses(setting), *_attention(setting), *_growing(setting)]
    return Finding(f"{len(rows)} variants timed", {"tables": {"Milliseconds, forward and backward": rows}})


def _row(what: str, how: str, run: Callable[[], Any]) -> Row:
    """The median of `TIMES` runs after three, or of fewer that take five seconds."""
    taken = []
    try:
        for _ in range(TIMES + 3):
            synchronize()
            start = time.perf_counter()
            run()
            synchronize()
            taken.append(1000 * (time.perf_counter() - start))
            if len(taken) > 3 and sum(taken) > 5000:
                break
    except RuntimeError as error:  # there is no such kernel, or not for such inputs
        return {"operation": what, "variant": how, "ms": "-", "note": (str(error).splitlines() or [""])[0][:60]}
    found = sorted(taken[3:])
    return {"operation": what, "variant": how, "ms": f"{statistics.median(found):.3f}", "note": f"{found[0]:.3f} least"}


def _draw(setting: Setting, *shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape, device=setting.device, dtype=dtype).requires_grad_()


def _both(value: torch.Tensor) -> None:
    value.backward(torch.ones_like(value))


def _elementwise(setting: Setting) -> list[Row]:
    size, half, tokens = setting.llama(), torch.bfloat16, 256 if setting.small else 8192
    states = _draw(setting, tokens, size["hidden_size"], dtype=torch.float32)
    weight = _draw(setting, size["hidden_size"], dtype=torch.float32)
    gate, up = (_draw(setting, tokens, size["intermediate_size"]) for _ in range(2))
    heads = _draw(setting, 1, size["num_attention_heads"], tokens, 64)
    cos, sin = (torch.randn(1, 1, tokens, 64, device=setting.device) for _ in range(2))
    operations: dict[str, Callable[[bool], torch.Tensor]] = {
        "RMSNorm": lambda ours: rms_norm(states, weight, 1e-5, half, ours),
        "silu(gate) * up": lambda ours: silu_product(gate, up, ours),
        "rotation": lambda ours: rotate(heads, cos, sin, ours),
    }
    variants = {"recomputed": True, "torch's own": False}
    return [
        _row(what, how, lambda run=run, ours=ours: _both(run(ours)))
        for what, run in operations.items()
        for how, ours in variants.items()
    ]


def _losses(setting: Setting) -> list[Row]:
    size, tokens = setting.llama(), 128 if setting.small else 8192
    states, head = _draw(setting, tokens, size["hidden_size"]), _draw(setting, size["vocab_size"], size["hidden_size"])
    targets = torch.randint(size["vocab_size"], (tokens,), device=setting.device)
    whole = _row("loss", "whole", lambda: _both(F.cross_entropy((states @ head.T).float(), targets)))
    rows = [whole]
    for elements in (2**24, 2**25, 2**26, 2**27, 2**28):
        with patch.object(chunked_loss, "slice_rows", lambda count, _, most=elements: max(most // count, 256)):
            run = lambda: _both(chunked_loss.chunked_cross_entropy(states, head, targets))  # noqa: E731
            rows.append(_row("loss", f"in slices of {elements * 4 // 2**20} MB", run))
    return rows


def _attention(setting: Setting) -> list[Row]:
    size, (batch, time_) = setting.llama(), (2, 64) if setting.small else (8, 1024)
    query, key, value = (_draw(setting, batch, size["num_attention_heads"], time_, 64) for _ in range(3))
    owner = torch.arange(time_, device=setting.device) // (time_ // 4)  # four texts in a row
    packed = ((owner[:, None] == owner) & torch.ones_like(owner[:, None] == owner).tril())[None, None]
    packed = packed.expand(batch, 1, time_, time_).contiguous()
    rows = []
    for what, how in (("packed attention", {"attn_mask": packed}), ("causal attention", {"is_causal": True})):
        for name, backend in BACKENDS.items():
            with nullcontext() if backend is None else sdpa_kernel(backend):
                run = lambda how=how: _both(F.scaled_dot_product_attention(query, key, value, **how))  # noqa: E731
                rows.append(_row(what, name, run))
    return rows


def _growing(setting: Setting) -> list[Row]:
    """A query of one token over keys of 8 lengths that have not been seen: each run takes further ones."""
    heads, rows = setting.llama()["num_attention_heads"], []
    for first, how in ((100, "as chosen"), (101, "without cuDNN")):
        seen = iter(range(first, 10**6, 2))
        query = torch.randn(1, heads, 1, 64, device=setting.device, dtype=torch.bfloat16)

        def run(query: torch.Tensor = query, seen: Any = seen) -> None:
            for _ in range(8):
                keys = torch.zeros(1, heads, next(seen), 64, device=query.device, dtype=query.dtype)
                F.scaled_dot_product_attention(query, keys, keys)

        with nullcontext() if how == "as chosen" else many_shapes():
            rows.append(_row("8 tokens written", how, run))
    return rows
