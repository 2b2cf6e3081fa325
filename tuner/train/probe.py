"""What a model can be trained with, found by trying it: packed rows, padding without a mask, the chunked loss.

Whether attention tells packed sequences apart depends on the family, its attention implementation and the batch size;
whether a loss can be chunked, on what a family does to its logits. No field says so, so a few forward passes over a
dozen tokens do (`tuner.train.trial`), on the model that is to be trained.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tuner.train.trial import Trial, kept, largest, unwrapped

MOST_NOISE = 0.05  # more is no rounding: another row of the batch leaks, or the past changes with the future
FAULTS = {
    "packing": "does not keep the sequences of one row apart",
    "padding": "gives other results beside padding",
    "chunked_loss": "has a loss that is not the cross-entropy of its head's output",
}
CONSEQUENCES = {
    "packing": "each sequence has a row of its own",
    "padding": "it needs an attention mask",
    "chunked_loss": "it keeps its own loss, over all logits at once",
}


@dataclass
class Probe:
    """What was found, of which model under which attention.

    Attributes:
        joining: sequences of the only row of a batch, told apart by `position_ids` alone, come out as each alone.
        packing: so do those of a batch of several rows.
        padding: what is added on the right leaves the real positions alone, without a mask in a causal model.
        chunked_loss: the cross-entropy of the head over the backbone's output is the model's own loss.
        differences: the largest relative difference behind each of the four, infinite where the model raised, and
            `noise`: that between computations that differ only in shape.
        errors: what the model raised, by the name of the check.
    """

    model: str
    attention: str
    joining: bool = False
    packing: bool = False
    padding: bool = False
    chunked_loss: bool = False
    differences: dict[str, float] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def say(self, packing: bool = True) -> list[str]:
        """One line for each check that failed, and what follows from it.

        Args:
            packing: whether that sequences cannot share a row changes anything.
        """
        asked = [check for check in CONSEQUENCES if check != "packing" or packing]
        return [f"{self.reason(check)}: {CONSEQUENCES[check]}." for check in asked if not getattr(self, check)]

    def reason(self, check: str) -> str:
        """What was found, without a full stop, to be followed by what is done about it."""
        why = self.errors.get(check) or f"relative difference {self.differences.get(check, float('nan')):.1g}"
        return f"{self.model} with {self.attention} attention {FAULTS[check]} ({why})"


@torch.no_grad()
def probe(model: nn.Module, causal: bool = True, autocast: torch.dtype | None = None) -> Probe:
    """Try a model on a few short sequences. Call it before anything wraps the model or replaces its loss.

    The inputs are the same in every process and no process waits for another. Modes, buffers, configuration and states
    of random number generators are as before afterwards, and no gradient is made. A model that raises fails the check.

    Args:
        model: any model of transformers, bare or in a PEFT wrapper.
        causal: False for an encoder, which gets a mask for its padding and has no chunked loss.
        autocast: dtype of mixed precision, None without.
    """
    config = getattr(model, "config", None)
    result = Probe(type(unwrapped(model)).__name__, str(getattr(config, "_attn_implementation", None)))
    dtype: Any = autocast or getattr(model, "dtype", torch.float32)
    found = result.differences
    with warnings.catch_warnings(), kept(model) as device:
        warnings.simplefilter("ignore")
        with torch.autocast(device.type, autocast) if autocast is not None else nullcontext():
            trial = Trial(model, device, causal)
            for check in (
                "noise",
                "joining",
                "packing",
                "leak",
                "padding",
                "future",
                *(("chunked_loss",) if causal else ()),
            ):
                found[check] = _tried(result, check, getattr(trial, check))
    limit = max(8 * torch.finfo(dtype).eps, 1e-5, 4 * min(found["noise"], MOST_NOISE))
    eps, beside = torch.finfo(torch.float32).eps, 4 * min(trial.beside, MOST_NOISE)
    sealed, blind = found["leak"] <= max(16 * eps, beside), found["future"] <= max(4 * eps, beside)
    result.joining, result.padding = sealed and found["joining"] <= limit, blind and found["padding"] <= limit
    result.packing = result.joining and found["packing"] <= limit
    result.chunked_loss = found.get("chunked_loss", float("inf")) <= limit
    found["packing"] = largest([found["packing"], found.pop("leak")])
    found["padding"] = largest([found["padding"], found.pop("future")])
    return result


def _tried(result: Probe, check: str, measure: Callable[[], float]) -> float:
    try:
        return measure()
    except Exception as error:  # whatever a strange model raises
        line = (str(error).strip().splitlines() or [""])[0]
        result.errors[check] = f"{type(error).__name__}: {line}"
        return float("inf")
