"""What the trainer makes of models as they are given: frozen, with dropout, with adapters, of other kinds."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    OPTConfig,
    OPTForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from tests.rl.models import policy, queries, scorer, share_of_a, tiny_tokenizer, trainer
from tests.rl.test_trainer import logged
from tuner.errors import ArgumentError, ModelError
from tuner.loading.checkpoints import load_pretrained, most_positions, without_dropout
from tuner.loading.reward import RewardModel
from tuner.model import TunerDecoderConfig, TunerDecoderForCausalLM
from tuner.rl.rewards import Rewards, score_sequences

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
DROPS = {"hidden_dropout": 0.5, "attention_dropout": 0.5}


def encoder(kind=BertForSequenceClassification, config=BertConfig, **more):
    torch.manual_seed(2)
    fields = {**SMALL, "vocab_size": len(tiny_tokenizer()), "num_labels": 1, "initializer_range": 0.3}
    return kind(config(**(fields | more))).eval()


def adapted(model):
    found = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", init_lora_weights=False))
    return found.eval()


def test_a_policy_out_of_an_adapter_s_folder_learns(tmp_path):
    policy().save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    adapted(model).save_pretrained(tmp_path / "adapter")
    merged = load_pretrained(AutoModelForCausalLM, str(tmp_path / "adapter"), torch.float32)
    start = {name: p.detach().clone() for name, p in merged.named_parameters()}
    trainer(tmp_path / "run", merged).train()
    assert all(not torch.equal(start[name], p) for name, p in merged.named_parameters())


def test_a_policy_that_is_frozen_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match="No weight of the policy learns"):
        trainer(tmp_path, policy().requires_grad_(False))


@pytest.mark.parametrize(
    "model",
    [
        TunerDecoderForCausalLM(TunerDecoderConfig(**SMALL, vocab_size=90, **DROPS)),
        OPTForCausalLM(
            OPTConfig(
                vocab_size=90, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64,
                word_embed_proj_dim=32, dropout=0.5, attention_dropout=0.5, layerdrop=0.5,
            )
        ),
        policy(attention_dropout=0.5),
    ],
    ids=["ours", "opt", "llama"],
)  # fmt: skip
def test_dropout_is_off_wherever_it_is(model):
    ids = torch.arange(3, 12)[None]
    model = copy.deepcopy(model).train()
    assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    without_dropout(model)
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)


def test_the_trainer_switches_it_off(tmp_path):
    model = policy(attention_dropout=0.5)
    made = trainer(tmp_path, model, num_ppo_epochs=1)
    made.train()
    assert logged(made, "val/ratio") == [1.0] * 3
    assert {layer.self_attn.attention_dropout for layer in model.model.layers} == {0.0}


def test_a_policy_that_stays_random_is_refused(tmp_path):
    model = policy()
    model.model.layers[0].mlp.register_forward_hook(
        lambda module, _, out: torch.nn.functional.dropout(out, 0.5, module.training)  # as a config's own would
    )
    with pytest.raises(ModelError, match="random in training"):
        trainer(tmp_path, model)


@pytest.mark.parametrize("spread", [0.3, 0.02])
def test_a_critic_that_sees_what_comes_is_refused(tmp_path, spread):
    with pytest.raises(ModelError, match="BertForSequenceClassification, which reads what comes after"):
        trainer(tmp_path, value_model=encoder(initializer_range=spread))


def test_an_optimizer_that_lacks_the_value_is_refused(tmp_path):
    model = policy()
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(ArgumentError, match="it lacks 2 weights that learn"):
        trainer(tmp_path, model, optimizers=(optimizer, None))
    made = trainer(tmp_path, model, optimizers=(optimizer, None), advantage="rloo", num_generations=4)
    assert made.optimizer is optimizer


@pytest.mark.parametrize("name", ["ref_adapter_name", "model_adapter_name"])
def test_names_of_adapters_are_not_ignored(name, tmp_path):
    made = trainer(tmp_path)
    setattr(made.args, name, "reference")
    with pytest.raises(ArgumentError, match=name):
        type(made)(
            args=made.args, processing_class=tiny_tokenizer(), model=policy(), reward_model=share_of_a,
            train_dataset=queries(),
        )  # fmt: skip


def test_what_an_encoder_scores_is_its_own_output():
    model, ids = encoder(), [[5, 6, 7], [8, 9, 10, 11, 12]]
    expected = torch.cat([model(input_ids=torch.tensor([each])).logits[0] for each in ids])
    torch.testing.assert_close(score_sequences(model, ids, 2), expected.detach())


def test_a_reward_model_with_an_adapter_scores():
    model, ids = adapted(scorer()), [[5, 6, 7], [8, 9, 10, 11, 12]]
    with torch.no_grad():
        expected = torch.cat([model(input_ids=torch.tensor([each])).logits[0] for each in ids])
    rewards = Rewards([model], None, [None], tiny_tokenizer(), 2)
    found, _ = rewards([{"text": "a"}, {"text": "b"}], [each[:1] for each in ids], [each[1:] for each in ids])
    torch.testing.assert_close(found, expected)


def test_a_tokenizer_for_each_reward(tmp_path):
    with pytest.raises(ArgumentError, match="reward_processing_classes: 1 tokenizers for 2 rewards"):
        trainer(tmp_path, reward=[share_of_a, scorer()], reward_processing_classes=[tiny_tokenizer()])


def test_a_column_text_beside_a_prompt_is_passed_on():
    seen = {}

    def reward(completions, **columns):
        seen.update(columns)
        return [0.0] * len(completions)

    Rewards([reward], None, [None], tiny_tokenizer(), 2)([{"prompt": "a", "text": "b", "input_ids": [5]}], [[5]], [[6]])
    assert seen["text"] == ["b"] and "input_ids" not in seen


@pytest.mark.parametrize(
    ("kind", "config", "most"),
    [
        (BertForSequenceClassification, BertConfig, 32),
        (RobertaForSequenceClassification, RobertaConfig, 30),
    ],
)
def test_a_conversation_longer_than_the_reward_model_reads(kind, config, most, tmp_path):
    model = encoder(kind, config, max_position_embeddings=32, pad_token_id=1)
    assert most_positions(model) == most
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}<|eos|>{% endfor %}"
    judge = RewardModel([model], tokenizer)
    with pytest.raises(ModelError, match=rf"reads {most} tokens; a conversation has \d+\. Leave out long prompts"):
        judge.score(["a b c d " * 10], ["a"])


def test_a_judge_s_name_is_its_own(tmp_path):
    def judge(completions, **_):
        return [0.0] * len(completions)

    with pytest.raises(ArgumentError, match="A reward is named judge"):
        trainer(tmp_path, reward=judge, judge=share_of_a)


def test_trl_s_other_methods(tmp_path):
    made = trainer(tmp_path, eval_dataset=queries())
    made.generate_completions()
    assert (tmp_path / "completions.jsonl").is_file()
    with pytest.raises(ArgumentError, match="sampled"):
        made.generate_completions(sampling=False)
    with pytest.raises(ArgumentError, match="eval_dataset"):
        made.evaluate(queries())
    with pytest.raises(ArgumentError, match="upload_folder"):
        made.push_to_hub()
