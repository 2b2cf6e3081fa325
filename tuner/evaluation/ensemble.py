"""An ensemble of reward models: one run a member, which differ in their seed, and what they say together.

    {"objective", "members", "comparison": {"accuracy": {who: value}}, "classes": {who: {"value", "low", "high", ...}}}

is the schema of its `metrics.json`. Left out: members that share a backbone, which cost less and agree more.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState

from tuner.errors import CheckpointError
from tuner.evaluation.report import show_comparison
from tuner.evaluation.statistics import paired, proportion
from tuner.loading.reward import ENSEMBLE
from tuner.objectives.arguments import RewardArguments
from tuner.objectives.reward import Reward
from tuner.train.run import say


def members(args: RewardArguments) -> Iterator[RewardArguments]:
    """The arguments of each member's run; without an ensemble the run's own, in a dry run the first's alone.

    Raises:
        CheckpointError: a single model where there is an ensemble.
    """
    folder = Path(args.output_dir)
    if args.ensemble == 1:
        if (folder / ENSEMBLE).is_file():
            raise CheckpointError(f"{folder} holds an ensemble: choose another --output_dir.")
        yield args
        return
    for number in range(1 if args.dry_run else args.ensemble):
        member = copy.copy(args)
        member.seed, member.ensemble, member.output_dir = args.seed + number, 1, str(folder / f"member-{number}")
        say(f"Member {number + 1} of {args.ensemble}, --seed {member.seed}.")
        yield member


def write_ensemble(args: RewardArguments, trained: list[Reward]) -> None:
    """Write what `RewardModel` needs to know of an ensemble, and how it judges beside its members, on the main process;
    nothing where there is none."""
    if args.ensemble == 1 or args.dry_run or not PartialState().is_main_process:
        return
    folder, names = Path(args.output_dir), [f"member-{number}" for number in range(args.ensemble)]
    rewards = np.stack([each.judged for each in trained if each.judged is not None]).astype(
        float
    )  # (members, pairs, 2)
    centres = rewards.mean(axis=(1, 2))
    kept = {"members": names, "centres": centres.tolist(), "spread": args.ensemble_spread}
    (folder / ENSEMBLE).write_text(json.dumps(kept, indent=1), encoding="utf-8")
    moved = rewards - centres[:, None, None]
    judges = dict(zip(names, rewards, strict=True))
    judges |= {"mean": moved.mean(axis=0), "ensemble": moved.mean(axis=0) - args.ensemble_spread * moved.std(axis=0)}
    hits = {who: each[:, 0] > each[:, 1] for who, each in judges.items()}
    figures = {who: vars(proportion(int(right.sum()), len(right))) for who, right in hits.items()}
    apart, chance, test = paired(hits["ensemble"], np.mean([hits[name] for name in names], axis=0))
    found: dict[str, Any] = {"objective": Reward.name, "members": names}
    found |= {"comparison": {"accuracy": {who: figure["value"] for who, figure in figures.items()}}, "classes": figures}
    found["ensemble less its average member"] = {**vars(apart), "p": chance, "test": test}
    (folder / "metrics.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    show_comparison(found["comparison"], Reward.name)
    say(f"The ensemble less its average member: {apart}. Written to {folder}: {ENSEMBLE}, metrics.json.")
