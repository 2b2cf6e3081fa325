"""Completions that something else samples: what it says is believed only where the policy says so too."""

import sys
import time
import types

import pytest
import torch
from peft import LoraConfig
from transformers.generation import ContinuousBatchingManager

from tests.rl.models import CLOSE, policy, tiny_tokenizer, trainer
from tests.rl.test_trainer import logged, same, weights
from tuner.errors import ArgumentError, ModelError
from tuner.model import TunerDecoderConfig, TunerDecoderForCausalLM
from tuner.rl.engines import Copy, Written, as_rollout

LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)


def own_and_as_written(made, update=0):
    found, rows, _ = made.rollout(update)
    logprobs = [row[:n] for row, n in zip(found.logprobs.tolist(), found.lengths.tolist(), strict=True)]
    written = Written(found.completions(), logprobs)
    return found, as_rollout(made.actor, [row["input_ids"] for row in rows], written, made.ends, 4)


@pytest.mark.parametrize("adapter", [None, LORA], ids=["whole", "lora"])
def test_what_the_policy_wrote_is_what_it_says_of_it(tmp_path, adapter):
    """A program that samples as the policy does has its log-probabilities, entropies and values, and no drift."""
    own, again = own_and_as_written(trainer(tmp_path, policy(spread=0.1), peft_config=adapter))
    assert own.completions() == again.completions() and own.prompts == again.prompts
    assert own.ended.tolist() == again.ended.tolist() and set(own.lengths.tolist()) != {0}
    for name in ("logprobs", "entropies", "values"):
        torch.testing.assert_close(getattr(own, name), getattr(again, name), atol=1e-4, rtol=1e-4)
    assert again.drift.abs().max() < 1e-4 and not own.drift.any()


def test_a_copy_in_float32_writes_what_the_policy_does(tmp_path):
    """The adapter is folded in, and the policy stays as it is, to the bit."""
    made = trainer(tmp_path, policy(spread=0.1), peft_config=LORA)
    own, rows, _ = made.rollout(0)
    before = weights(made)
    prompts = [row["input_ids"] for row in rows]
    written = Copy(made.actor.policy, torch.float32)(prompts, made.args, made.ends, list(range(8)))
    assert written.completions == own.completions()
    assert same(before, weights(made))


@pytest.mark.parametrize("rollout", ["copy", "continuous"])
@pytest.mark.parametrize("advantage", ["gae", "rloo"])
def test_it_learns_from_what_another_wrote(tmp_path, rollout, advantage):
    """With a reward for the letter a; two runs are the same to the bit."""
    found = []
    for _ in range(2):
        made = trainer(
            tmp_path, policy(spread=0.1), rollout=rollout, advantage=advantage, total_episodes=128, learning_rate=1e-2,
            per_device_train_batch_size=16, gradient_accumulation_steps=1, kl_coef=0.0,
        )  # fmt: skip
        made.train()
        found.append(weights(made))
    scores = logged(made, "objective/scores")
    assert sum(scores[-3:]) > 1.5 * sum(scores[:3])
    assert 0 < max(logged(made, "rollout/drift")) < 0.05
    assert same(*found)


def test_continuous_batching_does_not_depend_on_the_clock(tmp_path, monkeypatch):
    """Prompts that are handed over slowly, as on a busy machine, are in the same batches, with the same numbers."""
    made = trainer(tmp_path, policy(spread=0.1), rollout="continuous")
    prompts = [row["input_ids"] for row in made.rollout(0)[1]]
    quick = made.engine(prompts, made.args, made.ends, list(range(len(prompts))))
    add = ContinuousBatchingManager.add_request
    monkeypatch.setattr(ContinuousBatchingManager, "add_request", lambda *a, **k: time.sleep(0.1) or add(*a, **k))
    slow = made.engine(prompts, made.args, made.ends, list(range(len(prompts))))
    assert quick == slow


def test_what_is_likelier_to_the_policy_weighs_more_but_not_without_bound(tmp_path):
    """The loss of tokens is weighted by the ratio of both probabilities, at most by the cap."""
    made = trainer(tmp_path, policy(), num_ppo_epochs=1, eval_strategy="no")
    made.args.importance_sampling_cap = 2.0
    rollout, rows, numbers = made.rollout(0)
    scores, _ = made.rewards(rollout, rows)
    losses = []
    for drift in (0.0, 0.5, 5.0):
        rollout.drift = torch.full_like(rollout.logprobs, drift)
        experience = made.experience(rollout, numbers)
        made.advantages(experience, scores)
        made.norms, made._step = [], lambda: None
        made.optimizer.zero_grad()
        losses.append(made.update(experience, 0, rollout.lengths.tolist())["policy"])
    plain, more, most = (torch.tensor(loss) for loss in losses)
    torch.testing.assert_close(more, plain * torch.tensor(0.5).exp(), **CLOSE)
    torch.testing.assert_close(most, plain * 2, **CLOSE)


def fake_vllm(monkeypatch, made_with):
    """TRL's class for vLLM, which is not installed here: it notes what it is told, and writes an a and an end."""

    class VLLMGeneration:
        def __init__(self, model, accelerator, processing_class, **how):
            made_with.append(how)
            self.synced = 0

        def sync_weights(self):
            made_with.append("sync")

        def generate(self, prompts, images, num_generations):
            said = [*tiny_tokenizer()("a")["input_ids"], tiny_tokenizer().eos_token_id]
            made_with.append((len(prompts), num_generations))
            return prompts, [said] * len(prompts), [[[-1.0]] * len(said)] * len(prompts), None

    module = types.ModuleType("trl.generation.vllm_generation")
    module.VLLMGeneration = VLLMGeneration
    monkeypatch.setitem(sys.modules, "trl.generation.vllm_generation", module)


def test_vllm_gets_the_weights_before_every_update(tmp_path, monkeypatch):
    told = []
    fake_vllm(monkeypatch, told)
    made = trainer(tmp_path, rollout="vllm", advantage="grpo", num_generations=2, vllm_mode="server")
    made.train()
    assert told[0]["mode"] == "server" and told[0]["max_completion_length"] == 8 and told[0]["temperature"] == 1.0
    assert told[1:] == ["sync", (8, 2)] * 3
    assert logged(made, "response/ended") == [1.0] * 3 and logged(made, "response/length")[0] <= 3
    assert logged(made, "rollout/drift")[0] > 0


def test_vllm_in_this_process_needs_an_accelerator(tmp_path):
    with pytest.raises(ModelError, match=r"--rollout vllm needs an accelerator"):
        trainer(tmp_path, rollout="vllm", vllm_mode="colocate")


def test_vllm_is_not_given_our_own_classes_in_this_process(tmp_path, monkeypatch):
    monkeypatch.setattr("tuner.rl.engines.PACKING", ())
    own = TunerDecoderForCausalLM(TunerDecoderConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1))
    with pytest.raises(ModelError, match=r"--rollout vllm cannot run a model of this project's own classes .*convert"):
        trainer(tmp_path, own, rollout="vllm", vllm_mode="colocate")


def test_without_vllm_the_error_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("tuner.rl.engines.PACKING", ())
    with pytest.raises(ModelError, match=r"--rollout vllm: .*vLLM"):
        trainer(tmp_path, rollout="vllm")


def test_a_completion_of_nothing_is_refused(tmp_path):
    made = trainer(tmp_path)
    with pytest.raises(ModelError, match="no token"):
        as_rollout(made.actor, [[5]], Written([[]], [[]]), made.ends, 4)


def test_what_only_vllm_reads_is_refused_without_it(tmp_path):
    with pytest.raises(ArgumentError, match="vllm_mode"):
        trainer(tmp_path, vllm_mode="server")
    with pytest.raises(ArgumentError, match="importance_sampling_cap"):
        trainer(tmp_path, importance_sampling_cap=2.5)
