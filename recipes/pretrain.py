"""Pretraining from raw text: a model learns a language by one of six objectives.

What each of them hides and what it asks for is in `tuner/train/objectives.py`, with formula and source.

    accelerate launch recipes/pretrain.py --config recipes/configs/pretrain/clm-tiny.yaml
    accelerate launch recipes/pretrain.py --objective mlm --dataset_name my_texts.jsonl --train_tokenizer wordpiece
"""

from dataclasses import dataclass
from typing import Literal

import tuner


@dataclass
class PretrainArguments(tuner.RecipeArguments):
    """Pretraining from raw text."""

    objective: Literal["clm", "mlm", "mlm+nsp", "rtd", "denoise", "contrastive"] = tuner.flag(
        "clm", "Next token, masked tokens, those and next sentence, replaced tokens, spans or neighbours."
    )
    train_tokenizer: Literal["bpe", "wordpiece", "unigram"] = tuner.flag(
        "bpe", "How a tokenizer is trained where none is given; --vocab_size says how large."
    )
    clean: Literal["none", "light", "web"] = tuner.flag(
        "none",
        "light: characters, repeated and validation documents; web: boilerplate and Gopher's rules too. "
        "In a stream only what a document shows by itself.",
    )
    streaming: bool = tuner.flag(False, "Read the text on the way, for a corpus larger than the disk.")
    shuffle_buffer: int = tuner.flag(10_000, "Documents that a stream is shuffled among.", least=1)
    mlm_probability: float | None = tuner.flag(
        None, "Share of the tokens that mlm, rtd and denoise hide: 0.15 unless set, for infilling 0.3.", least=0, most=1
    )
    mean_noise_span_length: float = tuner.flag(3.0, "Tokens in a span of denoise, on average.", least=1, most=512)
    whole_word: bool = tuner.flag(False, "Hide whole words in mlm and rtd.")
    corruption: Literal["spans", "infilling"] = tuner.flag(
        "spans", "What denoise hides: spans, each for a sentinel (T5), or for one mask, all to be written (BART)."
    )
    views: Literal["neighbours", "dropout"] = tuner.flag(
        "neighbours", "What contrastive brings together: neighbouring lines, or a text and itself under other dropout."
    )
    temperature: float = tuner.flag(0.05, "Temperature of contrastive.", least=1e-4)
    z_loss: float = tuner.flag(0.0, "Weight of the squared log of the softmax's sum; 1e-4 steadies long runs.", least=0)
    skip_spikes: bool = tuner.flag(True, "Leave out a step whose gradient norm is 6 sigma above the last 128.")
    max_minutes: float | None = tuner.flag(None, "Stop after so many minutes, with a checkpoint to resume.", least=0.01)
    output_dir: str = tuner.flag("runs/pretrain/run", "Folder for checkpoints, the model and the report.")
    learning_rate: float = tuner.flag(1e-3, "Peak learning rate.")


def main() -> None:
    args = tuner.parse_arguments(PretrainArguments)
    run = tuner.open_run(args)
    documents = tuner.load_documents(args)
    tokenizer = tuner.load_pretraining_tokenizer(run, documents)
    objective = tuner.load_objective(args, tokenizer)
    examples = tuner.make_examples(args, documents, objective)
    model = tuner.load_pretraining_model(args, tokenizer)
    if args.dry_run:
        return tuner.show_pretraining_plan(run, documents, objective, examples, model, tokenizer)

    trainer = tuner.PretrainTrainer(model, run, objective, examples.train, examples.eval, tokenizer)
    trainer.add_callback(tuner.SampleCallback(tokenizer, documents.eval))
    trainer.train(resume_from_checkpoint=run.checkpoint)
    trainer.save_model()
    tuner.write_pretraining_report(trainer, run, documents, examples)
    if args.push_to_hub:
        trainer.push_to_hub(dataset=args.dataset_name)


if __name__ == "__main__":
    tuner.run(main)
