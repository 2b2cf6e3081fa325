"""Labels for texts: classes, numbers, tags of tokens, or answers in a text, told by a head on any encoder or decoder.

All weights are trained, or an adapter and the head, or the head alone over features that are computed once; of a few
texts a class, an encoder learns first which of them belong together.

    accelerate launch recipes/classify.py
    accelerate launch recipes/classify.py --dataset_name my_reviews.csv --model_name_or_path org/name --strategy head

Devlin et al. 2018, "BERT: Pre-training of Deep Bidirectional Transformers" (https://arxiv.org/abs/1810.04805).
"""

from dataclasses import dataclass

import tuner


@dataclass
class Arguments(tuner.ClassifyArguments):
    """Classification."""

    MODEL = "builtin:minilm-l6"

    model_name_or_path: str | None = tuner.flag(
        None, f"Model to put a head on: a folder, a Hub id or builtin:<name>. Without flags of a new one: {MODEL}."
    )
    dataset_name: list[str] = tuner.flag(["builtin:bbc-news"], "Hub ids, files, folders or builtin:<name>s.")
    output_dir: str = tuner.flag("runs/classify/run", "Folder for checkpoints, the model and the report.")


def main() -> None:
    args = tuner.parse_arguments(Arguments)
    run = tuner.open_run(args, tuner.Classification)
    rows = tuner.load_labelled_rows(run)
    tokenizer = tuner.load_tokenizer(run, rows)
    model = tuner.load_model(run, tokenizer)
    objective = tuner.make_objective(run, tokenizer, model)
    examples = tuner.make_examples(run, rows, objective)
    if args.dry_run:
        return tuner.show_plan(run, rows, objective, examples, model)

    tuner.tune_encoder(run, objective, examples, model)  # with --strategy fewshot
    trainer = tuner.Trainer(model, run, objective, examples)
    trainer.train(resume_from_checkpoint=run.checkpoint)
    trainer.save_model()
    tuner.write_report(trainer, rows)
    trainer.push_to_hub()


if __name__ == "__main__":
    tuner.run(main)
