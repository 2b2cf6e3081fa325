"""Options of the update and of the scores, each seen to reach them through the trainer."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from tests.rl.models import policy, queries, scorer, share_of_a, trainer
from tuner.errors import ArgumentError, CheckpointError, DataError, ModelError
from tuner.rl.report import write_ppo_report


def by_length(completions, completion_ids, **_):
    return [float(len(tokens) * (-1) ** n) for n, tokens in enumerate(completion_ids)]


def after(folder, **settings):
    """The weights of policy and value after a run in which ratios and values move far."""
    made = trainer(folder, policy(), num_ppo_epochs=4, total_episodes=8, learning_rate=1e-2, **settings)
    made.train()
    return [parameter.detach().clone() for parameter in made.actor.parameters()], made


def scored(folder, **settings):
    made = trainer(folder, reward=by_length, **settings)
    rollout, rows, _ = made.rollout(0)
    rollout.lengths = torch.arange(1, 9)
    return made.rewards(rollout, rows)[0], rollout


@pytest.mark.parametrize(
    "option",
    [
        {"cliprange_high": 2.0}, {"dual_clip": 1.0, "cliprange": 0.9}, {"cliprange_value": 1e-3}, {"vf_coef": 1.0},
        {"value_learning_rate": 1e-4}, {"value_lam": 0.0}, {"length_adaptive_lam": 0.5}, {"gamma": 0.5}, {"lam": 0.0},
        {"whiten_rewards": True}, {"reward_clip": 0.01}, {"normalize_rewards": True}, {"kl_in_loss": True},
        {"kl_estimator": "k2"}, {"kl_estimator": "k3"}, {"overlong_buffer_len": 4}, {"missing_eos_penalty": 1.0},
        {"entropy_coef": 0.1},
    ],
    ids=str,
)  # fmt: skip
def test_each_changes_what_is_learnt(tmp_path, option):
    common = {"cliprange": 0.9} if "cliprange" in option else {}
    without, _ = after(tmp_path / "without", kl_coef=0.2, **common)
    with_it, _ = after(tmp_path / "with", kl_coef=0.2, **option)
    assert any(not torch.equal(one, other) for one, other in zip(without, with_it, strict=True))


def test_the_value_has_its_own_learning_rate(tmp_path):
    start = trainer(tmp_path / "start").actor
    learnt, made = after(tmp_path / "run", value_learning_rate=0.0, value="shared")
    rates = {group["lr"] for group in made.optimizer.param_groups}
    assert rates == {1e-2, 0.0}
    assert torch.equal(made.actor.value.weight, start.value.weight)
    assert not torch.equal(made.actor.policy.lm_head.weight, start.policy.lm_head.weight)
    assert len(learnt)


def test_scores_are_clipped(tmp_path):
    plain, _ = scored(tmp_path)
    clipped, _ = scored(tmp_path, reward_clip=2.0)
    assert plain.abs().max() > 2
    assert torch.equal(clipped, plain.clamp(-2, 2))


def test_scores_have_the_run_s_mean_and_variance(tmp_path):
    made = trainer(tmp_path, reward=by_length, normalize_rewards=True)
    seen = []
    for update in range(3):
        rollout, rows, _ = made.rollout(update)
        scores, by_name = made.rewards(rollout, rows)
        seen.append(by_name["by_length"])
    every = torch.cat(seen)
    torch.testing.assert_close(scores, (seen[-1] - every.mean()) / every.std(), atol=1e-5, rtol=1e-5)


def test_a_score_falls_in_the_last_tokens(tmp_path):
    plain, rollout = scored(tmp_path)
    fallen, _ = scored(tmp_path, overlong_buffer_len=4, overlong_penalty_factor=3.0)
    assert rollout.lengths.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    torch.testing.assert_close(plain - fallen, torch.tensor([0, 0, 0, 0, 0.75, 1.5, 2.25, 3.0]))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"advantage": "grpo", "lam": 0.9}, "--lam is for --advantage gae"),
        ({"advantage": "rloo", "vf_coef": 0.5}, "--vf_coef is for --advantage gae"),
        ({"scale_rewards": False}, "--scale_rewards is for --advantage grpo"),
        ({"kl_horizon": 5}, "--kl_horizon needs --kl_target"),
        ({"kl_in_loss": True, "kl_estimator": "k3"}, "--kl_estimator is not read with --kl_in_loss"),
        ({"lam": 0.9, "length_adaptive_lam": 0.05}, "--lam is not read with --length_adaptive_lam"),
        ({"overlong_penalty_factor": 2.0}, "--overlong_penalty_factor needs --overlong_buffer_len"),
        ({"overlong_buffer_len": 9}, "at most the tokens of --response_length"),
        ({"vllm_mode": "server"}, "--vllm_mode is for --rollout vllm"),
    ],
)
def test_what_nothing_would_read_is_refused(tmp_path, settings, said):
    with pytest.raises(ArgumentError, match=said):
        trainer(tmp_path, reward=share_of_a, **settings)


def test_muon_steps_the_blocks(tmp_path):
    made = trainer(tmp_path, policy(), optim_args="muon=true", total_episodes=8, value_learning_rate=1e-4)
    start = [parameter.detach().clone() for parameter in made.actor.parameters()]
    made.train()
    assert any(group["use_muon"] for group in made.optimizer.param_groups)
    assert {group["lr"] for group in made.optimizer.param_groups} == {1e-3, 1e-4}
    assert all(not torch.equal(a, b) for a, b in zip(start, made.actor.parameters(), strict=True))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "has no loss that should fall"),
        ({"load_best_model_at_end": True}, "the last policy is the run's"),
        ({"missing_eos_penalty": 1.0, "stop_token": None}, "no token ends a completion"),
        ({"model": policy().bfloat16()}, "the value learns in another type"),
    ],
)
def test_what_has_no_meaning_is_refused(tmp_path, settings, said):
    steps = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    with pytest.raises(ArgumentError, match=said):
        trainer(tmp_path, eval_dataset=queries(), **steps, **settings)


def test_what_nobody_measured_before_is_not_called_untrained(tmp_path):
    made = trainer(tmp_path, eval_dataset=queries(), eval_strategy="no", eval_on_start=False)
    made.train()
    found = write_ppo_report(made)
    assert found["untrained"] == {} and "untrained" not in found["comparison"]["reward"]


def test_an_epoch_is_a_pass_over_the_prompts(tmp_path):
    made = trainer(tmp_path, rows=queries(4), total_episodes=80)
    made.train()
    assert [entry["epoch"] for entry in made.state.log_history] == [2.0 * update for update in range(1, 11)]


def test_the_coefficient_waits_for_the_actor(tmp_path):
    made = trainer(tmp_path, kl_target=1.0, kl_horizon=10, value_warmup_steps=2, total_episodes=24)
    made.train()
    used = [entry["objective/kl_coef"] for entry in made.state.log_history]
    assert used[0] == used[1] == used[2] == 0.05 != made.kl.coefficient


def test_a_value_is_a_float32(tmp_path):
    head = trainer(tmp_path).actor.value
    torch.nn.init.normal_(head.weight)
    hidden = torch.randn(5, head.in_features)
    with torch.autocast("cpu", torch.bfloat16):
        found = head(hidden)
    assert found.dtype == torch.float32 and torch.equal(found, head(hidden))


def test_a_value_model_outlives_the_run(tmp_path):
    made = trainer(tmp_path, value="separate", value_model=scorer(), total_episodes=8)
    made.train()
    made.save_model()
    kept = AutoModelForSequenceClassification.from_pretrained(tmp_path / "value")
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), made.actor.value.parameters(), strict=True))
    trainer(tmp_path / "next", value="separate", value_model=kept)


@pytest.mark.parametrize("other", [{"advantage": "grpo"}, {"value": "separate", "value_model": scorer()}])
def test_a_checkpoint_of_other_settings_is_refused(tmp_path, other):
    trainer(tmp_path, total_episodes=8, save_strategy="steps", save_steps=1).train()
    made = trainer(tmp_path, total_episodes=16, **other)
    with pytest.raises(CheckpointError, match="was made with another --advantage, --value or --optim"):
        made.train(tmp_path / "checkpoint-1")


def test_models_and_data_that_do_not_fit(tmp_path):
    with pytest.raises(ModelError, match="vocabulary is smaller than that of the tokenizer"):
        trainer(tmp_path, reward=scorer(vocab_size=50))
    with pytest.raises(ArgumentError, match="eval_dataset: one data set"):
        trainer(tmp_path, eval_dataset={"a": queries()})
    with pytest.raises(DataError, match="the training prompts: there are no rows"):
        trainer(tmp_path, rows=queries().select([]))
