"""Checkpoints of a PPO run: everything that the next update is a function of, whole or absent.

The policy lies in a checkpoint as a model or an adapter that loads like any other. Random numbers are functions of
(seed, episode) and (seed, update, epoch), and the place in the prompts of the update's number: neither is in it.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerState
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import rotate_checkpoints

from tuner.errors import CheckpointError, one_line
from tuner.rl.losses import KLController, RunningScale
from tuner.train.checkpoint import STAGING, commit, discard_staging, reporting_failures
from tuner.train.run import say

VALUE, OPTIMIZER, SCHEDULER = "value.safetensors", "optimizer.pt", "scheduler.pt"
PROGRESS, STATE = "progress.json", "trainer_state.json"


def save_policy(trainer: Any, folder: Path) -> None:
    """The policy alone, with its tokenizer: what outlives the training."""
    trainer.actor.policy.save_pretrained(folder)
    trainer.processing_class.save_pretrained(folder)


def save_checkpoint(trainer: Any) -> None:
    """Write `checkpoint-<update>` into the run's folder: the main process alone, while the others wait.

    Raises:
        CheckpointError: it could not be written; what was saved before is still there.
    """
    if trainer.args.should_save:
        folder, name = Path(str(trainer.args.output_dir)), f"checkpoint-{trainer.state.global_step}"
        staged = folder / STAGING / name
        discard_staging(folder)
        with reporting_failures(folder, name):
            staged.mkdir(parents=True)
            save_policy(trainer, staged)
            if trainer.actor.value is not None:
                weights = {n: p.detach().contiguous() for n, p in trainer.actor.value.named_parameters()}
                save_file(weights, staged / VALUE)
            torch.save(trainer.optimizer.state_dict(), staged / OPTIMIZER)
            torch.save(trainer.lr_scheduler.state_dict(), staged / SCHEDULER)
            every = [*trainer.callback_handler.callbacks, trainer.control]
            known = TrainerState(stateful_callbacks=[each for each in every if isinstance(each, ExportableState)])
            trainer.state.stateful_callbacks = known.stateful_callbacks
            trainer.state.save_to_json(str(staged / STATE))
            progress = {"kl": asdict(trainer.kl), "scale": asdict(trainer.scale)}
            progress |= {"first": trainer.first_evaluation, "unlogged": trainer.unlogged}
            (staged / PROGRESS).write_text(json.dumps(progress), encoding="utf-8")
            commit(staged, folder / name)
            discard_staging(folder)
            rotate_checkpoints(str(folder), trainer.args.save_total_limit, None)
    trainer.accelerator.wait_for_everyone()


def load_checkpoint(trainer: Any, checkpoint: Path) -> None:
    """Put back what `save_checkpoint` wrote; a CheckpointError where it is another kind of run's."""
    if not (checkpoint / OPTIMIZER).is_file() or not (checkpoint / PROGRESS).is_file():
        raise CheckpointError(f"{checkpoint} is no checkpoint of PPO: it has no {OPTIMIZER} or {PROGRESS}.")
    trainer._load_from_checkpoint(str(checkpoint), trainer.actor.policy)
    try:
        if trainer.actor.value is not None:
            weights = load_file(checkpoint / VALUE)
            with torch.no_grad():
                for name, parameter in trainer.actor.value.named_parameters():
                    parameter.copy_(weights[name])
        for part, name in ((trainer.optimizer, OPTIMIZER), (trainer.lr_scheduler, SCHEDULER)):
            part.load_state_dict(torch.load(checkpoint / name, map_location="cpu", weights_only=True))
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{checkpoint} was made with another --advantage, --value or --optim, and cannot be continued with these: "
            f"{one_line(error)}"
        ) from error
    trainer.state = TrainerState.load_from_json(str(checkpoint / STATE))
    trainer._load_callback_state()  # --restore_callback_states_from_checkpoint
    progress = json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8"))
    trainer.kl, trainer.scale = KLController(**progress["kl"]), RunningScale(**progress["scale"])
    trainer.first_evaluation, trainer.unlogged = progress["first"], progress.get("unlogged", [])
    say(f"Continuing after update {trainer.state.global_step:,}.")
