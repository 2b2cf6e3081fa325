"""Muon for the matrices of the blocks, AdamW for everything else, as one optimizer.

Muon makes a matrix's momentum orthogonal before it steps (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon/); embeddings, heads, norms and biases stay with AdamW, as there. A matrix's
step is scaled to the size of AdamW's (Liu et al. 2025, https://arxiv.org/abs/2502.16982): one learning rate and one
schedule serve both.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from tuner.errors import ArgumentError
from tuner.hardware import has_fast_bf16


class MuonWithAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` and `torch.optim.AdamW` side by side, over one list of groups and one state.

    Args:
        params: groups, each with `use_muon`: true for matrices that Muon steps.
        lr, weight_decay: of both.
        betas, eps: AdamW's.
    """

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], eps: float, weight_decay: float):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self._parts: dict[bool, torch.optim.Optimizer] = {}
        if matrices := self._groups(True):
            self._parts[True] = torch.optim.Muon(matrices, lr, weight_decay, adjust_lr_fn="match_rms_adamw")
        if others := self._groups(False):
            self._parts[False] = torch.optim.AdamW(others, lr, betas, eps, weight_decay, fused=True)
        self.param_groups = [group for part in self._parts.values() for group in part.param_groups]

    def _groups(self, use_muon: bool) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group["use_muon"] == use_muon]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of both; takes no closure."""
        for is_muon, part in self._parts.items():
            # Shared anew each time: loading a checkpoint puts other groups and another state in place.
            part.param_groups, part.state = self._groups(is_muon), self.state
            device = part.param_groups[0]["params"][0].device.type
            # Where bfloat16 is imitated it is 20 times slower or more, on a CPU.
            with _float32() if is_muon and not has_fast_bf16(device) else nullcontext():
                part.step()


class _float32(TorchFunctionMode):
    """`x.bfloat16()` stays in float32: what `torch.optim.Muon` begins its products with, whatever the machine."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0].float() if func is torch.Tensor.bfloat16 else func(*args, **(kwargs or {}))


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
