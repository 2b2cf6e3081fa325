"""The trainer: each fault of TRL's PPO has a test that it is not ours."""

import copy
import itertools
import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback

from tests.rl.models import policy, queries, scorer, share_of_a, tiny_tokenizer, trainer
from tuner.config.ppo import PPOArguments
from tuner.errors import ArgumentError, DataError, ModelError, NonFiniteError
from tuner.ops.block_attention import BLOCK_ATTENTION
from tuner.rl.trl_ppo import PPOConfig


def weights(made):
    return [parameter.detach().clone() for parameter in made.actor.parameters()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def logged(made, name):
    return [entry[name] for entry in made.state.log_history if name in entry]


def count_steps(made):
    steps, step = [], made.optimizer.step
    made.optimizer.step = lambda *a, **k: (steps.append(0), step(*a, **k))[1]
    return steps


@pytest.mark.parametrize("minibatches", [1, 2, 4])
def test_a_minibatch_is_one_step(tmp_path, minibatches):
    made = trainer(tmp_path, num_mini_batches=minibatches, per_device_train_batch_size=1, gradient_accumulation_steps=8)
    steps = count_steps(made)
    made.train()
    assert len(steps) == 3 * 2 * minibatches  # updates, epochs


def test_accumulated_is_at_once(tmp_path):
    """The gradient is the mean over all tokens, however they are divided."""
    found = []
    for size in (8, 1):
        made = trainer(tmp_path, policy(), per_device_train_batch_size=size, gradient_accumulation_steps=8 // size)
        made.train()
        found.append(weights(made))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


def test_the_first_ratio_is_exactly_one(tmp_path):
    made = trainer(tmp_path, num_ppo_epochs=1)
    made.train()
    assert logged(made, "val/ratio") == [1.0] * 3
    assert logged(made, "policy/approxkl_avg") == [0.0] * 3


def test_the_first_update_learns():
    """An update is dear: none is spent at a learning rate of 0, unless a warm-up is asked for."""
    args = PPOArguments(
        model_name_or_path="model", reward_funcs=["rewards.py:f"], dataset_name="rows", output_dir="run"
    )
    assert args.to_training_arguments(PPOConfig, use_cpu=True).get_warmup_steps(40) == 0


def test_two_runs_are_the_same_to_the_bit(tmp_path):
    found = []
    for _ in range(2):
        made = trainer(tmp_path, policy())
        torch.rand(3)  # nobody else's random numbers matter
        made.train()
        found.append(weights(made))
    assert same(*found)


def test_gradients_are_clipped(tmp_path):
    free, bound = (
        trainer(tmp_path, policy(), max_grad_norm=most, optim="sgd", learning_rate=1.0) for most in (0, 1e-3)
    )
    start = weights(bound)
    for made in (free, bound):
        made.train()
    moved = torch.stack([(a - b).norm() for a, b in zip(weights(bound), start, strict=True)]).norm()
    assert moved <= 6 * 1e-3 * 1.001  # six steps
    assert min(logged(free, "grad_norm")) > 1e-3


def test_bf16_is_bf16(tmp_path):
    seen = set()
    model = policy()
    model.model.layers[0].mlp.down_proj.register_forward_hook(lambda _, __, out: seen.add(out.dtype))
    made = trainer(tmp_path, model, bf16=True, total_episodes=8)
    seen.clear()
    made.train()
    assert seen == {torch.bfloat16}
    assert made.rollout(0)[0].logprobs.dtype == torch.float32


def test_activations_are_recomputed_and_nothing_changes(tmp_path):
    calls, found = [], []
    for recomputes in (False, True):
        model = policy()
        calls.append(0)
        model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.__setitem__(-1, calls[-1] + 1))
        made = trainer(tmp_path, model, total_episodes=8, activation_checkpointing=recomputes)
        made.train()
        found.append(weights(made))
    assert same(*found)
    assert calls[1] > calls[0]


def test_callbacks_are_called_and_can_stop_the_run(tmp_path):
    events = []

    class Recorder(TrainerCallback):
        def __getattribute__(self, name):
            if name.startswith("on_"):
                events.append(name)
            return super().__getattribute__(name)

        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = state.global_step == 2

    made = trainer(
        tmp_path, total_episodes=800, eval_dataset=queries(), callbacks=[Recorder()],
        eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=2,
    )  # fmt: skip
    made.train()
    assert made.state.global_step == 2
    begin = ("init_end", "train_begin", "epoch_begin", "step_begin", "pre_optimizer_step", "optimizer_step", "step_end")
    wanted = (*begin, "evaluate", "log", "save", "train_end")
    assert {f"on_{name}" for name in wanted} <= set(events)
    assert len(logged(made, "eval_reward")) == 2


def test_max_steps(tmp_path):
    made = trainer(tmp_path, max_steps=2)
    made.train()
    assert made.state.global_step == 2


def test_fewer_prompts_than_a_batch(tmp_path):
    made = trainer(tmp_path, rows=queries(3))
    found = [made.order(range(8 * update, 8 * update + 8)) for update in range(3)]
    epochs = [list(itertools.chain(*found))[start : start + 3] for start in range(0, 24, 3)]
    assert all(sorted(epoch) == [0, 1, 2] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    made.train()


def test_pad_may_be_the_end_token(tmp_path):
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.pad_token = tokenizer.eos_token
    found = []
    for each in (tiny_tokenizer(), tokenizer):
        made = trainer(tmp_path, policy(spread=0.05), response_length=20, temperature=3.0, total_episodes=32)
        made.processing_class, made.actor.pad_token_id = each, each.pad_token_id
        made.ends = [*made.ends, *range(60, 90)]
        made.train()
        assert sum(logged(made, "response/ended")) > 0
        found.append(weights(made))
    assert same(*found)


def test_the_penalty_is_for_what_does_not_end(tmp_path):
    made = trainer(tmp_path, policy(spread=0.05), response_length=20, temperature=3.0, missing_eos_penalty=5.0)
    made.ends = list(range(40, 55))
    rollout, rows, _ = made.rollout(0)
    assert 0 < rollout.ended.sum() < 8
    scores, by_name = made.rewards(rollout, rows)
    torch.testing.assert_close(scores, by_name["share_of_a"] - 5.0 * (~rollout.ended).float())


def test_the_stop_token_stops(tmp_path):
    eos = tiny_tokenizer().eos_token_id
    assert trainer(tmp_path).ends == [eos]
    assert trainer(tmp_path, stop_token=None).ends == []
    assert trainer(tmp_path, stop_token_id=7).ends == [7]


def test_what_is_saved_can_be_loaded_and_ends(tmp_path):
    model = policy()
    made = trainer(tmp_path, model, total_episodes=8)
    made.train()
    made.save_model()
    again = type(model).from_pretrained(tmp_path)
    assert again.generation_config.eos_token_id == tiny_tokenizer().eos_token_id
    assert same(again.parameters(), model.parameters())


@pytest.mark.parametrize("value", ["shared", "separate"])
@pytest.mark.parametrize("adapter", [False, True], ids=["whole", "lora"])
def test_everything_that_learns_moves(tmp_path, value, adapter):
    more = {"value_model": scorer()} if value == "separate" else {}
    if adapter:
        more["peft_config"] = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
    made = trainer(tmp_path, kl_coef=0.1, **more)
    before = weights(made)
    learns = [parameter.requires_grad for parameter in made.actor.parameters()]
    made.train()
    for old, new, moves in zip(before, weights(made), learns, strict=True):
        assert torch.equal(old, new) != moves
    assert logged(made, "objective/kl_k3")[0] == pytest.approx(0, abs=1e-5)
    assert logged(made, "objective/kl_k3")[-1] > 1e-5


@pytest.mark.parametrize("attention", ["sdpa", BLOCK_ATTENTION])
def test_adapters_above_go_on_from_states_that_are_kept(tmp_path, attention):
    """With adapters in the upper half, the lower is computed once an update, and nothing changes."""
    upper = LoraConfig(target_modules=["q_proj", "down_proj"], layers_to_transform=[1], task_type="CAUSAL_LM")
    found, calls = [], []
    for keeps in (True, False):
        model = policy()
        model.set_attn_implementation(attention)
        made = trainer(tmp_path, model, peft_config=upper, total_episodes=16)
        assert made.actor.lower is not None and made.actor.layout.padding_free == (attention == BLOCK_ATTENTION)
        if not keeps:
            made.actor.lower = None
        calls.append(0)
        model.model.layers[0].mlp.register_forward_hook(lambda *_: calls.__setitem__(-1, calls[-1] + 1))
        made.train()
        found.append(weights(made))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
        assert abs(logged(made, "objective/kl")[0]) < 1e-4  # an adapter begins as nothing
    assert calls[0] < calls[1]


@pytest.mark.parametrize("start", ["pissa", "gaussian"])
def test_the_reference_is_the_policy_as_it_began(tmp_path, start):
    """Also where an adapter begins with a part of the weights, which the base then lacks."""
    model = policy()
    plain = copy.deepcopy(model)
    config = LoraConfig(target_modules=["q_proj"], init_lora_weights=start, layers_to_transform=[1])
    made = trainer(tmp_path, model, peft_config=config)
    rollout, _, numbers = made.rollout(0)
    wanted = trainer(tmp_path, plain).experience(rollout, numbers).reference
    torch.testing.assert_close(made.experience(rollout, numbers).reference, wanted, atol=1e-4, rtol=1e-4)
    made.train()
    torch.testing.assert_close(made.experience(rollout, numbers).reference, wanted, atol=1e-4, rtol=1e-4)
    assert logged(made, "objective/kl_k3")[-1] > 1e-6


def test_the_actor_waits_while_the_value_warms_up(tmp_path):
    made = trainer(tmp_path, value_warmup_steps=2, value_learning_rate=1e-2)
    start = weights(made)
    made.state.max_steps = made.args.num_total_batches = 2
    made.train()
    found = dict(zip([name for name, _ in made.actor.named_parameters()], weights(made), strict=True))
    moved = {name for (name, new), old in zip(found.items(), start, strict=True) if not torch.equal(old, new)}
    assert moved == {"value.weight", "value.bias"}


def test_the_divergence_may_be_in_the_loss(tmp_path):
    made = trainer(tmp_path, kl_in_loss=True, advantage="grpo", num_generations=4, kl_coef=5.0)
    free = trainer(tmp_path, advantage="grpo", num_generations=4, kl_coef=0.0)
    for each in (made, free):
        each.train()
    assert logged(made, "objective/kl_k3")[-1] < logged(free, "objective/kl_k3")[-1]


def test_it_stops_when_it_has_gone_too_far(tmp_path, capsys):
    made = trainer(tmp_path, learning_rate=3e-2, total_episodes=8000, max_kl=1.0)
    made.train()
    assert made.state.global_step < 1000 and logged(made, "objective/kl")[-1] > 1.0
    assert "--max_kl 1" in capsys.readouterr().out


@pytest.mark.parametrize("advantage", ["gae", "rloo", "grpo"])
def test_it_learns(tmp_path, advantage):
    group = {} if advantage == "gae" else {"num_generations": 4}
    made = trainer(
        tmp_path, policy(spread=0.05), advantage=advantage, total_episodes=16 * 30, learning_rate=1e-2, kl_coef=0.0,
        gradient_accumulation_steps=4, **group,
    )  # fmt: skip
    made.train()
    scores = logged(made, "objective/scores")
    assert sum(scores[-5:]) / 5 > sum(scores[:5]) / 5 + 0.2, scores


def test_the_entropy_is_sought(tmp_path):
    found = []
    for coefficient in (0.0, 1.0):
        made = trainer(tmp_path, policy(), entropy_coef=coefficient, total_episodes=80, learning_rate=3e-3)
        made.train()
        found.append(logged(made, "policy/entropy_avg")[-1])
    assert found[1] > found[0] + 0.05


def test_evaluation(tmp_path):
    made = trainer(
        tmp_path, policy(spread=0.05), eval_dataset=queries(), eval_strategy="steps", eval_steps=30, eval_on_start=True,
        total_episodes=16 * 30, learning_rate=1e-2, kl_coef=0.0, gradient_accumulation_steps=4,
    )  # fmt: skip
    made.train()
    first, last = (entry for entry in made.state.log_history if "eval_reward" in entry)
    assert first["eval_kl"] == pytest.approx(0, abs=1e-4) and last["eval_kl"] > 0.1
    assert last["eval_win_rate"] > 0.5
    lines = [json.loads(line) for line in (tmp_path / "completions.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == [0, 1, 2, 3] * 2
    mean = sum(line["reward"] for line in lines[4:]) / 4
    assert mean == pytest.approx(last["eval_reward"])


def test_a_judge_that_falls_is_a_warning(tmp_path):
    def judge(completions, **_):
        return [-10.0 * text.count("a") for text in completions]

    made = trainer(
        tmp_path, policy(spread=0.05), eval_dataset=queries(16), eval_strategy="steps", eval_steps=30,
        eval_on_start=True, total_episodes=16 * 30, learning_rate=1e-2, kl_coef=0.0, gradient_accumulation_steps=4,
        judge=judge,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="exploiting the reward"):
        made.train()


def test_nothing_that_is_not_finite_reaches_a_weight(tmp_path):
    made = trainer(tmp_path, reward=lambda completions, **_: [1e38 * (-1) ** n for n in range(len(completions))])
    start = weights(made)
    with pytest.raises(NonFiniteError, match="gradient norm"):
        made.train()
    assert same(start, weights(made))


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"num_mini_batches": 3}, ArgumentError, "num_mini_batches 3 does not divide the 8"),
        ({"advantage": "rloo", "num_generations": 3}, ArgumentError, "num_generations 3 does not divide"),
        ({"advantage": "grpo", "num_generations": 1}, ArgumentError, "num_generations 2 or more"),
        ({"advantage": "grpo", "value": "shared"}, ArgumentError, "--value is for --advantage gae"),
        ({"value": "separate"}, ArgumentError, "takes a value_model"),
        ({"fp16": True}, ArgumentError, "--fp16"),
        ({"eval_strategy": "epoch"}, ArgumentError, "here it is steps, or no"),
        ({"kl_target": 1.0, "kl_coef": 0.0}, ArgumentError, "--kl_target"),
        ({"reward": None}, ArgumentError, "no reward"),
        ({"reward_weights": [1.0, 2.0]}, ArgumentError, "2 weights for 1 rewards"),
        ({"response_length": 60}, DataError, "--max_prompt_length"),
        (
            {"max_prompt_length": 1, "rows": Dataset.from_list([{"query": "the cat sat"}])},
            DataError,
            "at most 1 tokens",
        ),
        ({"rows": Dataset.from_list([{"query": "  "}])}, DataError, "row 0: column 'query' is empty"),
        ({"rows": Dataset.from_list([{"words": "a"}])}, DataError, "no column prompt"),
        ({"value_model": policy()}, ModelError, "one output"),
    ],
)
def test_what_does_not_go_together(tmp_path, settings, error, said):
    with pytest.raises(error, match=said):
        trainer(tmp_path, **settings)


def test_the_policy_cannot_be_its_own_reference(tmp_path):
    model = policy()
    with pytest.raises(ArgumentError, match="itself"):
        trainer(tmp_path, model, ref_model=model)


def test_prompts_that_are_too_long_are_left_out_and_said(tmp_path, capsys):
    made = trainer(tmp_path, max_prompt_length=4, rows=queries(8))
    assert len(made.train_dataset) < 8
    assert "are left out (--max_prompt_length)" in capsys.readouterr().out


def test_a_column_does_not_take_a_completion_s_place(tmp_path):
    def reward(completions, completion_ids):
        return (float(text != "wrong") for text in completions)  # a generator

    rows = Dataset.from_list([{"query": "the cat", "completions": "wrong", "completion_ids": 7}] * 4)
    made = trainer(tmp_path, reward=reward, rows=rows)
    rollout, drawn, _ = made.rollout(0)
    assert made.rewards(rollout, drawn)[0].tolist() == [1.0] * 8


def test_an_update_s_samples_are_kept_once(tmp_path):
    made = trainer(tmp_path, eval_dataset=queries())
    made.evaluate()
    made.evaluate()
    assert len((tmp_path / "completions.jsonl").read_text().splitlines()) == 4


def test_several_rewards(tmp_path):
    model = scorer()
    made = trainer(tmp_path, reward=[model, share_of_a], reward_weights=[0.5, 2.0])
    rollout, rows, _ = made.rollout(0)
    scores, by_name = made.rewards(rollout, rows)
    model_name, _ = by_name
    torch.testing.assert_close(scores, 0.5 * by_name[model_name] + 2.0 * by_name["share_of_a"])
