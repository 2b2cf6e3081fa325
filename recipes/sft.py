"""Supervised fine-tuning: a model learns to answer by predicting the assistant's tokens of real conversations.

The loss is the mean negative log-likelihood of the answers' tokens alone; what the user says is read, not learnt.
Whole conversations are packed into blocks and none sees another.

    accelerate launch recipes/sft.py
    accelerate launch recipes/sft.py --dataset_name my_chats.jsonl --model_name_or_path org/name

Without a model it takes SmolLM2-135M-Instruct, and without data a few hundred conversations: minutes on two CPU cores.

Ouyang et al. 2022, "Training language models to follow instructions with human feedback", section 3.5
(https://arxiv.org/abs/2203.02155).
"""

from dataclasses import dataclass

import tuner


@dataclass
class SFTArguments(tuner.AdapterArguments):
    """Supervised fine-tuning."""

    MODEL = "builtin:smollm2-135m-instruct"

    model_name_or_path: str | None = tuner.flag(
        None, f"Model to continue from: a folder, a Hub id or builtin:<name>. Without flags of a new one: {MODEL}."
    )
    dataset_name: list[str] = tuner.flag(["builtin:chitchat-small"], "Hub ids, files, folders or builtin:<name>s.")
    per_device_train_batch_size: int = tuner.flag(2, "Sequences, or packed blocks, that a device computes at once.", 1)
    output_dir: str = tuner.flag("runs/sft/run", "Folder for checkpoints, the model and the report.")


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
