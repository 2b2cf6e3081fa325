"""Proximal policy optimization: a model learns from scores of what it writes itself (RLHF, or verifiable rewards).

A reward model or a function scores the completions that the model samples; it learns to write more of what scores high,
and is held to the model that it began as.

    accelerate launch recipes/ppo.py --config recipes/configs/ppo/smollm2.yaml
    accelerate launch recipes/ppo.py --reward_model_path runs/reward/run --dataset_name my_prompts.jsonl --use_peft
    accelerate launch recipes/ppo.py --reward_funcs my_rewards.py:is_correct --advantage grpo

Schulman et al. 2017, "Proximal Policy Optimization Algorithms" (https://arxiv.org/abs/1707.06347); Ouyang et al. 2022,
"Training language models to follow instructions with human feedback" (https://arxiv.org/abs/2203.02155).
"""

from dataclasses import dataclass

import tuner


@dataclass
class Arguments(tuner.PPOArguments):
    """Reinforcement learning from rewards."""

    model_name_or_path: str | None = tuner.flag(
        "builtin:smollm2-135m-instruct", "Model to continue from, which is also the reference."
    )
    dataset_name: list[str] = tuner.flag(
        ["builtin:chitchat-small"], "Prompts: Hub ids, files, folders or builtin:<name>s."
    )
    output_dir: str = tuner.flag("runs/ppo/run", "Folder for checkpoints, the model and the report.")


def main() -> None:
    args = tuner.parse_arguments(Arguments)
    run = tuner.open_run(args, tuner.PPO)
    prompts = tuner.load_prompts(run)
    tokenizer = tuner.load_tokenizer(run, prompts)
    model = tuner.load_model(run, tokenizer)
    scorers = tuner.load_scorers(run, tokenizer)
    if args.dry_run:
        return tuner.show_prompts_plan(run, prompts, tokenizer, model, scorers)

    trainer = tuner.PPOTrainer(
        args=run.training,
        processing_class=tokenizer,
        model=model,
        reward_model=scorers.rewards,
        value_model=scorers.value_model,
        judge=scorers.judge,
        train_dataset=prompts.train,
        eval_dataset=prompts.eval,
        run=run,
    )
    trainer.train(resume_from_checkpoint=run.checkpoint)
    trainer.save_model()
    tuner.write_ppo_report(trainer)
    trainer.push_to_hub()


if __name__ == "__main__":
    tuner.run(main)
