"""What tests of reinforcement learning share: a tokenizer, models of a few thousand parameters, a trainer of them."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerBase

from tuner.rl.ppo import PPOTrainer
from tuner.rl.trl_ppo import PPOConfig
from tuner.text.train_tokenizer import train_tokenizer

CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-5}
QUERIES = ["the cat", "a b c", "1 2 3 4 5 6", "mat sat on"]


@cache
def tiny_tokenizer() -> PreTrainedTokenizerBase:
    texts = ["the cat sat on the mat. 1 2 3 4 5 6 7 8 9 0 + = a b c d e f g"] * 20
    return train_tokenizer(iter(texts), "bpe", 300, "clm", 256)


def shape(**more: Any) -> LlamaConfig:
    tokenizer = tiny_tokenizer()
    fields: dict[str, Any] = {
        **{"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
        **{"num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64},
        **{"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id},
    }
    return LlamaConfig(**{**fields, **more})


def policy(seed: int = 0, spread: float = 0.3, **more: Any) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(shape(initializer_range=spread, **more)).eval()


def scorer(seed: int = 1, **more: Any) -> LlamaForSequenceClassification:
    torch.manual_seed(seed)
    return LlamaForSequenceClassification(shape(num_labels=1, initializer_range=0.3, **more)).eval()


def share_of_a(completions: list[str], **_: Any) -> list[float]:
    """A reward: the share of the letter a."""
    return [text.count("a") / max(len(text), 1) for text in completions]


def queries(count: int = 4) -> Dataset:
    return Dataset.from_list([{"query": QUERIES[n % len(QUERIES)]} for n in range(count)])


def trainer(folder: Any, model: Any = None, reward: Any = share_of_a, rows: Any = None, **more: Any) -> PPOTrainer:
    parts = (
        "ref_model",
        "value_model",
        "eval_dataset",
        "peft_config",
        "callbacks",
        "judge",
        "reward_processing_classes",
        "optimizers",
    )
    given = {name: more.pop(name) for name in parts if name in more}
    settings: dict[str, Any] = {
        **{"output_dir": str(folder), "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        **{"total_episodes": 24, "response_length": 8, "report_to": "none", "use_cpu": True, "temperature": 1.0},
        **{"learning_rate": 1e-3, "lr_scheduler_type": "constant", "num_sample_generations": 0, "save_strategy": "no"},
        **{"logging_steps": 1, "num_ppo_epochs": 2, "seed": 3},
    }
    return PPOTrainer(
        args=PPOConfig(**{**settings, **more}),
        processing_class=tiny_tokenizer(),
        model=policy() if model is None else model,
        reward_model=reward,
        train_dataset=queries() if rows is None else rows,
        **given,
    )
