"""Supervised fine-tuning of an adapter: a few new weights learn, the model's own stay as they are.

To each linear layer the product of two thin matrices is added, the second of which begins as zero. The optimizer then
has a few percent of the state that all weights would need, and what is saved are a few megabytes.

    accelerate launch recipes/lora.py
    accelerate launch recipes/lora.py --dataset_name my_chats.jsonl --model_name_or_path org/name --merge true

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (https://arxiv.org/abs/2106.09685).
"""

from dataclasses import dataclass

import tuner


@dataclass
class LoraArguments(tuner.AdapterArguments):
    """Fine-tuning of an adapter."""

    model_name_or_path: str | None = tuner.flag(
        "builtin:smollm2-135m-instruct", "Model that stays as it is: a folder, a Hub id or builtin:<name>."
    )
    use_peft: bool = tuner.flag(True, "Train an adapter; the model's own weights stay as they are.")
    dataset_name: list[str] = tuner.flag(["builtin:chitchat-small"], "Hub ids, files, folders or builtin:<name>s.")
    per_device_train_batch_size: int = tuner.flag(2, "Sequences, or packed blocks, that a device computes at once.", 1)
    output_dir: str = tuner.flag("runs/lora/run", "Folder for checkpoints, the adapter and the report.")


def main() -> None:
    args = tuner.parse_arguments(LoraArguments)
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
