"""The same completions through TRL 1.12's PPO, as it is installed, and through ours: rewards, advantages, losses and
gradients are equal. Completions run to their full length: where one ends before, stock puts its score a token late."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from tests.rl.models import CLOSE, tiny_tokenizer
from tuner.rl.ppo import PPOTrainer
from tuner.rl.rollout import Rollout
from tuner.rl.trl_ppo import PPOConfig

stock = pytest.importorskip("trl.experimental.ppo.ppo_trainer", reason="TRL 1.13 removed its PPO")
LENGTH, ROWS, CONTEXT = 7, 8, 5
CLIPPED = {"vf_coef": 2.0, "cliprange": 0.01, "cliprange_value": 1e-3}


def models(vocabulary: int) -> tuple[Any, Any, Any]:
    shape: dict[str, Any] = {
        "vocab_size": vocabulary, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64, "pad_token_id": 1,
    }  # fmt: skip
    torch.manual_seed(0)
    policy = LlamaForCausalLM(LlamaConfig(**shape, initializer_range=0.3))
    value = LlamaForSequenceClassification(LlamaConfig(**shape, num_labels=1))
    reward = LlamaForSequenceClassification(LlamaConfig(**shape, num_labels=1))
    return policy, value, reward


def settings(folder: Any, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder), "per_device_train_batch_size": ROWS, "gradient_accumulation_steps": 1,
        "total_episodes": ROWS, "response_length": LENGTH, "report_to": "none", "use_cpu": True, "bf16": False,
        "gradient_checkpointing": False, "temperature": 0.7, "learning_rate": 2e-3, "lr_scheduler_type": "constant",
        "num_sample_generations": 0, "save_strategy": "no", "stop_token": None, "kl_coef": 0.3, "seed": 3,
        "logging_steps": 1, "max_grad_norm": 0.0, **more,
    }  # fmt: skip


class Captured:
    """What stock computes on the way."""

    def __init__(self, monkeypatch: Any, policy: Any):
        self.policy, self.whitened, self.gradients = policy, list[Any](), list[dict[str, torch.Tensor]]()
        monkeypatch.setattr(stock, "batch_generation", self.generate)
        monkeypatch.setattr(stock, "masked_whiten", self.whiten)
        monkeypatch.setattr(stock, "get_reporting_integration_callbacks", lambda _: [])
        self.own_whiten = stock.masked_mean

    def generate(self, model: Any, queries: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(1)
        self.queries = queries
        self.responses = torch.randint(2, model.config.vocab_size, (len(queries), LENGTH))
        whole = torch.cat([queries, self.responses], dim=1)
        with torch.no_grad():
            logits = model(whole).logits[:, CONTEXT - 1 : -1] / (0.7 + 1e-7)
        return whole, logits

    def whiten(self, values: torch.Tensor, mask: torch.Tensor, shift_mean: bool = True) -> torch.Tensor:
        mean, variance = stock.masked_mean(values, mask), stock.masked_var(values, mask)
        found = (values - mean) * torch.rsqrt(variance + 1e-8)
        found = found if shift_mean else found + mean
        self.whitened.append((values, found))
        return found


def gradients(*parts: Any) -> dict[str, torch.Tensor]:
    return {
        f"{number}.{name}": parameter.grad.clone()
        for number, part in enumerate(parts)
        for name, parameter in part.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"kl_estimator": "k3"},
        {"whiten_rewards": True},
        CLIPPED,
    ],
    ids=["plain", "k3", "whitened rewards", "clipped"],
)
def test_rewards_advantages_losses_and_gradients(tmp_path: Any, monkeypatch: Any, more: dict[str, Any]) -> None:
    tokenizer = tiny_tokenizer()
    policy, value, reward = models(len(tokenizer))
    reference = copy.deepcopy(policy)
    with torch.no_grad():  # so that there is a divergence
        for parameter in reference.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    rows = Dataset.from_list(
        [{"input_ids": torch.randint(2, len(tokenizer), (CONTEXT,)).tolist()} for _ in range(ROWS)]
    )
    ours_policy, ours_value = copy.deepcopy(policy), copy.deepcopy(value)

    captured = Captured(monkeypatch, policy)
    theirs = stock.PPOTrainer(
        args=stock.PPOConfig(**settings(tmp_path / "theirs", **more, num_ppo_epochs=2)), processing_class=tokenizer,
        model=policy, ref_model=copy.deepcopy(reference), reward_model=reward, train_dataset=rows, value_model=value,
        eval_dataset=rows,
    )  # fmt: skip
    steps: list[dict[str, torch.Tensor]] = []
    own_step = theirs.optimizer.step
    theirs.optimizer.step = lambda *a, **k: (steps.append(gradients(policy, value)), own_step(*a, **k))[1]
    theirs.train()
    logged = theirs.state.log_history[-1]

    trainer = PPOTrainer(
        args=PPOConfig(**settings(tmp_path / "ours", **more, num_ppo_epochs=2)), processing_class=tokenizer,
        model=ours_policy, ref_model=reference, reward_model=reward, train_dataset=rows, value_model=ours_value,
    )  # fmt: skip
    lengths = torch.full((ROWS,), LENGTH)
    zeros = torch.zeros(ROWS, LENGTH)
    rollout = Rollout(
        captured.queries.tolist(), captured.responses, lengths, torch.zeros(ROWS, dtype=torch.bool),
        zeros.clone(), zeros.clone(), zeros.clone(), zeros.clone(),
    )  # fmt: skip
    with torch.no_grad():
        said = trainer.actor(rollout, range(ROWS)).logprobs
    rollout.logprobs = said.view(ROWS, LENGTH).clone()
    trainer.norms = []
    scores, _ = trainer.rewards(rollout, [{}] * ROWS)
    experience = trainer.experience(rollout, list(range(ROWS)))
    trainer.advantages(experience, scores)
    *_, (raw, whitened) = captured.whitened
    torch.testing.assert_close(experience.returns - rollout.values, raw, **CLOSE)
    torch.testing.assert_close(experience.advantages, whitened, **CLOSE)

    mine: list[dict[str, torch.Tensor]] = []
    step = trainer.optimizer.step
    trainer.optimizer.step = lambda *a, **k: (mine.append(gradients(ours_policy, ours_value)), step(*a, **k))[1]
    learnt = trainer.update(experience, 0, lengths.tolist())
    assert len(mine) == len(steps) == 2
    for ours, stocks in zip(mine, steps, strict=True):
        assert ours.keys() == stocks.keys()
        for name in ours:
            torch.testing.assert_close(ours[name], stocks[name], **CLOSE)
    assert learnt["policy"] == pytest.approx(logged["loss/policy_avg"], abs=1e-5)
    assert learnt["value"] == pytest.approx(logged["loss/value_avg"], abs=1e-5, rel=1e-5)
    assert more is not CLIPPED or (learnt["clipped"] > 0.1 and learnt["value_clipped"] > 0.1)
    assert learnt["clipped"] == pytest.approx(logged["policy/clipfrac_avg"], abs=1e-6)
    assert learnt["kl_squared"] == pytest.approx(logged["policy/approxkl_avg"], rel=1e-4)
    torch.testing.assert_close(scores.mean().item(), logged["objective/scores"], **CLOSE)
