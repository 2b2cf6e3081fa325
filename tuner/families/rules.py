"""How one family's parameter names and layouts become ours, and back.

A rule is a pair of names with `{i}` for a layer's number, `theirs = ours`, for a module or a parameter. Where a layout
differs, the rule says how; every change of layout is undone bit by bit on the way out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Rule:
    """One line of a family's table.

    Attributes:
        theirs: their name.
        ours: our name; several where theirs is several of ours, one after the other along the output.
        transposed: their weight is `(in, out)`, as GPT-2's is.
        row: theirs has one more dimension in front, of size 1.
    """

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False
    row: bool = False


def table(text: str, transposed: bool = False, row: bool = False) -> tuple[Rule, ...]:
    """Rules from lines `theirs = ours` or `theirs = one, other`."""
    rules = []
    for line in text.strip().splitlines():
        theirs, ours = (side.strip() for side in line.split("="))
        rules.append(Rule(theirs, tuple(name.strip() for name in ours.split(",")), transposed, row))
    return tuple(rules)


def _matching(name: str, pattern: str) -> tuple[str, str] | None:
    """The layer's number and what follows (`.weight` or `.bias`), where a name fits a pattern."""
    expression = re.escape(pattern).replace(re.escape("{i}"), r"(?P<i>\d+)") + r"(?P<rest>(\.weight|\.bias)?)"
    found = re.fullmatch(expression, name)
    return (found.groupdict().get("i") or "", found["rest"]) if found else None


def import_weights(theirs: Weights, rules: Iterable[Rule], sizes: dict[str, int]) -> Weights:
    """Ours from theirs. What no rule names is refused.

    Args:
        sizes: for a rule with several of ours, how many rows each takes, by the last part of its name.

    Raises:
        ValueError: a parameter without a counterpart.
    """
    rules = tuple(rules)
    ours: Weights = {}
    for name, tensor in theirs.items():
        for rule in rules:
            found = _matching(name, rule.theirs)
            if found is not None:
                break
        else:
            raise ValueError(f"{name} has no counterpart here.")
        layer, rest = found
        tensor = tensor.squeeze(0) if rule.row else tensor
        tensor = tensor.T.contiguous() if rule.transposed and rest == ".weight" else tensor
        names = [f"{name.replace('{i}', layer)}{rest}" for name in rule.ours]
        parts = [tensor]
        if len(names) > 1:
            parts = [part.contiguous() for part in tensor.split([sizes[n.rsplit(".", 1)[-1]] for n in rule.ours])]
        ours.update(zip(names, parts, strict=True))
    return ours


def export_weights(ours: Weights, rules: Iterable[Rule]) -> Weights:
    """Theirs from ours, the way back of `import_weights`.

    Raises:
        ValueError: a parameter without a counterpart.
    """
    rules, left = tuple(rules), dict(ours)
    theirs: Weights = {}
    for name in ours:
        if name not in left:
            continue
        for rule in rules:
            found = _matching(name, rule.ours[0])
            if found is not None:
                break
        else:
            raise ValueError(f"{name} has no counterpart there.")
        layer, rest = found
        parts = [left.pop(f"{part.replace('{i}', layer)}{rest}") for part in rule.ours]
        tensor = torch.cat(parts) if len(parts) > 1 else parts[0]
        tensor = tensor.T.contiguous() if rule.transposed and rest == ".weight" else tensor
        theirs[f"{rule.theirs.replace('{i}', layer)}{rest}"] = tensor.unsqueeze(0) if rule.row else tensor
    return theirs
