"""What is not the same bits twice: gradients of one batch, by the kernel that attention takes."""

from __future__ import annotations

import contextlib
import os
import warnings
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.parity import decoder
from benchmarks.gpu.setting import Finding, Setting, synchronize
from tuner.ops.chunked_loss import chunked_cross_entropy

TIMES = 4
BACKENDS = {
    "as chosen": None,
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


def operations(setting: Setting) -> Finding:
    """Forward and backward of a packed and of a plain batch four times: which gradients differ, for which kernel.

    torch names, with `use_deterministic_algorithms`, the operations that it knows to be so.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # so that torch names what else there is
    length = 48 if setting.small else 1024
    model = decoder(setting, num_hidden_layers=2 if setting.small else 4).to(setting.device).train()
    draw = torch.Generator().manual_seed(4)
    ids = torch.randint(5, model.config.vocab_size, (2, length), generator=draw).to(setting.device)
    restarts = torch.arange(length // 2).repeat(2, 2).to(setting.device)
    rows, chosen = [], []
    for batch, positions in (("packed", restarts), ("plain", None)):
        for name, backend in BACKENDS.items():
            try:
                differing = _differing(model, ids, positions, backend)
            except RuntimeError as error:  # this kernel does not take such a batch, or there is no such kernel here
                rows.append({"batch": batch, "attention": name, "gradients that differ": f"- ({_first_line(error)})"})
                continue
            shown = ", ".join(differing[:3]) + (" ..." if len(differing) > 3 else "")
            rows.append({"batch": batch, "attention": name, "gradients that differ": f"{len(differing)} {shown}"})
            chosen += [batch] * bool(differing and backend is None)
    named = _named(model, ids, restarts)
    figures = {"tables": {"Gradients of the same batch, four times": rows}, "named by torch": named}
    known = f"; torch names: {', '.join(named)}" if named else "; torch names no operation"
    if chosen:
        raise NotEqual(f"gradients differ from pass to pass, {' and '.join(chosen)}{known}", figures)
    return Finding(f"gradients are the same bits every time{known}", figures)


class NotEqual(AssertionError):
    """Not the same bits, with what was found."""

    def __init__(self, message: str, figures: dict[str, Any]):
        super().__init__(message)
        self.figures = figures


def _pass(model: Any, ids: torch.Tensor, positions: torch.Tensor | None) -> dict[str, torch.Tensor]:
    model.zero_grad()
    with torch.autocast(ids.device.type, torch.bfloat16):
        hidden = model.base_model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state[:, :-1]
        flat, targets = hidden.reshape(-1, hidden.shape[-1]), ids[:, 1:].reshape(-1)
        value = chunked_cross_entropy(flat, model.lm_head.weight, targets) / len(targets)
    value.backward()
    synchronize()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def _differing(model: Any, ids: torch.Tensor, positions: torch.Tensor | None, backend: Any) -> list[str]:
    with contextlib.nullcontext() if backend is None else sdpa_kernel(backend):
        first = _pass(model, ids, positions)
        again = [_pass(model, ids, positions) for _ in range(TIMES - 1)]
    return [name for name in first if any(not torch.equal(first[name], other[name]) for other in again)]


def _named(model: Any, ids: torch.Tensor, positions: torch.Tensor) -> list[str]:
    """Operations that torch warns of."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _pass(model, ids, positions)
    finally:
        torch.use_deterministic_algorithms(False)
    texts = {str(warning.message) for warning in caught if "deterministic" in str(warning.message)}
    return sorted(text.split(" does not have")[0].split(".")[0][:100] for text in texts)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:60]
