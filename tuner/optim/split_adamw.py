"""AdamW over bfloat16 weights that still shows small steps.

bfloat16 keeps 8 significant bits of a weight, and most steps of fine-tuning are smaller than the last of them. Here the
optimizer holds the next 8 in one more byte, and updates both together in float32. The first moment takes one byte, with
a scale for every 64 (as in Dettmers et al. 2022, https://arxiv.org/abs/2110.02861), the second is held in bfloat16.
What is cut off is rounded stochastically, so that it counts in the mean: `beta2 = 0.999` changes the second moment by
less than bfloat16 can show, and rounding to nearest would leave it as it is (Zamirai et al. 2020,
https://arxiv.org/abs/2010.06192).

In all 8 bytes a parameter, gradient included, where mixed precision over float32 weights takes 18.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from tuner.optim.muon import MuonWithAdamW, muon_groups

# Numbers of the first moment that share a scale; fewer where a parameter's size is no multiple.
BLOCK = 64


class SplitAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101) over bfloat16 parameters.

    Args:
        params: parameters or groups; bfloat16, whole on their device (not sharded).
        lr, betas, eps, weight_decay: as in `torch.optim.AdamW`.
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
        # Made now and not at the first step: among what a step leaves free they would lie scattered, and the next step
        # would find no room between them.
        for parameter in self._parameters():
            if parameter.dtype != torch.bfloat16:
                raise ValueError(f"SplitAdamW takes bfloat16 parameters, not {parameter.dtype}.")
            low = parameter.__dict__.pop("remainder", None)
            blocks = parameter.numel() // math.gcd(parameter.numel(), BLOCK)
            self.state[parameter] = {
                "step": 0,
                "low": torch.zeros_like(parameter, dtype=torch.int8) if low is None else low.to(parameter.device),
                "exp_avg": torch.zeros_like(parameter, dtype=torch.int8),
                "exp_avg_scale": torch.zeros(blocks, 1, device=parameter.device),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def _parameters(self) -> list[torch.Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update; takes no closure. The random bits that rounding takes follow from the number of the step alone:
        all processes of a run must round alike, or their weights drift apart."""
        step = 1 + max(state["step"] for state in self.state.values())
        noise: dict[torch.device, torch.Tensor] = {}
        for group in self.param_groups:
            for bucket in self._buckets(group["params"]):
                device = bucket[0].device
                if device not in noise:
                    generator = torch.Generator(device).manual_seed(step)
                    size = (chunk_size(device.type),)
                    noise[device] = torch.randint(2**16, size, dtype=torch.int32, device=device, generator=generator)
                self._update(bucket, group, noise[device])

    def _buckets(self, parameters: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
        """Those with a gradient, small neighbours together: one launch of each operation for them all."""
        bucket: list[torch.Tensor] = []
        kind: Any = None
        for parameter in parameters:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            same = parameter.device, state["step"], parameter.numel() // len(state["exp_avg_scale"])
            size = sum(p.numel() for p in [*bucket, parameter])
            if bucket and (same != kind or size > chunk_size(parameter.device.type)):
                yield bucket
                bucket = []
            bucket.append(parameter)
            kind = same
        if bucket:
            yield bucket

    def _update(self, bucket: list[torch.Tensor], group: dict[str, Any], noise: torch.Tensor) -> None:
        states = [self.state[parameter] for parameter in bucket]
        for state in states:
            state["step"] += 1
        step = states[0]["step"]
        beta1, beta2 = group["betas"]
        step_size = group["lr"] / (1 - beta1**step)
        correction = (1 - beta2**step) ** 0.5
        kept = [[state[name] for state in states] for name in ("low", "exp_avg", "exp_avg_sq", "exp_avg_scale")]
        held = [[t.detach().view(-1) for t in tensors] for tensors in (bucket, *kept)]
        joined = [torch.cat(parts) if len(bucket) > 1 else parts[0] for parts in held]
        gradients = torch.cat([p.grad.reshape(-1) for p in bucket if p.grad is not None])
        blocks = len(noise) * len(joined[-1]) // len(gradients)
        cuts = [t.split(blocks if t is joined[-1] else len(noise)) for t in (*joined, gradients)]
        for high, low, first, second, scale, part in zip(*cuts, strict=True):
            gradient, scale = part.float(), scale.unsqueeze(1)
            mean = expand(first, scale).lerp_(gradient, 1 - beta1)
            square = second.float().mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            weight = join(high, low).mul_(1 - group["lr"] * group["weight_decay"])
            weight.addcdiv_(mean, (square.sqrt() / correction).add_(group["eps"]), value=-step_size)
            bits = noise[: weight.numel()]
            compress(mean, first, scale, bits)
            second.copy_(round_stochastically(square, bits))
            split(weight, high, low, bits)
        if len(bucket) > 1:
            for parts, whole in zip(held, joined, strict=True):
                torch._foreach_copy_(parts, whole.split([len(part) for part in parts]))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch does, but leaves every state its dtype: torch casts them to their parameter's."""
        super().load_state_dict({**state_dict, "state": {}})
        parameters = self._parameters()
        for index, state in state_dict["state"].items():
            parameter = parameters[index]
            self.state[parameter] = {k: v.to(parameter.device) if k != "step" else v for k, v in state.items()}


def chunk_size(device: str) -> int:
    """Elements updated at once: on a CPU few enough that the float32 temporaries, 1 MB each, stay in its cache; on an
    accelerator, where every operation costs a launch, 32 MB each."""
    return 2**18 if device == "cpu" else 2**23


def join(high: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    """The float32 that `high` (bfloat16) and `low` (int8, in units of 1/256 of its last bit) stand for together."""
    return ((high.view(torch.int16).int() << 16) + (low.int() << 8)).view(torch.float32)


def split(weight: torch.Tensor, high: torch.Tensor, low: torch.Tensor, noise: torch.Tensor | None = None) -> None:
    """Write a float32 `weight` as its nearest bfloat16 `high` and the next 8 bits, `low` (int8): rounded to nearest, or
    stochastically with `noise`, integers uniform in [0, 2^16)."""
    bits = weight.view(torch.int32) + (0x80 if noise is None else noise & 0xFF)
    upper = (bits + 0x8000) >> 16
    high.view(torch.int16).copy_(upper)
    low.copy_((bits - (upper << 16)) >> 8)


def round_stochastically(value: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """A bfloat16 above or below `value`, with the odds that make the mean right; `noise` as in `split`."""
    return ((value.view(torch.int32) + noise) >> 16).to(torch.int16).view(torch.bfloat16)


def compress(values: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, noise: torch.Tensor) -> None:
    """Write float32 `values` as `codes` (int8) in units of their block's largest, `scales` `(blocks, 1)`.

    A code is the square root, so that small numbers beside a large one keep more digits: steps are 1.6 % of the largest
    near it, 0.16 % at a hundredth of it. Roots are rounded stochastically; this is right in the mean to 2e-5 of the
    largest.
    """
    blocks = values.view(len(scales), -1)
    roots = blocks.abs()
    scales.copy_(roots.amax(dim=1, keepdim=True))
    roots.div_(scales.clamp(min=torch.finfo(torch.float32).tiny)).sqrt_().mul_(127)
    roots.view(-1).add_(noise, alpha=2**-16)
    codes.copy_(roots.floor_().copysign_(blocks).view(-1))


def expand(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The float32 numbers that `compress` wrote, as a vector."""
    roots = codes.float()
    return roots.mul_(roots.abs()).view(len(scales), -1).mul_(scales / 127**2).view(-1)


def halve_parameters(model: nn.Module) -> None:
    """Put a model's float32 parameters into bfloat16, in place; `SplitAdamW` finds the next bits beside them.

    Without them every weight would start exactly on bfloat16's grid, and steps below half its spacing would show
    nowhere at first. Buffers stay: rotary frequencies need float32.
    """
    for parameter in model.parameters():
        if parameter.dtype == torch.float32:
            high = torch.empty_like(parameter.data, dtype=torch.bfloat16)
            low = torch.empty_like(parameter.data, dtype=torch.int8)
            split(parameter.data.contiguous(), high, low)
            parameter.data = high
            parameter.__dict__["remainder"] = low


def own_optimizer(
    args: TrainingArguments, model: nn.Module | None
) -> tuple[type[torch.optim.Optimizer], dict[str, Any]] | None:
    """The optimizer of ours that a run asks for, and what to build it with: `MuonWithAdamW` for `--optim muon`,
    `SplitAdamW` for bfloat16 weights. None where it is one of transformers'."""
    chosen = {"lr": args.learning_rate, "betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
    if model is None:
        return None
    if args.optim_args == "muon=true":
        groups = muon_groups(model, args.weight_decay)
        return MuonWithAdamW, {**chosen, "params": groups, "weight_decay": args.weight_decay}
    # An adapter over frozen bfloat16 weights is itself in float32, and torch's AdamW is what it wants.
    trained = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
    halved = args.optim.startswith("adamw_torch") and trained == {torch.bfloat16}
    return (SplitAdamW, chosen) if halved else None
