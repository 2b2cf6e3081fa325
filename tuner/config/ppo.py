"""The flags of PPO, under TRL's names where it has one. Light: nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from tuner.config.adapters import AdapterArguments
from tuner.config.arguments import flag
from tuner.errors import ArgumentError

# Completions of a prompt that a group has, where nothing is said.
GROUP = 4
OF_GAE = ("value", "value_learning_rate", "value_warmup_steps", "value_lam", "lam", "length_adaptive_lam", "gamma",
          "whiten_rewards", "vf_coef", "cliprange_value")  # fmt: skip
OF_VLLM = ("vllm_mode", "vllm_server_base_url", "vllm_gpu_memory_utilization")


@dataclass
class PPOFields:
    """What `PPOConfig` and the recipe's arguments have in common."""

    total_episodes: int | None = flag(None, "Completions to learn from. Without it, num_train_epochs decides.", least=1)
    num_ppo_epochs: int = flag(4, "Passes over the completions of an update.", least=1)
    num_mini_batches: int = flag(1, "Optimizer steps in a pass.", least=1)
    local_rollout_forward_batch_size: int = flag(64, "Completions that a device samples or scores at once.", least=1)
    response_length: int = flag(53, "Most tokens of a completion.", least=1)
    max_prompt_length: int | None = flag(None, "Longer prompts are left out, and said. Without it, refused.", least=1)
    rollout: Literal["policy", "copy", "continuous", "vllm"] = flag(
        "policy",
        "What samples: the policy, its copy in bfloat16, transformers' continuous batching, or vLLM.",
    )
    importance_sampling_cap: float = flag(
        3.0, "Most weight of a token that the policy finds likelier than what sampled it did.", least=1
    )
    vllm_mode: Literal["colocate", "server"] = flag("colocate", "vLLM in this process, or a server of its own.")
    vllm_server_base_url: str = flag("http://localhost:8000", "Where that server is.")
    vllm_gpu_memory_utilization: float = flag(0.3, "Share of the accelerator's memory for vLLM here.", least=0, most=1)
    stop_token: Literal["eos"] | None = flag("eos", "Token that ends a completion: the tokenizer's end token.")
    stop_token_id: int | None = flag(None, "Another token that ends a completion, by its number.", least=0)
    temperature: float = flag(0.7, "What logits are divided by, in sampling and in training.", least=1e-3)
    missing_eos_penalty: float | None = flag(None, "Taken off the score of a completion that does not end.", least=0)
    overlong_buffer_len: int | None = flag(
        None, "Last tokens of response_length in which a score falls evenly, by overlong_penalty_factor.", least=1
    )
    overlong_penalty_factor: float = flag(1.0, "How far it falls for a completion of full length.", least=0)
    advantage: Literal["gae", "rloo", "grpo"] = flag(
        "gae", "How good a token was: by a value function; or a completion, beside the others of its prompt."
    )
    num_generations: int | None = flag(None, "Completions of a prompt. Without it 1; rloo and grpo 4.", least=1)
    scale_rewards: bool = flag(True, "grpo: divide by the standard deviation of the prompt's scores.")
    value: Literal["shared", "separate"] | None = flag(
        None, "The value function (gae): a head on the policy's trunk, the default, or a model of its own."
    )
    value_learning_rate: float | None = flag(
        None, "Peak learning rate of the value. Without it, the policy's.", least=0
    )
    value_warmup_steps: int = flag(0, "First updates in which the value alone learns.", least=0)
    kl_coef: float = flag(0.05, "Weight of the divergence from the reference.", least=0)
    kl_estimator: Literal["k1", "k2", "k3"] = flag(
        "k1", "How it is estimated: without bias (k1), with less variance, both (k3)."
    )
    kl_target: float | None = flag(
        None, "Divergence of a completion, in nats, that kl_coef is led towards.", least=1e-6
    )
    kl_horizon: int = flag(10_000, "Episodes in which kl_coef changes by 20 % on the way to kl_target.", least=1)
    kl_in_loss: bool = flag(False, "The divergence (k3) in the loss instead of the rewards, as GRPO has it.")
    max_kl: float | None = flag(None, "Stop once the divergence of a completion is beyond so many nats.", least=0)
    cliprange: float = flag(0.2, "How far a ratio of probabilities goes from 1 before it is clipped.", least=0)
    cliprange_high: float | None = flag(None, "The same upwards; without it, cliprange.", least=0)
    dual_clip: float | None = flag(None, "Most of a loss, in advantages, where the advantage is negative.", least=1)
    cliprange_value: float = flag(0.2, "How far a value goes in an update before it is clipped.", least=0)
    vf_coef: float = flag(0.1, "Weight of the value's loss.", least=0)
    entropy_coef: float = flag(0.0, "Weight of the entropy, which is then sought.", least=0)
    gamma: float = flag(1.0, "Discount of what comes later.", least=0, most=1)
    lam: float = flag(0.95, "Lambda of generalised advantage estimation.", least=0, most=1)
    value_lam: float | None = flag(None, "The same for what the value learns; without it, lam.", least=0, most=1)
    length_adaptive_lam: float | None = flag(
        None, "Instead of lam 1 - 1 / (this x tokens) by completion; its authors take 0.05.", least=1e-6
    )
    whiten_rewards: bool = flag(False, "Divide the tokens' rewards by their standard deviation.")
    reward_clip: float | None = flag(None, "Scores are clipped to this in size.", least=0)
    normalize_rewards: bool = flag(False, "Scores of mean 0 and variance 1, by those of the run so far.")
    reward_model_path: list[str] = flag([], "Reward models: folders or Hub ids.")
    reward_funcs: list[str] = flag([], "Reward functions: file.py:function, or module.function.")
    reward_weights: list[float] = flag([], "Weight of each reward, models first. Without it 1.")
    judge: str | None = flag(
        None, "A reward that is only looked at (a model, or a function): it warns of a hacked one."
    )
    num_sample_generations: int = flag(10, "How often samples are shown in a run.", least=0)

    def check_ppo(self) -> None:
        """Fill in what follows from other flags; an ArgumentError for those that do not go together."""
        grouped = self.advantage != "gae"
        self.num_generations = self.num_generations or (GROUP if grouped else 1)
        if grouped and self.num_generations < 2:
            raise ArgumentError(f"--advantage {self.advantage} compares completions: --num_generations 2 or more.")
        unset = {field.name: field.default for field in fields(PPOFields)}
        for names, read, why in self._readers():
            for name in names:
                if not read and getattr(self, name) != unset[name]:
                    raise ArgumentError(f"--{name} {why}.")
        if self.overlong_buffer_len is not None and self.overlong_buffer_len > self.response_length:
            raise ArgumentError("--overlong_buffer_len: at most the tokens of --response_length.")
        if self.stop_token_id is not None:
            self.stop_token = None
        if self.kl_target is not None and (self.kl_in_loss or not self.kl_coef):
            raise ArgumentError("--kl_target leads --kl_coef, which must be above 0 and in the rewards.")

    def _readers(self) -> list[tuple[Sequence[str], bool, str]]:
        """Flags that are not always read: whether they are now, and what to say where not."""
        return [
            (OF_GAE, self.advantage == "gae", "is for --advantage gae"),
            (["scale_rewards"], self.advantage == "grpo", "is for --advantage grpo"),
            (["overlong_penalty_factor"], self.overlong_buffer_len is not None, "needs --overlong_buffer_len"),
            (["kl_horizon"], self.kl_target is not None, "needs --kl_target"),
            (["kl_estimator"], not self.kl_in_loss, "is not read with --kl_in_loss, which is k3"),
            (["lam"], self.length_adaptive_lam is None, "is not read with --length_adaptive_lam"),
            (["importance_sampling_cap"], self.rollout != "policy", "is for --rollout copy, continuous or vllm"),
            (OF_VLLM, self.rollout == "vllm", "is for --rollout vllm"),
        ]


@dataclass
class PPOArguments(PPOFields, AdapterArguments):
    """Reinforcement learning from rewards (PPO)."""

    # TRL's of all weights; ten times that of an adapter.
    RATES: ClassVar[tuple[float, float]] = (3e-6, 3e-6)
    ADAPTER_RATE: ClassVar[float] = 3e-5
    INSTEAD: ClassVar[dict[str, tuple[str, ...]]] = AdapterArguments.INSTEAD | {
        "num_train_epochs": ("max_steps", "total_episodes"),
        "total_episodes": ("max_steps",),
    }

    value_model_path: str | None = flag(
        None, "The value model of --value separate. Without it, it begins as the first reward model."
    )
    per_device_train_batch_size: int = flag(16, "Completions whose gradients a device computes at once.", least=1)
    gradient_accumulation_steps: int = flag(4, "Batches of completions that an update learns from.", least=1)
    lr_scheduler_type: str = flag("linear", "Schedule of the learning rate: linear, cosine, constant_with_warmup, ...")
    warmup_steps: float = flag(0, "Updates of linear warm-up, the first at 0; below 1, a share of all.", least=0)
    logging_steps: float = flag(1, "Updates between two lines of the log.", least=0)
    eval_strategy: Literal["no", "steps"] = flag("steps", "When to sample the validation prompts.")
    save_strategy: Literal["no", "steps"] = flag("steps", "When to save a checkpoint.")
    eval_steps: float | None = flag(10, "Updates between two evaluations.", least=0)
    save_steps: float = flag(10, "Updates between two checkpoints.", least=0)
    test_split_size: float = flag(0.05, "Prompts set aside for validation: a share below 1, or a number.", least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_ppo()
        if not self.reward_model_path and not self.reward_funcs:
            raise ArgumentError("There is no reward: --reward_model_path or --reward_funcs, or both.")
        if self.value_model_path and self.value is None:
            self.value = "separate"
        if self.value_model_path and self.value != "separate":
            raise ArgumentError("--value_model_path is for --value separate.")
        if self.value == "separate" and not (self.value_model_path or self.reward_model_path):
            raise ArgumentError("--value separate: name a model to begin as (--value_model_path).")
        if self.model_name_or_path is None:
            raise ArgumentError("PPO continues from a model that can write: pass --model_name_or_path.")
        if self.use_peft and "tuning" in self.peft_type:
            raise ArgumentError(f"--peft_type {self.peft_type} is no part of the layers: take lora or ia3.")
        if self.init_lora_weights == "eva":
            raise ArgumentError("--init_lora_weights eva begins with training examples, of which PPO has none.")
