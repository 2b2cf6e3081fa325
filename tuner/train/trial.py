"""What a probe does to a model: a few short sequences, run alone, joined, packed and padded, and its loss both ways."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import CausalLMOutputWithPast

from tuner.model import TunerPreTrainedModel
from tuner.ops.chunked_loss import chunked_cross_entropy, supervised_positions

LENGTHS = (5, 7, 4)
LOGIT_SCALE = 30.0  # standard deviation of made-up logits: soft caps are 20 to 50 in the families that have one


class Trial:
    """Sequences for one model, and each check as a relative difference."""

    def __init__(self, model: nn.Module, device: torch.device, causal: bool):
        self.model, self.device, self.causal = model, device, causal
        self.generator = torch.Generator().manual_seed(0)
        self.vocabulary = torch.arange(0)
        places = getattr(_text_config(model), "max_position_embeddings", None) or sum(LENGTHS)
        few = 0 < places < sum(LENGTHS)  # a negative number, as XLNet's, is no limit
        most = max(places // len(LENGTHS), 1) if few else max(LENGTHS)
        self.lengths = [min(n, most) for n in LENGTHS]
        self.sequences: list[torch.Tensor] = []
        self.alone: list[torch.Tensor] = []
        self.beside = float("nan")  # what other rows of a batch change: experts' products have other shapes

    def draw(self, count: int) -> torch.Tensor:
        """Indices of ordinary tokens, `(1, count)`."""
        return torch.randint(len(self.vocabulary), (1, count), generator=self.generator)

    def other(self, tokens: torch.Tensor) -> torch.Tensor:
        """Another token in every place, if there is one."""
        return (tokens + 1) % len(self.vocabulary)

    def run(self, tokens: torch.Tensor, **options: Any) -> torch.Tensor:
        """Logits, or hidden states where there are none: `(batch, time, width)`."""
        options = {name: value.to(self.device) for name, value in options.items()}
        outputs = self.model(input_ids=self.vocabulary[tokens].to(self.device), **options)
        names = [name for name in ("logits", "last_hidden_state") if getattr(outputs, name, None) is not None]
        states = getattr(outputs, names[0]) if names else outputs[0]
        return states[:, -tokens.shape[1] :]  # learned prompts come first

    def noise(self) -> float:
        """What only the shapes of a computation change, or other rows of the batch: rounding, in this model."""
        self.vocabulary = _plain_tokens(self.model)
        self.sequences = [self.draw(n) for n in self.lengths]
        self.alone = [self.run(sequence) for sequence in self.sequences]
        # A causal model's beginning of a longer row is the shorter one.
        row = torch.cat(self.sequences, dim=1) if self.causal else self.sequences[0]
        twice, beside = self.run(row.repeat(2, 1)), self.run(torch.cat([row, self.other(row)]))
        self.beside = _difference(beside[:1], twice[:1])
        first = self.alone[0]
        return _difference(twice[:, : first.shape[1]], first)

    def joining(self) -> float:
        """A row of one, each sequence against itself alone."""
        row, positions = self._row([0, 1, 2])
        return self._against_alone([0, 1, 2], self.run(row, position_ids=positions))

    def packing(self) -> float:
        """Rows of two, each sequence against itself alone."""
        orders = ([0, 1, 2], [2, 0, 1])
        rows, positions = zip(*map(self._row, orders), strict=True)
        found = self.run(torch.cat(rows), position_ids=torch.cat(positions))
        return largest([self._against_alone(order, found[i : i + 1]) for i, order in enumerate(orders)])

    def _row(self, order: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        row = torch.cat([self.sequences[i] for i in order], dim=1)
        return row, torch.cat([torch.arange(self.lengths[i]) for i in order])[None]

    def _against_alone(self, order: list[int], found: torch.Tensor) -> float:
        return _difference(found, torch.cat([self.alone[i] for i in order], dim=1))

    def leak(self) -> float:
        """A sequence amid others of its row against itself amid others of the same lengths.

        Where nothing leaks, it is the same to the bit in any precision: a leak shows that is smaller than rounding.
        """
        first, own, last = self.sequences
        positions = torch.cat([torch.arange(n) for n in self.lengths])[None]
        rows = ([first, own, last], [self.other(first), own, self.other(last)])
        one, two = (self.run(torch.cat(row, dim=1), position_ids=positions) for row in rows)
        where = slice(self.lengths[0], sum(self.lengths[:2]))
        return _difference(two[:, where], one[:, where])

    def future(self) -> float:
        """The first sequence of a row before other tokens: the same to the bit where no token sees a later one."""
        if not self.causal:
            return 0.0
        first, *later = self.sequences
        rows = (self.sequences, [first, *map(self.other, later)])
        one, two = (self.run(torch.cat(row, dim=1))[:, : self.lengths[0]] for row in rows)
        return _difference(two, one)

    def padding(self) -> float:
        """Right-padded rows against each alone."""
        time = max(self.lengths)
        rows = torch.cat([F.pad(s, (0, time - s.shape[1])) for s in self.sequences])
        mask = (torch.arange(time) < torch.tensor(self.lengths)[:, None]).long()
        padded = self.run(rows, **({} if self.causal else {"attention_mask": mask}))
        return largest([_difference(padded[i : i + 1, :n], self.alone[i]) for i, n in enumerate(self.lengths)])

    def chunked_loss(self) -> float:
        """The loss as the objective computes it against the model's own.

        Once as the model is, and once with large made-up logits out of the head: a model as initialised has logits so
        near 0 that a soft cap leaves them alone.
        """
        causal_lm = unwrapped(self.model)
        head = causal_lm.get_output_embeddings()
        if not isinstance(head, nn.Linear) or causal_lm.base_model is causal_lm:
            raise TypeError("no linear head over a backbone")
        ids = self.vocabulary[self.draw(2 * sum(self.lengths)).view(2, -1)].to(self.device)
        labels = ids.clone()
        labels[0, : self.lengths[0]] = -100
        chunked: list[Any] = []
        seen: list[torch.Tensor] = []  # by the head, in the model's own forward

        def chunk(*args: Any, labels: torch.Tensor, **kwargs: Any) -> CausalLMOutputWithPast:
            hidden = causal_lm.base_model(*args, use_cache=False, **kwargs).last_hidden_state
            states, targets = supervised_positions(hidden, labels)
            chunked[:] = hidden, labels, chunked_cross_entropy(states, head.weight, targets, head.bias) / len(targets)
            return CausalLMOutputWithPast(loss=chunked[-1])

        with _replaced(causal_lm, "forward", chunk):
            self.model(input_ids=ids, labels=labels)
        hidden, full, loss = chunked  # labels of learned prompts are there too
        with head.register_forward_hook(lambda module, args, output: seen.extend([args[0], output])):
            own = self._own_loss(ids, labels)
        logits = torch.randn(seen[1].shape, generator=self.generator).to(seen[1]) * LOGIT_SCALE
        # The right token stands out, so that a loss without the shift is several times as large.
        logits += 2 * LOGIT_SCALE * F.one_hot(F.pad(full, (0, 1))[:, 1:].clamp_min(0), logits.shape[-1])
        with head.register_forward_hook(lambda module, args, output: logits):
            made_up = self._own_loss(ids, labels)
        states, targets = supervised_positions(logits, full)
        plain = F.cross_entropy(states.float(), targets)
        product = F.linear(hidden, head.weight, head.bias)
        pairs = ((loss, own), (seen[0], hidden), (seen[1], product), (made_up, plain))
        return largest([_difference(*pair) for pair in pairs])

    def _own_loss(self, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        outputs = self.model(input_ids=ids, labels=labels)
        # Our models' balance of experts is computed beside the chunked loss; others' is not.
        balance = outputs.get("aux_loss") if isinstance(unwrapped(self.model), TunerPreTrainedModel) else None
        return outputs[0] if balance is None else outputs[0] - balance


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest norm of a difference to a norm, of all vectors in the last dimension."""
    found, expected = (torch.atleast_1d(t.detach().float()) for t in (found, expected))
    scale = expected.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    return float(((found - expected).norm(dim=-1) / scale).max())


def largest(found: list[float]) -> float:
    """The largest of some differences; NaN stays NaN."""
    return float(np.max(found))


def unwrapped(model: Any) -> Any:
    """The model inside a PEFT wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _text_config(model: Any) -> Any:
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _plain_tokens(model: Any) -> torch.Tensor:
    """Ids of the vocabulary that no field of the configuration names."""
    config = _text_config(model)
    sizes = [getattr(config, "vocab_size", None)]
    sizes += [len(getattr(part(), "weight", ())) for part in (model.get_input_embeddings, model.get_output_embeddings)]
    count = min(size for size in sizes if size)
    special: list[int] = []
    for name, value in {**model.config.to_dict(), **config.to_dict()}.items():
        if "token" in name:
            special += [i for i in (value if isinstance(value, list) else [value]) if type(i) is int]
    ids = torch.arange(count)
    plain = ids[~torch.isin(ids, torch.tensor(special, dtype=torch.long))]
    return plain if len(plain) > 1 else ids


@contextmanager
def kept(model: Any) -> Iterator[torch.device]:
    """Evaluation mode without a cache, on the model's device; everything as before afterwards."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(module, dict(module._buffers)) for module in model.modules() if module._buffers]
    values = [(b, b.clone()) for _, named in buffers for b in named.values() if b is not None]
    states, config = (random.getstate(), np.random.get_state()), getattr(model, "config", None)
    with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type):
        torch.manual_seed(0)
        try:
            model.eval()
            with _replaced(config, "use_cache", False) if hasattr(config, "use_cache") else nullcontext():
                yield device
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            for module, mode in modes:
                module.training = mode
            for module, named in buffers:
                module._buffers.clear()
                module._buffers.update(named)
            for buffer, value in values:
                buffer.copy_(value)


@contextmanager
def _replaced(thing: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of one object, put back or taken off again."""
    before = thing.__dict__.get(name, thing)
    setattr(thing, name, value)
    try:
        yield
    finally:
        if before is thing:
            delattr(thing, name)
        else:
            setattr(thing, name, before)
