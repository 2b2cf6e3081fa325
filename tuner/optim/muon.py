"""Muon for the matrices of the blocks, AdamW for everything else, as one optimizer.

Muon makes a matrix's momentum orthogonal before it steps (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon/).
Embeddings, heads, norms and biases stay with AdamW, as there. The step of a matrix is scaled to the size of AdamW's
(Liu et al. 2025, https://arxiv.org/abs/2502.16982), so that one learning rate and one schedule serve both.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from tuner.errors import ArgumentError
from tuner.hardware import has_fast_bf16


class MuonWithAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` and `torch.optim.AdamW` side by side.

    Args:
        params: groups; those with `use_muon` true hold matrices.
        lr: of both.
        betas, eps, weight_decay: AdamW's; Muon takes the decay too.
        momentum: Muon's.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
    ):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self._parts: list[torch.optim.Optimizer] = []
        if matrices := [group for group in self.param_groups if group.get("use_muon")]:
            self._parts.append(torch.optim.Muon(matrices, lr, weight_decay, momentum, adjust_lr_fn="match_rms_adamw"))
        if others := [group for group in self.param_groups if not group.get("use_muon")]:
            self._parts.append(torch.optim.AdamW(others, lr, betas, eps, weight_decay, fused=True))
        # One set of groups and one state: schedules write to the groups, checkpoints read both.
        self.param_groups = [group for part in self._parts for group in part.param_groups]
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            with _float32() if _is_slow(part) else nullcontext():
                part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch does; the parts then share what was loaded."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for part in self._parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state


class _float32(TorchFunctionMode):
    """`x.bfloat16()` stays in float32: what `torch.optim.Muon` begins its products with, whatever the machine."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0].float() if func is torch.Tensor.bfloat16 else func(*args, **(kwargs or {}))


def _is_slow(part: torch.optim.Optimizer) -> bool:
    """Whether it is Muon on hardware that only imitates bfloat16, 20 times slower or more on a CPU."""
    device = part.param_groups[0]["params"][0].device.type
    return isinstance(part, torch.optim.Muon) and not has_fast_bf16(device)


def muon_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """A model's trained parameters in three groups: the blocks' matrices for Muon; other matrices; and, without decay,
    norms and biases. Blocks are what stands in an `nn.ModuleList`, as in every model of transformers.

    Raises:
        ArgumentError: no matrix is for Muon.
    """
    tables = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    blocks = {id(p) for module in lists for p in module.parameters() if p.dim() == 2} - tables
    groups: list[dict[str, Any]] = [
        {"params": [], "use_muon": True, "weight_decay": weight_decay},
        {"params": [], "use_muon": False, "weight_decay": weight_decay},
        {"params": [], "use_muon": False, "weight_decay": 0.0},
    ]
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups[0 if id(parameter) in blocks else 1 if parameter.dim() > 1 else 2]["params"].append(parameter)
    if not groups[0]["params"]:
        raise ArgumentError(f"--optim muon is for the matrices of blocks, and {type(model).__name__} trains none.")
    return [group for group in groups if group["params"]]
