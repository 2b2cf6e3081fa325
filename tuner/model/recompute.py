"""Norm, gate and rotation that keep for their backward pass what is there anyway, and compute the rest again.

Autograd keeps every factor of every product: a good third of what a block remembers of a token, in float32 where the
norm went through it. All of it follows from the inputs in a few cheap passes. A compiler finds this for itself, so that
a compiled model takes the plain formulas. So do the transforms of `torch.func`, which want more of a function than its
gradient, a gradient that is to have one itself, and a module whose attribute `recompute` is false.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        normed, scale = _normed(x, weight, eps)
        return normed.to(dtype), scale

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs[:2], output[1])
        ctx.options = inputs[2:]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _differentiable(ctx, lambda *of: _plain_rms_norm(*of, *ctx.options), (x, weight), grad)
        normed = x * scale
        wide = grad.to(normed.dtype)
        weight_grad = (wide * normed).flatten(0, -2).sum(dim=0).to(weight.dtype)
        wide = wide * weight
        along = (wide * normed).mean(dim=-1, keepdim=True)
        return wide.addcmul_(normed, along, value=-1).mul_(scale).to(x.dtype), weight_grad, None, None


class _SiluProduct(torch.autograd.Function):
    @staticmethod
    def forward(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return F.silu(gate).mul_(up)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _differentiable(ctx, _plain_silu_product, (gate, up), grad)
        gate_grad = grad * up
        torch.ops.aten.silu_backward(gate_grad, gate, grad_input=gate_grad)
        return gate_grad, F.silu(gate).mul_(grad)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        return _rotated(heads, cos, sin)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        rotated = _plain_rotate if torch.is_grad_enabled() else _rotated
        return rotated(grad, cos, -sin), None, None  # back by the same angle


def _differentiable(
    ctx: Any, formula: Callable[..., torch.Tensor], inputs: tuple[torch.Tensor, ...], grad: torch.Tensor
) -> tuple[torch.Tensor | None, ...]:
    """The gradients of a formula where they are to have gradients themselves."""
    wanted = [tensor for tensor, needed in zip(inputs, ctx.needs_input_grad, strict=False) if needed]
    found = iter(torch.autograd.grad(formula(*inputs), wanted, grad, create_graph=True))
    return tuple(next(found) if needed else None for needed in ctx.needs_input_grad)


def _plain_rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype) -> torch.Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return F.rms_norm(wide, weight.shape, weight.to(wide.dtype), eps).to(dtype)


def _plain_silu_product(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return F.silu(gate) * up


def _plain_rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat((-second, first), dim=-1) * sin


def _normed(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True).add_(eps))
    return (wide * scale).mul_(weight), scale


def _rotated(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    turned = heads * cos
    (first, second), (first_turned, second_turned) = heads.chunk(2, dim=-1), turned.chunk(2, dim=-1)
    sin, _ = sin.chunk(2, dim=-1)
    # A product and a sum, each rounded, as everyone computes it: `addcmul_` would round once.
    first_turned.sub_(second * sin)
    second_turned.add_(first * sin)
    return turned


def takes_plain_formula(recompute: bool) -> bool:
    """Whether autograd, a compiler or `torch.func` is left to differentiate what a module computes."""
    return not recompute or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def learns(*tensors: torch.Tensor) -> bool:
    """Whether autograd will ask for a gradient of what is computed from these."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype, recompute: bool = True
) -> torch.Tensor:
    """`x / sqrt(mean(x²) + eps) * weight` over the last dimension, computed in float32 or better, given in `dtype`."""
    if takes_plain_formula(recompute):
        return _plain_rms_norm(x, weight, eps, dtype)
    return _RMSNorm.apply(x, weight, eps, dtype)[0] if learns(x, weight) else _normed(x, weight, eps)[0].to(dtype)


def silu_product(gate: torch.Tensor, up: torch.Tensor, recompute: bool = True) -> torch.Tensor:
    """`silu(gate) * up`, elementwise."""
    if takes_plain_formula(recompute) or not learns(gate, up):
        return _plain_silu_product(gate, up)
    return _SiluProduct.apply(gate, up)


def rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, recompute: bool = True) -> torch.Tensor:
    """Turn dimension `i` of the last `d` together with `i + d / 2` by an angle whose cosine and sine stand at both.

    `heads` and, broadcast to it, `cos` and `sin` are `(..., d)`.
    """
    if takes_plain_formula(recompute):
        return _plain_rotate(heads, cos, sin)
    return _Rotation.apply(heads, cos, sin) if learns(heads) else _rotated(heads, cos, sin)
