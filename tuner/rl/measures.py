"""What is logged of an update, under the names of TRL's PPO where it has one; means over all processes."""

from __future__ import annotations

from typing import Any

import torch

from tuner.rl.losses import divergence
from tuner.rl.update import Experience


def measures(
    loop: Any,
    experience: Experience,
    sampled: torch.Tensor,
    scores: torch.Tensor,
    by_name: dict[str, torch.Tensor],
    learnt: dict[str, float],
    lengths: list[int],
) -> dict[str, float]:
    """A line of the log.

    Args:
        sampled: log-probabilities as the completions were sampled, `(n, t)`.
        scores, by_name: of the completions, and each reward's.
        learnt: means over tokens of what the update saw.
        lengths: of the completions of all processes.
    """
    args, rollout, mask = loop.args, experience.rollout, experience.rollout.mask
    count, tokens = len(lengths), sum(lengths)
    kinds = dict.fromkeys(("k1", "k3", args.kl_estimator))
    kl = {kind: divergence(sampled, experience.reference, kind) * mask for kind in kinds}
    wanted = [*kl.values(), -sampled, scores, rollout.ended]
    known = (loop.add_up(torch.stack([each.double().sum() for each in wanted])) / count).tolist()
    divergences, (entropy, score, ended) = dict(zip(kl, known, strict=False)), known[len(kl) :]
    penalty = 0.0 if args.kl_in_loss else -loop.kl.coefficient * divergences[args.kl_estimator]
    found = {
        "objective/kl": divergences["k1"],
        "objective/kl_k3": divergences["k3"],
        "objective/kl_coef": loop.kl.coefficient,
        "objective/entropy": entropy,
        "objective/scores": score,
        "objective/non_score_reward": penalty,
        "objective/rlhf_reward": score + penalty,
        "response/length": tokens / count,
        "response/ended": ended,
        "grad_norm": sum(loop.norms) / len(loop.norms),
        "lr": loop.lr_scheduler.get_last_lr()[0],
        "episode": (loop.state.global_step + 1) * count,
        "eps": count / sum(loop.seconds.values()),
    }
    if loop.actor.value is not None:
        found |= {"loss/value_avg": learnt["value"], "val/clipfrac_avg": learnt["value_clipped"]}
        found["value/explained_variance"] = explained_variance(loop, rollout.values[mask], experience.returns[mask])
    if loop.state.global_step >= args.value_warmup_steps:
        found |= {
            "loss/policy_avg": learnt["policy"],
            "policy/entropy_avg": learnt["entropy"],
            "policy/approxkl_avg": learnt["kl_squared"],
            "policy/clipfrac_avg": learnt["clipped"],
            "val/ratio": learnt["ratio"],
            "val/ratio_var": learnt["ratio_squared"] - learnt["ratio"] ** 2,
        }
    if loop.engine is not None:
        found["rollout/drift"] = float(loop.add_up(rollout.drift.double().abs().sum())) / tokens
    for name, values in by_name.items():
        said = loop.add_up(torch.stack([values.nan_to_num().sum(), (~values.isnan()).sum()]).double().to(mask.device))
        found[f"rewards/{name}"] = float(said[0] / said[1].clamp(min=1))
    for phase, seconds in loop.seconds.items():
        found |= {f"time/{phase}": seconds, f"tokens_per_second/{phase}": tokens / seconds}
    return found


# Of several updates these are the last one's; all else is a mean.
OF_THE_LAST = ("lr", "episode")


def over_updates(lines: list[dict[str, float]]) -> dict[str, float]:
    """One line of the log for several updates (`--logging_steps`): means over those that have a measure."""
    found = {}
    for name in dict.fromkeys(name for line in lines for name in line):
        values = [line[name] for line in lines if name in line]
        found[name] = values[-1] if name in OF_THE_LAST else sum(values) / len(values)
    return found


# What the screen shows of a line of the log: its name there, and how.
SHOWN = {
    **{"objective/scores": ("reward", "{:.4g}"), "objective/kl": ("kl", "{:.3g}")},
    **{"response/length": ("length", "{:.1f}"), "response/ended": ("ended", "{:.0%}")},
    **{"policy/entropy_avg": ("entropy", "{:.3g}"), "policy/clipfrac_avg": ("clipped", "{:.1%}")},
    **{
        "value/explained_variance": ("value explains", "{:.0%}"),
        "lr": ("lr", "{:.2g}"),
        "eps": ("episodes/s", "{:.2f}"),
    },
    **{"eval_reward": ("reward", "{:.4g}"), "eval_reward/judge": ("judge", "{:.4g}"), "eval_kl": ("kl", "{:.3g}")},
    **{"eval_length": ("length", "{:.1f}"), "eval_ended": ("ended", "{:.0%}")},
    **{"eval_perplexity": ("perplexity", "{:.4g}"), "eval_win_rate": ("win rate", "{:.0%}")},
}


def log_line(entry: dict[str, float], updates: int) -> str:
    """What the screen shows of an entry of the log."""
    what = "validation" if "eval_reward" in entry else "training"
    parts = [f"{name} {form.format(entry[key])}" for key, (name, form) in SHOWN.items() if key in entry]
    return f"update {entry['step']:,} of {updates:,}, {what}: {', '.join(parts)}"


def explained_variance(loop: Any, values: torch.Tensor, returns: torch.Tensor) -> float:
    """`1 - Var(returns - values) / Var(returns)` over the tokens of all processes."""
    count = loop.add_up(torch.tensor(float(len(values)), dtype=torch.float64, device=values.device))

    def spread(each: torch.Tensor) -> torch.Tensor:
        mean = loop.add_up(each.double().sum()) / count
        return loop.add_up(((each.double() - mean) ** 2).sum())

    return float(1 - spread(returns - values) / spread(returns).clamp(min=1e-12))
