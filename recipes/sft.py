"""Supervised fine-tuning: a model learns to answer by predicting the assistant's tokens of real conversations.

The loss is the mean negative log-likelihood of the answers' tokens alone; what the user says is read, not learnt.
Whole conversations are packed into blocks and none sees another.

    accelerate launch recipes/sft.py --config recipes/configs/sft/tiny.yaml
    accelerate launch recipes/sft.py --dataset_name my_chats.jsonl --model_name_or_path builtin:smollm2-135m-instruct

Ouyang et al. 2022, "Training language models to follow instructions with human feedback", section 3.5
(https://arxiv.org/abs/2203.02155).
"""

from dataclasses import dataclass

import tuner


@dataclass
class SFTArguments(tuner.RecipeArguments):
    """Supervised fine-tuning."""

    output_dir: str = tuner.flag("runs/sft/run", "Folder for checkpoints, the model and the report.")
    learning_rate: float = tuner.flag(
        2e-5, "Peak learning rate; 2e-5 suits a pretrained model (TRL's default), 1e-3 a tiny new one."
    )


def main() -> None:
    args = tuner.parse_arguments(SFTArguments)
    run = tuner.open_run(args, tuner.SFT)
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
