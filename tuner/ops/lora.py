"""A layer and its adapter as one operation, which keeps less for the backward pass.

PEFT adds `B(A(x)) · scale` to a layer's result, and autograd keeps or makes several tensors of the result's size on the
way. Here the second product is added to the result as it is made, in both directions, and what is kept are the input
and the `r` columns of `A(x)` (Hu et al. 2021, https://arxiv.org/abs/2106.09685, equation 3). It saves memory, not time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


class _Adapted(torch.autograd.Function):
    """`x Wᵀ + b + scale (x Aᵀ) Bᵀ` of `x` `(tokens, in)`, `W` `(out, in)`, `A` `(r, in)` and `B` `(out, r)`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        low = x @ down.T
        ctx.save_for_backward(x, weight, down, up, low)
        ctx.scale = scale
        return F.linear(x, weight, bias).addmm_(low, up.T, alpha=scale)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("An adapted layer has no second derivative; --fast_ops false takes PEFT's.")
        x, weight, down, up, low = ctx.saved_tensors
        need_x, need_weight, need_bias, need_down, need_up, _ = ctx.needs_input_grad
        low_grad = (grad @ up).mul_(ctx.scale)
        return (
            (grad @ weight).addmm_(low_grad, down) if need_x else None,
            grad.T @ x if need_weight else None,
            grad.sum(dim=0) if need_bias else None,
            low_grad.T @ x if need_down else None,
            (grad.T @ low).mul_(ctx.scale) if need_up else None,
            None,
        )


def use_fast_lora(model: nn.Module) -> None:
    """Have every LoRA layer of a model computed so where that says the same: one plain adapter in use, without
    dropout, on a linear layer of its own precision, and no autocast."""
    from peft.tuners.lora.layer import Linear  # seconds

    for module in model.modules():
        if type(module) is Linear and type(module.base_layer) is nn.Linear:
            module.forward = partial(_forward, module, module.forward)  # type: ignore[method-assign]


def _forward(
    layer: Any, plain: Callable[..., torch.Tensor], x: torch.Tensor, *args: Any, **kwargs: Any
) -> torch.Tensor:
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if args or kwargs or layer.disable_adapters or layer.merged or len(names) != 1 or names[0] in layer.lora_variant:
        return plain(x, *args, **kwargs)
    [name], base = names, layer.base_layer
    down, up, dropout = layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name]
    one_type = x.dtype == base.weight.dtype == down.weight.dtype == up.weight.dtype
    drops = layer.training and not isinstance(dropout, nn.Identity)
    if (
        not one_type
        or drops
        or down.bias is not None
        or up.bias is not None
        or torch.is_autocast_enabled(x.device.type)
    ):
        return plain(x)
    scale = layer.scaling[name]
    found: torch.Tensor = _Adapted.apply(x.flatten(0, -2), base.weight, base.bias, down.weight, up.weight, scale)
    return found.unflatten(0, x.shape[:-1])
