"""Several data sets as one: which they are, and what share each has in an epoch.

An epoch has as many examples as all sets together. Where shares are given, each set gives its share of them, and goes
on in the next epoch where it stopped: in a new order each time it is through, every example as often as any other of
its set. Which ones an epoch has is a function of (seed, epoch), as their order is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tuner.errors import ArgumentError, nearest

# Keys of a data set in YAML's list.
KEYS = ("name", "config", "column_mapping", "weight")


@dataclass(frozen=True)
class Source:
    """One of the data sets of a run."""

    name: str
    config: str | None = None
    column_mapping: str | None = None
    weight: float | None = None

    @property
    def short(self) -> str:
        """A name to put into that of a figure."""
        return Path(self.name.removeprefix("builtin:")).name.split(".")[0] or self.name


def data_sources(args: Any) -> list[Source]:
    """The data sets that `--dataset_name` names, each a name or, in YAML, an object of `KEYS`; with `--dataset_weights`
    their shares. An ArgumentError for what does not go together."""
    sources = [_source(name, args) for name in args.dataset_name]
    names = [source.name for source in sources]
    if not names or len(set(names)) < len(names):
        raise ArgumentError(f"--dataset_name {' '.join(names)}: name each data set once, and one at least.")
    given = list(args.dataset_weights) or [source.weight for source in sources]
    if all(weight is None for weight in given):
        return sources
    if len(given) != len(sources) or any(weight is None or not 0 < weight < math.inf for weight in given):
        shown = " ".join("none" if weight is None else f"{weight:g}" for weight in given)
        raise ArgumentError(f"--dataset_weights {shown}: one above 0 for each of {', '.join(names)} is needed.")
    if len(sources) == 1:
        raise ArgumentError(f"--dataset_weights: {names[0]} is the only data set. Leave it out.")
    total = sum(given)
    shares = [weight / total for weight in given]
    return [replace(source, weight=share) for source, share in zip(sources, shares, strict=True)]


def names_of(args: Any) -> str:
    """The data sets, to speak of."""
    return ", ".join(source.name for source in data_sources(args))


def _source(text: str, args: Any) -> Source:
    if not text.startswith("{"):
        return Source(text, args.dataset_config, args.column_mapping)
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ArgumentError(f"--dataset_name {text}: {error}") from error
    for key in found.keys() - set(KEYS):
        raise ArgumentError(f"--dataset_name: {key!r} is none of {', '.join(KEYS)}.{nearest(key, KEYS)}")
    mapping, weight = found.get("column_mapping", args.column_mapping), found.get("weight")
    if isinstance(mapping, dict):
        mapping = json.dumps(mapping)
    if not isinstance(mapping, str | None):
        raise ArgumentError(f"--dataset_name {text}: 'column_mapping' is an object of names, or a text.")
    if not isinstance(found.get("name"), str) or not isinstance(weight, int | float | None):
        raise ArgumentError(f"--dataset_name {text}: a 'name' is needed, and a 'weight' is a number.")
    return Source(found["name"], found.get("config", args.dataset_config), mapping, weight)


class Shares:
    """Which draws an epoch has: of example `n` in its set's turn `t` the number `n + t x` all examples, so that no two
    are the same in a run (`tuner.data.draws`).

    Args:
        sizes: examples of each set; they lie one set after the other.
        weights: the share of each, with a sum of 1.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int):
        self.sizes, self.seed = sizes, seed
        wanted = np.array(weights) * sum(sizes)
        # Whole examples, those with the largest rest rounded up.
        self.counts = np.floor(wanted).astype(int)
        self.counts[np.argsort(self.counts - wanted, kind="stable")[: sum(sizes) - self.counts.sum()]] += 1

    def __call__(self, epoch: int) -> np.ndarray:
        """Their numbers, one set after the other."""
        found, first, whole = [], 0, sum(self.sizes)
        for number, (size, count) in enumerate(zip(self.sizes, self.counts.tolist(), strict=True)):
            places = np.arange(epoch * count, (epoch + 1) * count)
            for turn in np.unique(places // size):
                order = np.random.default_rng([self.seed, number, int(turn)]).permutation(size)
                found.append(first + order[places[places // size == turn] % size] + turn * whole)
            first += size
        return np.concatenate(found)
