"""The same completions through TRL's `RLOOTrainer` and `GRPOTrainer`, as they are installed, and through ours:
advantages, losses and gradients are equal. Completions are of different lengths, some with an end token."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from tests.rl.models import CLOSE, policy, tiny_tokenizer, trainer
from tuner.rl.rollout import sample, uniforms
from tuner.rl.update import losses

ROWS, GROUP, COEFFICIENT = 8, 4, 0.3
PROMPTS = [ids for ids in ([5, 6, 7, 8], [9, 10]) for _ in range(GROUP)]
SCORES = [1.0, 0.0, 0.5, 3.0, 2.0, 2.0, -1.0, 0.25]


def scores(completions: list[Any], **_: Any) -> list[float]:
    return SCORES


@pytest.mark.parametrize("name", ["rloo", "grpo"])
def test_advantages_losses_and_gradients(name: str, tmp_path: Any, monkeypatch: Any) -> None:
    tokenizer, first = tiny_tokenizer(), policy(spread=0.1)
    drawn = sample(first, PROMPTS, uniforms(0, range(ROWS), 12), ends=range(2, 25), temperature=0.7, batch_size=8)
    assert len(set(drawn.lengths.tolist())) > 3
    moved = copy.deepcopy(first)  # the policy has learnt a step since, so that ratios are not 1
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    reference = policy(seed=5, spread=0.1)
    reference.save_pretrained(tmp_path / "reference")
    start = copy.deepcopy(first)
    start.config._name_or_path = str(tmp_path / "reference")  # where theirs looks for it

    kind, config = (RLOOTrainer, RLOOConfig) if name == "rloo" else (GRPOTrainer, GRPOConfig)
    settings: dict[str, Any] = {
        **{"output_dir": str(tmp_path / "theirs"), "per_device_train_batch_size": ROWS, "num_generations": GROUP},
        **{"max_completion_length": 12, "beta": COEFFICIENT, "temperature": 0.7, "epsilon": 0.05, "use_cpu": True},
        **{"bf16": False, "gradient_checkpointing": False, "report_to": "none", "num_iterations": 2},
    }
    rows = Dataset.from_list([{"prompt": "a"}, {"prompt": "b"}])
    theirs = kind(
        model=start, reward_funcs=scores, args=config(**settings), train_dataset=rows,
        processing_class=tokenizer,
    )  # fmt: skip
    said = (PROMPTS, drawn.completions())
    given = (*said, ["c"] * ROWS) if name == "rloo" else (*said, None, ["c"] * ROWS, None, {}, None, None)
    monkeypatch.setattr(theirs, "_generate", lambda prompts: given)
    theirs.model.train()
    inputs = theirs._generate_and_score_completions([{"prompt": "a"}] * GROUP + [{"prompt": "b"}] * GROUP)
    theirs.model.load_state_dict(moved.state_dict())
    theirs.current_gradient_accumulation_steps = 1
    if name == "grpo":
        theirs.args.steps_per_generation = 1
    loss = theirs._compute_loss(theirs.model, inputs)
    loss.backward()

    made = trainer(
        tmp_path / "ours", first, reward=scores, ref_model=reference, advantage=name, num_generations=GROUP,
        kl_coef=COEFFICIENT, kl_in_loss=name == "grpo", temperature=0.7, cliprange=0.05, response_length=12,
    )  # fmt: skip
    values, _ = made.rewards(drawn, [{}] * ROWS)
    experience = made.experience(drawn, list(range(ROWS)))
    made.advantages(experience, values)
    torch.testing.assert_close(experience.advantages[:, 0], inputs["advantages"], **CLOSE)
    made.actor.policy.load_state_dict(moved.state_dict())
    made.actor.train()
    ours, sums = losses(
        made.actor(drawn, range(ROWS)), experience, range(ROWS), made.args, int(drawn.lengths.sum()), ROWS
    )
    ours.backward()
    assert 0 < sums["clipped"] < drawn.lengths.sum()
    assert ours.item() == pytest.approx(loss.item(), abs=1e-5)
    for one, other in zip(made.actor.policy.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-4)
