"""What a trainer is made of: sizes of batches, the value function, end tokens, the optimizer, the frozen lower half."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, Trainer, get_scheduler

from tuner.errors import ArgumentError, ModelError
from tuner.loading.checkpoints import without_dropout
from tuner.optim.check import schedule_kwargs
from tuner.optim.muon import MuonWithAdamW
from tuner.optim.split_adamw import SplitAdamW, own_optimizer
from tuner.rl.actor import ActorCritic, ValueHead, score_head
from tuner.rl.trl_ppo import PPOConfig
from tuner.train.adapters import LowerHalf
from tuner.train.run import say


def check_arguments(args: PPOConfig) -> None:
    """An ArgumentError for what of transformers' arguments has no meaning here."""
    for flag in ("eval_strategy", "save_strategy"):
        if getattr(args, flag) in ("epoch", "best"):
            raise ArgumentError(f"--{flag} {getattr(args, flag)}: here it is steps, or no.")
    if args.fp16:
        raise ArgumentError("--fp16: log-probabilities would overflow its range. Take bf16 or float32.")
    for flag in ("model_adapter_name", "ref_adapter_name"):
        if getattr(args, flag, None) is not None:
            raise ArgumentError(f"{flag}: the reference is the policy as it begins. Leave it out.")
    if args.lr_scheduler_type == "reduce_lr_on_plateau":
        raise ArgumentError("--lr_scheduler_type reduce_lr_on_plateau: an update has no loss that should fall.")
    if args.load_best_model_at_end:
        raise ArgumentError("--load_best_model_at_end: the last policy is the run's. Checkpoints are in its folder.")
    if args.missing_eos_penalty is not None and args.stop_token is None and args.stop_token_id is None:
        raise ArgumentError("--missing_eos_penalty: no token ends a completion (--stop_token, --stop_token_id).")
    if args.deepspeed or args.fsdp:
        raise ArgumentError("--fsdp, --deepspeed: in PPO here each process holds the whole model.")


def set_batch_sizes(args: PPOConfig, prompts: int) -> None:
    """Fill in TRL's fields: a batch is what an update learns from. An ArgumentError where it cannot be divided."""
    args.local_batch_size = args.per_device_train_batch_size * args.gradient_accumulation_steps
    args.micro_batch_size = args.per_device_train_batch_size * args.world_size
    args.batch_size = args.local_batch_size * args.world_size
    for flag, size in (("num_mini_batches", args.num_mini_batches), ("num_generations", args.num_generations or 1)):
        if args.batch_size % size:
            raise ArgumentError(f"--{flag} {size} does not divide the {args.batch_size} completions of an update.")
    args.mini_batch_size = args.batch_size // args.num_mini_batches
    args.local_mini_batch_size = args.mini_batch_size // args.world_size
    episodes = math.ceil(args.num_train_epochs * prompts * (args.num_generations or 1))
    args.total_episodes = args.total_episodes or episodes
    args.num_total_batches = args.max_steps if args.max_steps > 0 else math.ceil(args.total_episodes / args.batch_size)
    if not args.num_total_batches:
        raise ArgumentError(f"There is no update to make: --num_train_epochs {args.num_train_epochs:g}.")


def make_value(args: PPOConfig, model: Any, value_model: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The value head, or the model of its own, or None where completions are judged beside each other.

    Raises:
        ArgumentError: a value model where there is no use for it, or none where there is.
        ModelError: one without a single output, with a smaller vocabulary, or which reads what comes after a token.
    """
    if args.advantage != "gae":
        if value_model is not None:
            raise ArgumentError(f"value_model: --advantage {args.advantage} has no value function.")
        return None
    args.value = args.value or ("shared" if value_model is None else "separate")
    if (args.value == "separate") != (value_model is not None):
        raise ArgumentError("--value separate takes a value_model, and --value shared none.")
    if value_model is None:
        return ValueHead(model.config.get_text_config().hidden_size)
    score_head(value_model)
    _check_causal(value_model)
    if value_model.get_input_embeddings().num_embeddings < len(tokenizer):
        raise ModelError("The value model's vocabulary is smaller than the tokenizer's: they must be the policy's.")
    return value_model


@torch.no_grad()
def _check_causal(model: Any) -> None:
    was_training, body = model.training, getattr(model, model.base_model_prefix)
    model.eval()
    ids = torch.arange(16, device=model.device)[None]
    changed = torch.cat([ids[:, :8], ids[:, :8]], dim=1)
    here, there = (body(input_ids=each)[0][:, :8] for each in (ids, changed))
    model.train(was_training)
    # Beside another expert's tokens, and in half precision, rounding is another.
    near = (
        1e-3 if here.dtype == torch.float32 and not any("expert" in name for name, _ in body.named_modules()) else 5e-2
    )
    if not torch.allclose(here, there, atol=near, rtol=near):
        raise ModelError(
            f"The value of a token cannot be given by {type(model).__name__}, which reads what comes after it: take a "
            "decoder (--value_model_path), or --value shared."
        )


def end_tokens(args: PPOConfig, model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a completion; a ModelError where there is none and one is asked for."""
    if args.stop_token_id is not None:
        return [args.stop_token_id]
    return [] if args.stop_token is None else known_ends(model, tokenizer)


def known_ends(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The end tokens that a model and its tokenizer name; a ModelError where there is none."""
    known = model.generation_config.eos_token_id if getattr(model, "generation_config", None) else None
    ends = [*(known if isinstance(known, list) else [known]), tokenizer.eos_token_id]
    found = sorted({end for end in ends if end is not None})
    if not found:
        raise ModelError("Neither model nor tokenizer has an end token (--stop_token eos).")
    return found


def keep_lower_half(actor: ActorCritic, autocast: Any) -> None:
    """Where adapters learn in the upper layers alone, have what the lower ones give computed once an update."""
    half = LowerHalf(actor.policy.eval())
    ids = actor.bare.config.get_text_config().vocab_size - 1
    inputs = {"input_ids": torch.arange(1, 9, device=actor.bare.device)[None].clamp(max=ids)}
    with torch.no_grad(), autocast:
        reason = half.why_not(inputs)
    if reason is None:
        actor.lower = half
    elif "is trained" not in reason:
        say(f"The frozen half of the layers is computed in every pass: {reason}.")


def make_optimizer(args: PPOConfig, actor: ActorCritic) -> torch.optim.Optimizer:
    """The optimizer that `--optim` names, with a learning rate for the policy and one for the value; norms and biases
    do not decay."""
    parts = [(actor.policy, args.learning_rate)]
    if actor.value is not None:
        own = args.value_learning_rate
        parts.append((actor.value, args.learning_rate if own is None else own))
    groups = []
    for part, rate in parts:
        trained = [p for p in part.parameters() if p.requires_grad]
        groups += [
            {"params": [p for p in trained if p.dim() > 1], "lr": rate, "weight_decay": args.weight_decay},
            {"params": [p for p in trained if p.dim() <= 1], "lr": rate, "weight_decay": 0.0},
        ]
    kind, how = own_optimizer(args, actor.policy) or Trainer.get_optimizer_cls_and_kwargs(args, actor.policy)
    if kind is MuonWithAdamW:  # it knows blocks, which a value head has none of
        of_value = [group | {"use_muon": False} for group in groups[2:]]
        groups = [group | {"lr": args.learning_rate} for group in how.pop("params")] + of_value
    if kind is SplitAdamW and any(p.dtype != torch.bfloat16 for group in groups for p in group["params"]):
        raise ArgumentError(
            "--dtype bfloat16: the value learns in another type than the policy, as the value head does in float32. "
            "Take --value separate with a model in bfloat16, --use_peft, or --bf16 over float32 weights."
        )
    return kind([group for group in groups if group["params"]], **how)


@torch.no_grad()
def make_still(parts: Sequence[Any], device: torch.device) -> None:
    """Move models to a device and switch off what is random in training, which gives a token other odds than in
    sampling; a ModelError where the policy, the first of them, is random none the less."""
    for part in (part for part in parts if isinstance(part, nn.Module)):
        without_dropout(part.to(device))
    policy = parts[0]
    was_training, ids = policy.training, torch.arange(8, device=device)[None]
    policy.train()
    with torch.random.fork_rng([] if device.type == "cpu" else None):
        once, again = (policy(input_ids=ids).logits for _ in range(2))
    policy.train(was_training)
    if not torch.allclose(once, again, atol=1e-2, rtol=1e-2):
        raise ModelError(
            "The policy is random in training, and its dropout cannot be switched off: set it to 0 in its config.json."
        )


@torch.no_grad()
def adapter_is_new(policy: Any) -> bool:
    """Whether the policy says the same without its adapter: one that has learnt, or begins with a part of the weights
    (PiSSA), is no such, and the weights alone are then not what the policy begins as."""
    was_training, known = policy.training, policy.get_input_embeddings().num_embeddings
    ids = torch.arange(0, known, max(known // 16, 1), device=policy.device)[None, :16]
    policy.eval()
    with_it = policy(input_ids=ids).logits
    with policy.disable_adapter():
        without = policy(input_ids=ids).logits
    policy.train(was_training)
    near = 1e-3 if with_it.dtype == torch.float32 and policy.dtype == torch.float32 else 1e-2
    return torch.allclose(with_it, without, atol=near, rtol=near)


def check_optimizer(optimizer: torch.optim.Optimizer, actor: ActorCritic) -> None:
    """An ArgumentError for an optimizer that was given and lacks weights that learn, or where none learn."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    learning = {name: p for name, p in actor.named_parameters() if p.requires_grad}
    if not any(name.startswith("policy.") for name in learning):
        raise ArgumentError("No weight of the policy learns: all are frozen (requires_grad).")
    lacking = [name for name, p in learning.items() if id(p) not in held]
    if lacking:
        raise ArgumentError(
            f"optimizers: it lacks {len(lacking)} weights that learn ({lacking[0]}). A value head is made here: leave "
            "optimizers out, or take --value separate."
        )


def make_schedule(args: PPOConfig, optimizer: torch.optim.Optimizer) -> Any:
    """The schedule of the learning rates over all updates."""
    steps = args.num_total_batches or 0
    how = schedule_kwargs(args, steps)
    warmup = args.get_warmup_steps(steps)
    return get_scheduler(args.lr_scheduler_type, optimizer, warmup, steps, scheduler_specific_kwargs=how)
