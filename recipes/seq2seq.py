"""Sequence to sequence: a model learns to write a text out of another, a translation or a summary for instance.

An encoder reads the source, both ways at once; a decoder writes the target, looking at what the encoder made of it. The
loss is the mean negative log-likelihood of the target's tokens.

    accelerate launch recipes/seq2seq.py --config recipes/configs/seq2seq/tiny.yaml
    accelerate launch recipes/seq2seq.py --dataset_name my_pairs.jsonl --model_name_or_path org/name

Sutskever et al. 2014, "Sequence to Sequence Learning with Neural Networks" (https://arxiv.org/abs/1409.3215); Vaswani
et al. 2017, "Attention Is All You Need" (https://arxiv.org/abs/1706.03762).
"""

from dataclasses import dataclass

import tuner


@dataclass
class Seq2SeqArguments(tuner.Seq2SeqArguments):
    """Sequence to sequence."""

    output_dir: str = tuner.flag("runs/seq2seq/run", "Folder for checkpoints, the model and the report.")


def main() -> None:
    args = tuner.parse_arguments(Seq2SeqArguments)
    run = tuner.open_run(args, tuner.Seq2Seq)
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
