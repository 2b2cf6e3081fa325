"""Direct preference optimization: a model learns from pairs of answers which of two is better, without a reward model.

The loss raises the likelihood of the chosen answer over the rejected one, both relative to the model as it began.

    accelerate launch recipes/dpo.py --config recipes/configs/dpo/smollm2.yaml
    accelerate launch recipes/dpo.py --dataset_name my_pairs.jsonl --model_name_or_path runs/sft/smollm2

Rafailov et al. 2023, "Direct Preference Optimization: Your Language Model is Secretly a Reward Model"
(https://arxiv.org/abs/2305.18290).
"""

from dataclasses import dataclass

import tuner


@dataclass
class DPOArguments(tuner.PreferenceArguments):
    """Direct preference optimization."""

    model_name_or_path: str | None = tuner.flag(
        "builtin:smollm2-135m-instruct", "Model to continue from, which is also the reference."
    )
    dataset_name: list[str] = tuner.flag(["builtin:chitchat-pairs"], "Hub ids, files, folders or builtin:<name>s.")
    output_dir: str = tuner.flag("runs/dpo/run", "Folder for checkpoints, the model and the report.")
    learning_rate: float | None = tuner.flag(1e-6, "Peak learning rate (TRL's default).")


def main() -> None:
    args = tuner.parse_arguments(DPOArguments)
    run = tuner.open_run(args, tuner.DPO)
    rows = tuner.load_rows(run)
    tokenizer = tuner.load_tokenizer(run, rows)
    model = tuner.load_model(run, tokenizer)
    objective = tuner.make_objective(run, tokenizer, model)
    examples = tuner.make_examples(run, rows, objective)
    if args.dry_run:
        return tuner.show_plan(run, rows, objective, examples, model)

    trainer = tuner.Trainer(model, run, objective, examples)
    trainer.add_callback(tuner.SampleCallback(rows, objective))
    trainer.train(resume_from_checkpoint=run.checkpoint)
    trainer.save_model()
    tuner.write_report(trainer, rows)
    trainer.push_to_hub()


if __name__ == "__main__":
    tuner.run(main)
