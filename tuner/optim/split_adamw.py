"""AdamW over bfloat16 weights that still shows small steps.

bfloat16 keeps 8 significant bits of a weight, and most steps of fine-tuning are smaller than the last of them. Here the
optimizer holds the next 8, and an update is made on both together in float32: master weights of 16 significant bits for
one more byte, where mixed precision holds a second copy of four. The first moment takes one byte, with a scale for
every 64 (as in Dettmers et al. 2022, https://arxiv.org/abs/2110.02861), the second is held in bfloat16. What is cut off
is rounded stochastically, so that it counts in the mean: `beta2 = 0.999` changes the second moment by less than
bfloat16 can show, and rounding to nearest would leave it as it is (Zamirai et al. 2020,
https://arxiv.org/abs/2010.06192).

In all 8 bytes a parameter, gradient included, where mixed precision over float32 weights takes 18.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from tuner.optim.muon import MuonWithAdamW, muon_groups
from tuner.optim.rounding import compress, expand, join, round_stochastically, split

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
        parameters = self._parameters()
        for parameter in parameters:
            if parameter.dtype != torch.bfloat16:
                raise ValueError(f"SplitAdamW takes bfloat16 parameters, not {parameter.dtype}.")
        # Made now and not at the first step: among what a step leaves free they would lie scattered, and the next step
        # would find no room between them.
        for parameter in parameters:
            low = parameter.__dict__.pop("remainder", None)
            blocks = parameter.numel() // math.gcd(parameter.numel(), BLOCK)
            self.state[parameter] = {
                "step": 0,
                "low": torch.zeros_like(parameter, dtype=torch.int8) if low is None else low.to(parameter.device),
                "exp_avg": torch.zeros_like(parameter, dtype=torch.int8),
                "exp_avg_scale": torch.zeros(blocks, 1, device=parameter.device),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update. The random bits that rounding takes follow from the number of the step alone: all processes of a
        run must round alike, or their weights drift apart."""
        loss = None if closure is None else closure()
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
        return loss

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
        step = states[0]["step"] + 1
        beta1, beta2 = group["betas"]
        step_size = group["lr"] / (1 - beta1**step)
        correction = (1 - beta2**step) ** 0.5
        held = [[p.detach().view(-1) for p in bucket]]
        held += [[state[name].view(-1) for state in states] for name in ("low", "exp_avg", "exp_avg_sq")]
        held += [[state["exp_avg_scale"].view(-1) for state in states]]
        joined = [torch.cat(parts) if len(bucket) > 1 else parts[0] for parts in held]
        grads = [p.grad.reshape(-1) for p in bucket if p.grad is not None]
        gradients = torch.cat(grads) if len(bucket) > 1 else grads[0]
        block = len(gradients) // len(joined[-1])
        cuts = [t.split(len(noise) // (block if t is joined[-1] else 1)) for t in (*joined, gradients)]
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
        for state in states:
            state["step"] = step
        if len(bucket) > 1:
            for parts, whole in zip(held, joined, strict=True):
                torch._foreach_copy_(parts, whole.split([len(part) for part in parts]))

    def _parameters(self) -> list[torch.Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

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


def own_optimizer(
    args: TrainingArguments, model: nn.Module | None
) -> tuple[type[torch.optim.Optimizer], dict[str, Any]] | None:
    """The optimizer of ours that a run asks for, and what to build it with: `SplitAdamW` for bfloat16 weights,
    `MuonWithAdamW` for `--optim muon`. None where it is one of transformers'."""
    betas = (args.adam_beta1, args.adam_beta2)
    chosen = {"lr": args.learning_rate, "betas": betas, "eps": args.adam_epsilon}
    if model is None:
        return None
    if args.optim_args == "muon=true":
        groups = muon_groups(model, args.weight_decay)
        return MuonWithAdamW, {**chosen, "params": groups, "weight_decay": args.weight_decay}
    if args.optim.startswith("adamw_torch"):
        trained = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
        # An adapter over frozen bfloat16 weights is itself in float32, and torch's AdamW is what it wants.
        return (SplitAdamW, chosen) if trained == {torch.bfloat16} else None
    return None
