"""AdamW over bfloat16 weights that still shows small steps.

bfloat16 keeps 8 significant bits of a weight, and most steps of fine-tuning are smaller than the last of them. Here the
optimizer holds the next 8, and an update is made on both together in float32: master weights of 16 significant bits for
one more byte, where mixed precision holds a second copy of four. What is below is rounded stochastically, so that steps
smaller than the last bit count in the mean. The moments are held in bfloat16: the first rounded to nearest, the second
stochastically, because `beta2 = 0.999` changes it by less than bfloat16 can show and rounding to nearest would leave it
where it is (Zamirai et al. 2020, https://arxiv.org/abs/2010.06192).

In all 9 bytes a parameter, gradient included, where mixed precision over float32 weights takes 18.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

# Elements updated at once: few enough that the float32 temporaries stay in the cache.
CHUNK = 2**19


class SplitAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101) over bfloat16 parameters.

    Args:
        params: parameters or groups; bfloat16, whole on their device (not sharded).
        lr, betas, eps, weight_decay: as in `torch.optim.AdamW`.

    Raises:
        ValueError: a parameter that is not bfloat16.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        for parameter in self._parameters():
            if parameter.dtype != torch.bfloat16:
                raise ValueError(f"SplitAdamW takes bfloat16 parameters, not {parameter.dtype}.")
        # Made now and not at the first step: among what a step leaves free they would lie scattered, and the next step
        # would find no room between them.
        for parameter in self._parameters():
            low = parameter.__dict__.pop("remainder", None)
            self.state[parameter] = {
                "step": 0,
                "low": torch.zeros_like(parameter, dtype=torch.int8) if low is None else low.to(parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update. Draws one block of random bits from torch's generator, for what is rounded stochastically."""
        loss = None if closure is None else closure()
        noise = {
            device: torch.randint(2**16, (CHUNK,), dtype=torch.int32, device=device)
            for device in {p.device for p in self._parameters()}
        }
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad.reshape(-1), group, noise[parameter.device])
        return loss

    def _update(
        self, parameter: torch.Tensor, gradients: torch.Tensor, group: dict[str, Any], noise: torch.Tensor
    ) -> None:
        state = self.state[parameter]
        state["step"] += 1
        beta1, beta2 = group["betas"]
        step_size = group["lr"] / (1 - beta1 ** state["step"])
        correction = (1 - beta2 ** state["step"]) ** 0.5
        flat = [t.view(-1) for t in (parameter, state["low"], state["exp_avg"], state["exp_avg_sq"])]
        for high, low, first, second, part in zip(*(t.split(CHUNK) for t in (*flat, gradients)), strict=True):
            gradient = part.float()
            mean = first.float().lerp_(gradient, 1 - beta1)
            square = second.float().mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            weight = join(high, low).mul_(1 - group["lr"] * group["weight_decay"])
            weight.addcdiv_(mean, (square.sqrt() / correction).add_(group["eps"]), value=-step_size)
            first.copy_(mean)
            bits = noise[: weight.numel()]
            second.copy_(round_stochastically(square, bits))
            split(weight, high, low, bits)

    def _parameters(self) -> Iterator[torch.Tensor]:
        return (parameter for group in self.param_groups for parameter in group["params"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch does, but leaves the lower halves integers: torch casts a state to its parameter's dtype."""
        super().load_state_dict(state_dict)
        parameters = list(self._parameters())
        for index, state in state_dict["state"].items():
            self.state[parameters[index]]["low"] = state["low"].to(parameters[index].device)


def halve_parameters(model: nn.Module) -> None:
    """Put a model's float32 parameters into bfloat16, in place; `SplitAdamW` finds the next bits beside them.

    Without them every weight would start exactly on bfloat16's grid, and steps below half its spacing would show
    nowhere at first; with them they show in as many weights as they should. Buffers stay: rotary frequencies need
    float32.
    """
    for parameter in model.parameters():
        if parameter.dtype == torch.float32:
            high = torch.empty_like(parameter.data, dtype=torch.bfloat16)
            low = torch.empty_like(parameter.data, dtype=torch.int8)
            split(parameter.data.contiguous(), high, low)
            parameter.data = high
            parameter.__dict__["remainder"] = low


def join(high: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    """The float32 that `high` (bfloat16) and `low` (int8, in units of 1/256 of its last bit) stand for together."""
    return ((high.view(torch.int16).int() << 16) + (low.int() << 8)).view(torch.float32)


def split(weight: torch.Tensor, high: torch.Tensor, low: torch.Tensor, noise: torch.Tensor | None = None) -> None:
    """Write a float32 `weight` as its nearest bfloat16 `high` and what is left, `low` (int8).

    The 8 bits below those are rounded to nearest, or with `noise`, integers uniform in [0, 2^16), stochastically.
    """
    bits = weight.view(torch.int32) + (0x80 if noise is None else noise & 0xFF)
    upper = (bits + 0x8000) >> 16
    high.view(torch.int16).copy_(upper)
    low.copy_((bits - (upper << 16)) >> 8)


def round_stochastically(value: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """A bfloat16 above or below `value`, with the odds that make the mean right; `noise` is uniform in [0, 2^16)."""
    return ((value.view(torch.int32) + noise) >> 16).to(torch.int16).view(torch.bfloat16)
