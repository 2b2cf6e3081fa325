"""Pretraining from raw text: a model learns a language by one of six objectives.

What each of them hides and what it asks for is in `tuner/objectives`, with formula and source.

    accelerate launch recipes/pretrain.py --config recipes/configs/pretrain/clm-tiny.yaml
    accelerate launch recipes/pretrain.py --objective mlm --dataset_name my_texts.jsonl --train_tokenizer wordpiece
"""

from dataclasses import dataclass
from typing import Literal

import tuner


@dataclass
class PretrainArguments(tuner.MaskedLMArguments, tuner.DenoiseArguments, tuner.ContrastiveArguments):
    """Pretraining from raw text."""

    RATES = (1e-4, 1e-3)

    objective: Literal["clm", "mlm", "mlm+nsp", "rtd", "denoise", "contrastive"] = tuner.flag(
        "clm", "Next token, masked tokens, those and next sentence, replaced tokens, spans or neighbours."
    )
    output_dir: str = tuner.flag("runs/pretrain/run", "Folder for checkpoints, the model and the report.")
    learning_rate: float | None = tuner.flag(None, "Peak learning rate. Without it: 1e-3, or 1e-4 for a checkpoint.")


def main() -> None:
    args = tuner.parse_arguments(PretrainArguments)
    run = tuner.open_run(args, tuner.PRETRAINING[args.objective])
    rows = tuner.load_documents(run)
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
