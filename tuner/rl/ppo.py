"""Proximal policy optimization: a policy learns from scores of what it writes itself.

An update is four phases, each a function of its own: completions are sampled (`rollout`), scored (`rewards`), judged by
token or beside each other (`advantages`), and learnt from (`update`). The arguments are those of TRL's `PPOTrainer` and
`PPOConfig`. transformers' training loop has no place for such a run, so that nothing of its `Trainer` runs here but
what loads a checkpoint and writes a model's card; what our runs promise is composed of the pieces they have too:
checkpoints, seeds, signals, guards.

    trainer = PPOTrainer(args=PPOConfig(...), processing_class=tokenizer, model=model, reward_model=[...],
                         train_dataset=prompts)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from tuner.config.ppo import PPOArguments
from tuner.errors import ArgumentError, ModelError, NonFiniteError
from tuner.loading.generation import room
from tuner.rl import setup
from tuner.rl.actor import ActorCritic, layout_of
from tuner.rl.advantages import gae, group_normalised, leave_one_out, length_adaptive, overlong, token_rewards, whiten
from tuner.rl.engines import as_rollout, make_engine
from tuner.rl.evaluation import show_samples
from tuner.rl.loop import UpdateLoop
from tuner.rl.losses import KLController, RunningScale, divergence
from tuner.rl.measures import measures
from tuner.rl.prompts import EpisodeOrder, encode_prompts, read_prompts
from tuner.rl.rewards import Rewards
from tuner.rl.rollout import Rollout, sample, uniforms
from tuner.rl.trl_ppo import PPOConfig
from tuner.rl.update import Experience, learn, micro_batches
from tuner.train.checkpoint import last_saved
from tuner.train.run import Run, say


class PPOTrainer(UpdateLoop):
    """TRL's `PPOTrainer`: the same constructor, and what it lacks.

    Args:
        model: the policy, bare or with an adapter.
        ref_model: None for the policy as it begins: its weights without a new adapter, or else a copy of it.
        reward_model: a model with one output, a function (`tuner.rl.rewards`), or a list of such.
        train_dataset: rows with `input_ids`, or with a column that `tuner.rl.prompts` reads.
        value_model: of `--value separate`: a model with one output and the policy's tokenizer.
        reward_processing_classes: of each reward model its own tokenizer; None for the policy's.
        judge: a reward that is only looked at.
        run: of a recipe: its folder is that of `args`, and its flags say what is done beside (`--push_to_hub`,
            `--merge`, `--max_minutes`).

    Raises:
        ArgumentError, ModelError, DataError: arguments, models or prompts that do not go together.
    """

    def __init__(
        self,
        args: PPOConfig,
        processing_class: PreTrainedTokenizerBase,
        model: Any,
        ref_model: PreTrainedModel | None = None,
        reward_model: Any = None,
        train_dataset: Dataset | None = None,
        value_model: PreTrainedModel | None = None,
        data_collator: None = None,
        eval_dataset: Dataset | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        callbacks: Sequence[Any] | None = None,
        peft_config: Any = None,
        *,
        reward_processing_classes: Sequence[PreTrainedTokenizerBase | None] | None = None,
        judge: Any = None,
        run: Run[PPOArguments] | None = None,
    ):
        if data_collator is not None:
            raise ArgumentError("data_collator: prompts are put together here, without padding. Leave it out.")
        if train_dataset is None:
            raise ArgumentError("train_dataset: there are no prompts.")
        if isinstance(eval_dataset, dict):
            raise ArgumentError("eval_dataset: one data set, and not several by name.")
        if ref_model is model:
            raise ArgumentError("ref_model is the policy itself: it would move with it. Leave it out for a copy.")
        setup.check_arguments(args)
        self.args, self.processing_class = args, processing_class
        self.accelerator = Accelerator(mixed_precision="bf16" if args.bf16 else "no", cpu=args.use_cpu)
        set_seed(args.seed)
        if peft_config is not None:
            from peft import get_peft_model  # seconds

            model = get_peft_model(model, peft_config)
        adapted = hasattr(model, "disable_adapter")
        if adapted and any(config.is_prompt_learning for config in model.peft_config.values()):
            raise ModelError("A prompt or prefix that is learnt is no part of the layers: take lora or ia3.")
        bare = model.get_base_model() if adapted else model
        rewards = (
            reward_model if isinstance(reward_model, list | tuple) else [reward_model] * (reward_model is not None)
        )
        tokenizers, size = reward_processing_classes or [None] * len(rewards), args.local_rollout_forward_batch_size
        self.rewards_of = Rewards(rewards, args.reward_weights or None, tokenizers, processing_class, size)
        if judge is not None and "judge" in self.rewards_of.names:
            raise ArgumentError("A reward is named judge, as the judge is in the log: give it another name.")
        self.judge = None if judge is None else Rewards([judge], None, [None], processing_class, size)
        setup.make_still([model, ref_model, value_model, judge, *rewards], self.accelerator.device)
        alone = adapted and setup.adapter_is_new(model)  # else its weights are part of what the policy begins as
        self.ref_model = ref_model or (None if alone else copy.deepcopy(bare))
        self._read_prompts(train_dataset, eval_dataset, room(bare, args.response_length))
        for rewards_of in filter(None, (self.rewards_of, self.judge)):
            for rows in filter(None, (self.train_dataset, self.eval_dataset)):
                rewards_of.check(rows)
        setup.set_batch_sizes(args, len(self.train_dataset))
        value = setup.make_value(args, model, value_model, processing_class)
        layout = layout_of(bare, torch.bfloat16 if args.bf16 else None, value_model)
        pad = processing_class.pad_token_id or 0  # which one is of no account: where a sequence ends is known
        self.actor = ActorCritic(model, value, args.temperature, layout, pad).to(self.accelerator.device)
        self.model = model
        if args.activation_checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable(args.activation_checkpointing_kwargs)
        if adapted:
            setup.keep_lower_half(self.actor, self.accelerator.autocast())
        self.ends = setup.end_tokens(args, bare, processing_class)
        self.engine = make_engine(args, model, self.accelerator, processing_class, self.ends)
        self.order = EpisodeOrder(len(self.train_dataset), args.seed, args.num_generations or 1)
        self.kl, self.scale = KLController(args.kl_coef, args.kl_target, args.kl_horizon), RunningScale()
        self.optimizer = optimizers[0] or setup.make_optimizer(args, self.actor)
        setup.check_optimizer(self.optimizer, self.actor)
        self.lr_scheduler = optimizers[1] or setup.make_schedule(args, self.optimizer)
        self.start_loop(callbacks, run)

    def _read_prompts(self, train: Dataset, held_out: Dataset | None, most: int) -> None:
        longest, tokenizer = self.args.max_prompt_length, self.processing_class
        left_out, found = 0, list[Any]()
        for rows, name in ((train, "the training prompts"), (held_out, "the validation prompts")):
            if rows is not None:
                known = rows if "input_ids" in rows.column_names else read_prompts(rows, name)[0]
                rows, out = encode_prompts(known, tokenizer, most, longest, name)
                left_out += out
            found.append(rows)
        self.train_dataset, self.eval_dataset = found
        if left_out:
            say(f"{left_out:,} prompts of more than {longest} tokens are left out (--max_prompt_length).")

    # ---- four phases ----

    def rollout(self, update: int) -> tuple[Rollout, list[dict[str, Any]], list[int]]:
        """This process's completions of an update, their rows, and their places in the whole batch."""
        args, size = self.args, self.args.local_batch_size or 0
        numbers = [args.process_index * size + place for place in range(size)]
        episodes = [update * size * args.world_size + number for number in numbers]
        rows = [self.train_dataset[row] for row in self.order(episodes)]
        prompts = [row["input_ids"] for row in rows]
        if self.engine is not None:
            written = self.engine(prompts, args, self.ends, episodes)
            with self.accelerator.autocast():
                size = args.local_rollout_forward_batch_size
                return as_rollout(self.actor, prompts, written, self.ends, size), rows, numbers
        with self.accelerator.autocast():
            found = sample(
                self.actor.policy,
                prompts,
                uniforms(args.seed, episodes, args.response_length),
                ends=self.ends,
                temperature=args.temperature,
                batch_size=args.local_rollout_forward_batch_size,
                value=self.actor.value if self.actor.shares else None,
            )
        return found, rows, numbers

    def rewards(self, rollout: Rollout, rows: list[dict[str, Any]]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Scores of completions `(n,)`, and by name what each reward said."""
        args = self.args
        with self.accelerator.autocast():
            scores, found = self.rewards_of(rows, rollout.prompts, rollout.completions())
        if args.normalize_rewards:
            self.scale.update(self.everyone(scores))
            scores = self.scale(scores)
        if args.reward_clip is not None:
            scores = scores.clamp(-args.reward_clip, args.reward_clip)
        if args.missing_eos_penalty is not None:
            scores = scores - args.missing_eos_penalty * (~rollout.ended.cpu()).float()
        if args.overlong_buffer_len is not None:
            near = overlong(rollout.lengths.cpu(), args.response_length, args.overlong_buffer_len)
            scores = scores - args.overlong_penalty_factor * near
        return scores.to(rollout.tokens.device), found

    def experience(self, rollout: Rollout, numbers: list[int]) -> Experience:
        """What reference and value model say of completions. Advantages are not known yet."""
        actor, size = self.actor, self.args.local_rollout_forward_batch_size
        reference, states = torch.zeros_like(rollout.logprobs), [torch.empty(0)] * len(numbers)
        whole = rollout.whole_lengths()
        with torch.no_grad(), self.accelerator.autocast():
            for batch in micro_batches(range(len(numbers)), whole, size, actor.layout.padding_free):
                chosen = torch.as_tensor(batch, device=reference.device)
                said, kept = actor.reference(rollout, batch, self.ref_model)
                reference[chosen] = rollout.unflat(said, batch)
                for row, state in zip(batch, kept or [], strict=False):
                    states[row] = state
                if actor.value is not None and not actor.shares:
                    values = actor(rollout, batch, policy=False).values
                    rollout.values[chosen] = rollout.unflat(values, batch)
        nothing = torch.zeros_like(reference)
        return Experience(rollout, numbers, reference, nothing, nothing, states if actor.lower else None)

    def advantages(self, experience: Experience, scores: torch.Tensor) -> None:
        """Fill in advantages and returns."""
        args, rollout, mask = self.args, experience.rollout, experience.rollout.mask
        kl = divergence(rollout.logprobs, experience.reference, args.kl_estimator) * mask
        penalty = 0.0 if args.kl_in_loss else self.kl.coefficient
        if args.advantage == "gae":
            rewards = token_rewards(scores, kl, mask, penalty)
            if args.whiten_rewards:
                rewards = whiten(rewards, mask, shift_mean=False, add_up=self.add_up)
            alpha = args.length_adaptive_lam
            lam = args.lam if alpha is None else length_adaptive(rollout.lengths, alpha)
            found, experience.returns = gae(rewards, rollout.values, mask, args.gamma, lam)
            if args.value_lam is not None:
                _, experience.returns = gae(rewards, rollout.values, mask, args.gamma, args.value_lam)
            experience.advantages = whiten(found, mask, add_up=self.add_up)
            return
        # A prompt's completions are neighbours in the whole batch, which may be those of several processes.
        every, group = self.everyone(scores - penalty * kl.sum(dim=1)), args.num_generations or 1
        rloo = args.advantage == "rloo"
        judged = leave_one_out(every, group) if rloo else group_normalised(every, group, args.scale_rewards)
        experience.advantages = judged[torch.as_tensor(experience.numbers)].to(scores.device)[:, None]

    def update(self, experience: Experience, update: int, lengths: list[int]) -> dict[str, float]:
        """Learn from an update's completions; means over their tokens."""
        warming = update < self.args.value_warmup_steps
        self.actor.train()  # dropout is off; activations are recomputed in this mode alone
        with self.accelerator.autocast():
            return learn(self.actor, experience, self.args, update, lengths, self._step, self.add_up, warming)

    def _step(self) -> None:
        """Add up the processes' gradients, clip, step. Nothing that is not finite reaches a weight."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        if self.args.world_size > 1:
            given = self.add_up(torch.tensor([float(p.grad is not None) for p in parameters]).to(parameters[0].device))
            for parameter in (p for p, some in zip(parameters, given.tolist(), strict=True) if some):
                parameter.grad = self.add_up(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
        norm = float(nn.utils.clip_grad_norm_(parameters, self.args.max_grad_norm or math.inf))
        if not math.isfinite(norm):
            raise NonFiniteError(
                f"The gradient norm is {norm} in update {self.state.global_step + 1}, before the optimizer stepped. "
                f"A lower --learning_rate is the usual cure. {last_saved(self.folder)}"
            )
        self.norms.append(norm)
        self.call("on_pre_optimizer_step")
        self.optimizer.step()
        self.call("on_optimizer_step")
        self.optimizer.zero_grad(set_to_none=True)

    def one_update(self, update: int) -> dict[str, float]:
        args = self.args
        with self.timed("rollout"):
            rollout, rows, numbers = self.rollout(update)
        with self.timed("rewards"):
            scores, by_name = self.rewards(rollout, rows)
        with self.timed("advantages"):
            experience = self.experience(rollout, numbers)
            self.advantages(experience, scores)
        sampled, lengths = rollout.logprobs.clone(), self.everyone(rollout.lengths).tolist()
        with self.timed("update"):
            learnt = self.update(experience, update, lengths)
        logged = measures(self, experience, sampled, scores, by_name, learnt, lengths)
        if update >= self.args.value_warmup_steps:  # before, nothing moves that it could lead
            self.kl.update(logged["objective/kl"], len(lengths))
        every = max(self.state.max_steps // args.num_sample_generations, 1) if args.num_sample_generations else 0
        if every and update % every == 0:
            show_samples(self, rows, rollout, scores)
        return logged
