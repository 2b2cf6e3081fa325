"""A reward model: one number that says how good an answer is, learnt from pairs of which one is better.

The loss raises the chosen answer's reward over the rejected one's; their difference is the log-odds of being preferred.

    accelerate launch recipes/reward.py --config recipes/configs/reward/tiny.yaml
    accelerate launch recipes/reward.py --dataset_name my_pairs.jsonl --model_name_or_path runs/sft/smollm2 --ensemble 3

Ouyang et al. 2022, "Training language models to follow instructions with human feedback", section 3.5
(https://arxiv.org/abs/2203.02155).
"""

from dataclasses import dataclass

import tuner


@dataclass
class Arguments(tuner.RewardArguments):
    """A reward model."""

    MODEL = "builtin:smollm2-135m-instruct"

    model_name_or_path: str | None = tuner.flag(
        None, f"Model to put a head on, a decoder or an encoder. Without flags of a new one: {MODEL}."
    )
    dataset_name: list[str] = tuner.flag(["builtin:sentiment-pairs"], "Hub ids, files, folders or builtin:<name>s.")
    output_dir: str = tuner.flag("runs/reward/run", "Folder for checkpoints, the model and the report.")
    learning_rate: float | None = tuner.flag(1e-4, "Peak learning rate (TRL's default).")


def main() -> None:
    args = tuner.parse_arguments(Arguments)
    tuner.write_ensemble(args, [train(member) for member in tuner.members(args)])


def train(args: Arguments) -> "tuner.Reward | None":
    run = tuner.open_run(args, tuner.Reward)
    rows = tuner.load_rows(run)
    tokenizer = tuner.load_tokenizer(run, rows)
    model = tuner.load_model(run, tokenizer)
    objective = tuner.make_objective(run, tokenizer, model)
    examples = tuner.make_examples(run, rows, objective)
    if args.dry_run:
        return tuner.show_plan(run, rows, objective, examples, model)

    trainer = tuner.Trainer(model, run, objective, examples)
    trainer.train(resume_from_checkpoint=run.checkpoint)
    trainer.save_model()
    tuner.write_report(trainer, rows)
    trainer.push_to_hub()
    return objective


if __name__ == "__main__":
    tuner.run(main)
