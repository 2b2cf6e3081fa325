"""What a model can be trained with, found by trying it: packed rows, padding without a mask, the chunked loss.

Whether attention tells packed sequences apart depends on the family, its attention implementation and the batch size;
whether a loss can be chunked, on what a family does to its logits. No field says so, so a few forward passes over a
dozen tokens do, on the model that is to be trained.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from transformers import PreTrainedModel

from tuner.errors import one_line
from tuner.model import TunerPreTrainedModel
from tuner.ops.chunked_loss import supervised_positions

LENGTHS = (5, 7, 4)
LOGIT_SCALE = 30.0  # standard deviation of made-up logits: soft caps are 20 to 50 in the families that have one
MOST_NOISE = 0.05  # more is no rounding: another row of the batch leaks, or the past changes with the future
# What is wrong where a check fails, and what follows from it.
FINDINGS = {
    "packing": ("does not keep the sequences of one row apart", "each sequence has a row of its own"),
    "padding": ("gives other results beside padding", "it needs an attention mask"),
    "chunked_loss": (
        "has a loss that is not the cross-entropy of its head's output",
        "it keeps its own loss, over all logits at once",
    ),
}


@dataclass
class Probe:
    """What was found, of which model under which attention.

    Attributes:
        joining: sequences of the only row of a batch, told apart by `position_ids` alone, come out as each alone.
        packing: so do those of a batch of several rows.
        padding: what is added on the right leaves the real positions alone, without a mask.
        chunked_loss: the cross-entropy of the head over the backbone's output is the model's own loss.
        why: the largest relative difference, or what the model raised, by the name of the check that failed.
    """

    model: str
    attention: str
    joining: bool = False
    packing: bool = False
    padding: bool = False
    chunked_loss: bool = False
    why: dict[str, str] = field(default_factory=dict)

    def say(self, packing: bool = True) -> list[str]:
        """One line for each check that failed, and what follows from it.

        Args:
            packing: whether that sequences cannot share a row changes anything.
        """
        asked = [check for check in FINDINGS if check != "packing" or packing]
        return [f"{self.reason(check)}: {FINDINGS[check][1]}." for check in asked if not getattr(self, check)]

    def reason(self, check: str) -> str:
        """What was found, without a full stop, to be followed by what is done about it."""
        why = self.why.get(check) or self.why["joining"]  # without which there is no packing
        return f"{self.model} with {self.attention} attention {FINDINGS[check][0]} ({why})"


@torch.no_grad()
def probe(model: PreTrainedModel, autocast: torch.dtype | None = None) -> Probe:
    """Try a causal model on a few short sequences. Call it before anything wraps the model or replaces its loss.

    The inputs are the same in every process and no process waits for another. Modes, buffers, configuration and states
    of torch's generators are as before afterwards, and no gradient is made. A model that raises fails the check.

    Args:
        model: any of transformers, bare or in a PEFT wrapper.
        autocast: dtype of mixed precision, None without.
    """
    result = Probe(type(_unwrapped(model)).__name__, str(model.config._attn_implementation))
    trial: Any = None
    with warnings.catch_warnings(), _kept(model), torch.autocast(model.device.type, autocast, autocast is not None):
        warnings.simplefilter("ignore")
        for check in ("joining", "packing", "padding", "chunked_loss"):
            try:
                trial = trial or _Trial(model, autocast or model.dtype)
                passed, difference = getattr(trial, check)()
                why = f"relative difference {difference:.1g}"
            except Exception as error:  # whatever a strange model raises
                passed, why = False, f"{type(error).__name__}: {one_line(error)}"
            setattr(result, check, passed)
            if not passed:
                result.why[check] = why
    result.packing &= result.joining
    return result


class _Trial:
    """Sequences for one model, and each check: whether it holds, and the largest relative difference it saw.

    Two differences tell. What should be the same but for rounding may differ by `near`: by what other shapes of a
    computation change in this model, and some. What only other tokens could change may differ by `same`, next to
    nothing in any precision: there a leak shows that is smaller than rounding.
    """

    def __init__(self, model: Any, dtype: torch.dtype):
        self.model, self.vocabulary = model, _plain_tokens(model)
        self.generator = torch.Generator().manual_seed(0)
        places = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 0
        most = max(places // len(LENGTHS), 1) if places > 0 else max(LENGTHS)  # negative, as XLNet's, is no limit
        self.lengths = [min(n, most) for n in LENGTHS]
        self.sequences = [self.draw(1, n) for n in self.lengths]
        self.positions = [torch.arange(n)[None] for n in self.lengths]
        self.alone = [self.run(sequence) for sequence in self.sequences]
        row = torch.cat(self.sequences, dim=1)
        twice, beside = self.run(row.repeat(2, 1)), self.run(torch.cat([row, self.other(row)]))
        # A causal model's beginning of a longer row is the shorter one.
        noise = _difference(twice[:, : self.lengths[0]], self.alone[0])
        self.near = max(8 * torch.finfo(dtype).eps, 1e-5, 4 * min(noise, MOST_NOISE))
        # Experts' products have other shapes beside other tokens.
        noise = _difference(beside[:1], twice[:1])
        self.same = max(16 * torch.finfo(torch.float32).eps, 4 * min(noise, MOST_NOISE))

    def draw(self, *shape: int) -> torch.Tensor:
        """Indices of ordinary tokens."""
        return torch.randint(len(self.vocabulary), shape, generator=self.generator)

    def other(self, tokens: torch.Tensor) -> torch.Tensor:
        """Another token in every place."""
        return (tokens + 1) % len(self.vocabulary)

    def run(self, tokens: torch.Tensor, **options: Any) -> torch.Tensor:
        """Logits `(batch, time, vocabulary)`."""
        logits = _call(self.model, input_ids=self.vocabulary[tokens], **options).logits
        return logits[:, -tokens.shape[1] :]  # learned prompts come first

    def joining(self) -> tuple[bool, float]:
        """A row of one, each sequence against itself alone, and the second amid other tokens."""
        first, own, last = self.sequences
        rows = (self.sequences, [self.other(first), own, self.other(last)])
        positions = torch.cat(self.positions, dim=1)
        one, two = (self.run(torch.cat(row, dim=1), position_ids=positions) for row in rows)
        where = slice(self.lengths[0], sum(self.lengths[:2]))
        return self.verdict(_difference(one, torch.cat(self.alone, dim=1)), _difference(two[:, where], one[:, where]))

    def packing(self) -> tuple[bool, float]:
        """Rows of two, in another order each, each sequence against itself alone."""
        tokens, positions, alone = (
            torch.cat([torch.cat([parts[i] for i in order], dim=1) for order in ((0, 1, 2), (2, 0, 1))])
            for parts in (self.sequences, self.positions, self.alone)
        )
        return self.verdict(_difference(self.run(tokens, position_ids=positions), alone))

    def padding(self) -> tuple[bool, float]:
        """Each sequence before padding against itself alone, and before other padding."""
        time = sum(self.lengths)
        real = torch.arange(time) < torch.tensor(self.lengths)[:, None]
        one, two = (
            self.run(torch.cat([F.pad(s, (0, time - s.shape[1]), value=filler) for s in self.sequences]))[real]
            for filler in (0, 1)
        )
        return self.verdict(_difference(one, torch.cat(self.alone, dim=1)[0]), _difference(two, one))

    def chunked_loss(self) -> tuple[bool, float]:
        """What the head takes and gives against the backbone's output, and the model's own loss of made-up logits.

        They are large: a model as initialised has logits so near 0 that a soft cap leaves them alone.
        """
        causal_lm = _unwrapped(self.model)
        head = causal_lm.get_output_embeddings()
        if not isinstance(head, nn.Linear) or causal_lm.base_model is causal_lm:
            raise TypeError("no linear head over a backbone")
        ids = self.vocabulary[self.draw(2, sum(self.lengths))].to(head.weight.device)
        labels = ids.clone()
        labels[0, : self.lengths[0]] = -100
        hidden = _call(causal_lm.base_model, input_ids=ids).last_hidden_state
        product = F.linear(hidden, head.weight, head.bias)
        logits = torch.randn(product.shape, generator=self.generator).to(product)
        # The right token stands out, so that a loss without the shift is several times as large.
        logits += 2 * F.one_hot(F.pad(ids, (0, 1))[:, 1:], logits.shape[-1])
        logits *= LOGIT_SCALE
        seen: list[torch.Tensor] = []

        def made_up(module: nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
            seen.extend([args[0], output])
            return logits

        with head.register_forward_hook(made_up):
            outputs = _call(causal_lm, input_ids=ids, labels=labels)
        # Our models' balance of experts is computed beside the chunked loss; others' is not.
        balance = outputs.get("aux_loss") if isinstance(causal_lm, TunerPreTrainedModel) else None
        own = outputs.loss if balance is None else outputs.loss - balance * causal_lm.config.router_aux_loss_coef
        states, targets = supervised_positions(logits, labels)
        plain = F.cross_entropy(states.float(), targets)
        pairs = ((seen[0], hidden), (seen[1], product), (own, plain))
        return self.verdict(max(_difference(*pair) for pair in pairs))

    def verdict(self, near: float, same: float = 0.0) -> tuple[bool, float]:
        """Of a difference between what is to be near, and of one between what is to be the same."""
        return near <= self.near and same <= self.same, max(near, same)


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest norm of a difference to a norm, of all vectors in the last dimension."""
    found, expected = (torch.atleast_1d(t.float()) for t in (found, expected))
    scale = expected.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    return float(((found - expected).norm(dim=-1) / scale).max())


def _call(module: nn.Module, **inputs: torch.Tensor) -> Any:
    """A forward pass that leaves the buffers alone."""
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    device = next(module.parameters()).device
    return functional_call(module, buffers, (), {name: value.to(device) for name, value in inputs.items()})


def _unwrapped(model: Any) -> Any:
    """The model inside a PEFT wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _plain_tokens(model: Any) -> torch.Tensor:
    """Ids of the vocabulary that no field of the configuration names."""
    config = model.config.get_text_config()
    ids, special = torch.arange(config.vocab_size), []
    for name, value in {**model.config.to_dict(), **config.to_dict()}.items():
        if "token" in name:
            special += [i for i in (value if isinstance(value, list) else [value]) if type(i) is int]
    plain = ids[~torch.isin(ids, torch.tensor(special, dtype=torch.long))]
    return plain if len(plain) > 1 else ids


@contextmanager
def _kept(model: Any) -> Iterator[None]:
    """Evaluation mode without a cache; everything as before afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    caches = getattr(model.config, "use_cache", None)
    device = [] if model.device.type == "cpu" else [model.device]
    with torch.random.fork_rng(device, device_type=model.device.type):
        torch.manual_seed(0)
        try:
            model.eval()
            if caches:
                model.config.use_cache = False
            yield
        finally:
            if caches:
                model.config.use_cache = caches
            for module, mode in modes:
                module.training = mode
