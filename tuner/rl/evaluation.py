"""What a policy's completions of validation prompts are worth: the same prompts and random numbers at every evaluation,
so that a completion differs by the training alone, and evaluations can be compared prompt by prompt."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tuner.rl.actor import ActorCritic
from tuner.rl.losses import divergence
from tuner.rl.rollout import Rollout, sample, uniforms
from tuner.rl.update import micro_batches

# The first of the random numbers of validation prompts: no run has so many episodes.
EVALUATION = 2**40
# Rows and characters of the table of samples.
SHOWN, LONGEST = 5, 300
FILE = "completions.jsonl"
# Standard errors by which a judge's mean must have fallen to be believed.
BELIEVED = 2.0


@torch.no_grad()
def evaluate_policy(trainer: Any) -> dict[str, float]:
    """Metrics of the validation prompts, the same on every process; each sample goes into `completions.jsonl`.

    Returns:
        `eval_reward`, its parts and `eval_judge`; `eval_kl`, of a completion in nats (k1); `eval_perplexity`, of the
        completions under the reference, at a temperature of 1; length, share ended; and from the second evaluation on
        `eval_win_rate`: the share of prompts whose reward is above that of the first, ties counted half.
    """
    args, actor = trainer.args, trainer.actor
    prompts: Any = trainer.eval_dataset
    share = np.array_split(np.arange(len(prompts)), args.world_size)[args.process_index].tolist()
    rows = [prompts[row] for row in share]
    found: list[dict[str, Any]] = []
    if rows:
        with trainer.accelerator.autocast():
            rollout = sample(
                actor.policy, [row["input_ids"] for row in rows],
                uniforms(args.seed, [EVALUATION + row for row in share], args.response_length), ends=trainer.ends,
                temperature=args.temperature, batch_size=args.local_rollout_forward_batch_size,
            )  # fmt: skip
            size = args.local_rollout_forward_batch_size
            sampled, plain = (
                logprobs_of(actor, rollout, size, trainer.ref_model, heat) for heat in (actor.temperature, 1.0)
            )
            scores, by_name = trainer.rewards_of(rows, rollout.prompts, rollout.completions())
            if trainer.judge is not None:
                by_name["judge"] = trainer.judge(rows, rollout.prompts, rollout.completions())[0]
        texts = trainer.processing_class.batch_decode(rollout.completions(), skip_special_tokens=True)
        kl = (divergence(rollout.logprobs, sampled, "k1") * rollout.mask).sum(dim=1)
        for place, row in enumerate(share):
            found.append({
                "row": row, "prompt": rows[place].get("prompt", rows[place].get("text")), "completion": texts[place],
                "reward": float(scores[place]), "kl": float(kl[place]), "length": int(rollout.lengths[place]),
                "ended": bool(rollout.ended[place]), "nats": -float(plain[place].sum()),
                **{f"reward/{name}": float(values[place]) for name, values in by_name.items()},
            })  # fmt: skip
    found = sorted(gather_object(found), key=lambda sample: sample["row"])
    if args.should_save:
        _keep(Path(str(args.output_dir)) / FILE, trainer.state.global_step, found, anew=not trainer.first_evaluation)
    return _metrics(trainer, found)


def _keep(file: Path, step: int, found: list[dict[str, Any]], anew: bool) -> None:
    """Add an update's samples to a file, in place of those of this and later ones, where a run that was killed comes
    again; of all that another run wrote, if a run writes `anew`."""
    before = [] if anew or not file.exists() else file.read_text(encoding="utf-8").splitlines()
    lines = [line for line in before if json.loads(line)["step"] < step]
    lines += [json.dumps({"step": step, **one}) for one in found]
    whole = file.with_suffix(".new")
    whole.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    whole.replace(file)


@torch.no_grad()
def logprobs_of(
    actor: ActorCritic, rollout: Rollout, size: int, model: Any = None, temperature: float | None = None
) -> torch.Tensor:
    """What a model says of completions' tokens, `(n, t)`: None is the policy without its adapter. A forward pass has
    the tokens of `size` mean sequences."""
    known, whole = torch.zeros_like(rollout.logprobs), rollout.whole_lengths()
    for batch in micro_batches(range(len(whole)), whole, size, actor.layout.padding_free):
        values, _ = actor.reference(rollout, batch, model, temperature)
        known[torch.as_tensor(batch, device=known.device)] = rollout.unflat(values, batch)
    return known


def _metrics(trainer: Any, found: list[dict[str, Any]]) -> dict[str, float]:
    names = [name for name in found[0] if name.startswith("reward")]
    means = {name: float(np.nanmean([one[name] for one in found])) for name in [*names, "kl", "length", "ended"]}
    nats, tokens = (sum(one[name] for one in found) for name in ("nats", "length"))
    metrics = {f"eval_{name}": value for name, value in means.items()}
    metrics["eval_perplexity"] = math.exp(min(nats / tokens, 700.0))
    kept: dict[str, Any] = {
        name: [one[name] for one in found] for name in ("reward", "reward/judge") if name in found[0]
    }
    first = trainer.first_evaluation
    if not first:
        trainer.first_evaluation = kept
        return metrics
    gains = np.subtract(kept["reward"], first["reward"])
    metrics["eval_win_rate"] = float(((gains > 0) + 0.5 * (gains == 0)).mean())
    if "reward/judge" in kept:
        metrics["eval_judge_win_rate"] = _judged(gains, np.subtract(kept["reward/judge"], first["reward/judge"]))
    return metrics


def _judged(gains: np.ndarray, judged: np.ndarray) -> float:
    """The share of prompts that the judge prefers now; a warning where the reward has risen while the judge fell."""
    error = judged.std(ddof=1) / math.sqrt(len(judged)) if len(judged) > 1 else math.inf
    if gains.mean() > 0 and judged.mean() < -BELIEVED * error:
        warnings.warn(
            f"The reward has risen by {gains.mean():.3g} since the first evaluation while the judge fell by "
            f"{-judged.mean():.3g} (standard error {error:.2g}): the policy is exploiting the reward. A larger "
            "--kl_coef, fewer updates or another reward help.",
            stacklevel=2,
        )
    return float(((judged > 0) + 0.5 * (judged == 0)).mean())


def show_samples(trainer: Any, rows: list[dict[str, Any]], rollout: Rollout, scores: torch.Tensor) -> None:
    """Print a few completions of an update, on the main process."""
    if not trainer.args.should_save:
        return
    table = Table("prompt", "completion", "score", title=f"Update {trainer.state.global_step}", title_justify="left")
    decode = trainer.processing_class.decode
    for row, prompt, completion, score in list(
        zip(rows, rollout.prompts, rollout.completions(), scores.tolist(), strict=True)
    )[:SHOWN]:
        asked = row.get("prompt", row.get("text")) or decode(prompt, skip_special_tokens=True)
        text = asked if isinstance(asked, str) else asked[-1]["content"]
        table.add_row(escape(text[-LONGEST:]), escape(decode(completion)[:LONGEST]), f"{score:.3f}")
    Console(highlight=False).print(table)
