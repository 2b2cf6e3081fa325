"""Linear layers, with the faster of torch's two libraries under them.

Torch gives float32 products to MKL, whose kernels use half of an AMD CPU's vectors, and bfloat16 ones to oneDNN, which
uses them whole. Here float32 goes to oneDNN as well where something is learnt: the same precision, and about twice the
speed where a core adds 512 bits at a time (Zen 5). On every other machine, under autocast, in compiled graphs and for
whoever watches or counts torch's operations these are plain `nn.Linear`s.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from .recompute import learns


@cache
def _is_faster() -> bool:
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    cpu = torch.cpu.get_capabilities()
    return "AMD" in cpu.get("cpu_name", "") and bool(cpu.get("avx512_f"))


def _onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad
        rows, grad_rows = x.flatten(0, -2), grad.contiguous().flatten(0, -2)
        multiply = linear if torch.is_grad_enabled() else product
        return (
            multiply(grad, weight.T) if need_x else None,
            multiply(grad_rows.T, rows.T) if need_weight else None,
            grad_rows.sum(dim=0) if need_bias else None,
        )


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`x Wᵀ + b`, as `F.linear`: `x` `(..., in)`, `weight` `(out, in)`, `bias` `(out,)`; returns `(..., out)`.

    Where nothing is learnt it is `F.linear`: a converted model then answers in the very bits of the family it is of.
    """
    given = (x, weight) if bias is None else (x, weight, bias)
    return _Linear.apply(x, weight, bias) if learns(*given) and _suits(x, weight) else F.linear(x, weight, bias)


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """As `linear`, inside of a loss or a gradient, where autograd does not look."""
    return _onednn(x, weight, bias) if _suits(x, weight) else F.linear(x, weight, bias)


def _suits(x: torch.Tensor, weight: torch.Tensor) -> bool:
    return (
        type(x) is torch.Tensor
        and type(weight) in (torch.Tensor, nn.Parameter)
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and x.dim() > 1
        and x.numel() > 0
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and not is_in_torch_dispatch_mode()
        and _is_faster()
    )


class TunerLinear(nn.Linear):
    """`nn.Linear`, by `linear`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return linear(input, self.weight, self.bias)
