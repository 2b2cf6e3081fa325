"""The first half of `--strategy fewshot`: a run of its own, in a folder of the run's, that tunes the encoder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel

from tuner.loading.features import freeze
from tuner.objectives.arguments import ClassifyArguments
from tuner.objectives.classification import Classification
from tuner.objectives.fewshot import ClassContrast
from tuner.objectives.records import Examples
from tuner.train.run import Run, find_checkpoint, prepare_folder, resolved, resumes, say
from tuner.train.trainer import Trainer

# Passes over the few texts, texts of a batch, and the peak learning rate.
EPOCHS, BATCH, RATE = 20, 16, 5e-5
# Flags of a choice among evaluations, of which it has none.
BEST = ("load_best_model_at_end", "metric_for_best_model", "greater_is_better")


def tune_encoder(
    run: Run[ClassifyArguments], objective: Classification, examples: Examples, model: PreTrainedModel
) -> None:
    """With `--strategy fewshot`, train the backbone so that texts of one class are close, else nothing. It can be
    killed and resumed like any run. Raises as `Trainer.train` does."""
    if run.args.strategy != "fewshot":
        return
    changed: dict[str, Any] = {
        **{"num_train_epochs": EPOCHS, "learning_rate": RATE, "per_device_train_batch_size": BATCH, "max_steps": -1},
        **{"eval_strategy": "no", "eval_on_start": False, "early_stopping_patience": None, "save_strategy": "epoch"},
        # A checkpoint that is named is the head's.
        **{"push_to_hub": False, "resume_from_checkpoint": "true" if resumes(run.args) else "false"},
    }
    args = replace(run.args, output_dir=str(run.folder / "encoder"), **changed)
    args.extra = {name: value for name, value in run.args.extra.items() if name not in BEST}
    with PartialState().main_process_first():
        if PartialState().is_main_process:
            prepare_folder(args)
    stage = replace(run, args=args, training=resolved(args), checkpoint=find_checkpoint(args))
    say(f"The encoder learns from {len(examples.train):,} texts which are of one class.")
    backbone = model.base_model
    backbone.requires_grad_(True)
    trainer = Trainer(backbone, stage, ClassContrast(objective), examples)
    trainer.train(resume_from_checkpoint=stage.checkpoint)
    trainer.accelerator.free_memory()
    freeze(model)
