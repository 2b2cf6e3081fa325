"""A run's folder: whose it is, where the run stands, and what is written there before the first step.

`run.yaml` holds the resolved arguments, so that `--config <folder>/run.yaml` is the same run again. A folder is one
run's: another run is refused, and so is continuing a run with another model or other data under the same name.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from tuner.config.arguments import DataArguments, ModelArguments, RecipeArguments
from tuner.errors import CheckpointError
from tuner.train.checkpoint import defect, discard_staging, last_checkpoint, list_checkpoints

# Arguments that may differ when a run is continued: none of them changes a weight.
FREE_TO_CHANGE = {
    *("resume_from_checkpoint", "overwrite_output_dir", "output_dir", "dry_run", "dataset_num_proc"),
    *("logging_steps", "report_to", "push_to_hub", "hub_model_id"),
    *("eval_strategy", "eval_steps", "eval_on_start", "per_device_eval_batch_size"),
    *("save_strategy", "save_steps", "save_total_limit", "max_minutes"),
}
# Those of recipes that make it another run, beside all that name data and model.
FIXED = {"objective", "train_tokenizer", "clean", "streaming", "shuffle_buffer", "loss_type"}
LOCK = ".lock"


def resumes(args: RecipeArguments) -> bool:
    """Whether a run may be continued."""
    return args.resume_from_checkpoint.lower() not in ("false", "no", "0", "")


def check_folder(args: RecipeArguments) -> None:
    """Refuse a folder that holds another run.

    Raises:
        CheckpointError: it does.
    """
    folder = Path(args.output_dir)
    earlier = folder / "run.yaml"
    if args.overwrite_output_dir or not earlier.is_file():
        return
    if not resumes(args):
        if list_checkpoints(folder) or (folder / "metrics.json").exists():
            raise CheckpointError(
                f"{folder} already holds a run. Continue it with --resume_from_checkpoint true, discard it with "
                "--overwrite_output_dir true, or choose another --output_dir."
            )
        return
    before = yaml.safe_load(earlier.read_text(encoding="utf-8")) or {}
    now = plain(args)
    changed = {k for k in before.keys() | now.keys() if before.get(k) != now.get(k)} - FREE_TO_CHANGE
    described = [f"  {name}: {before.get(name)} there, {now.get(name)} here" for name in sorted(changed)]
    fixed = FIXED | {f.name for kind in (DataArguments, ModelArguments) for f in fields(kind)}
    if changed & fixed:
        raise CheckpointError(
            f"{folder} holds another run, which cannot be continued with these arguments:\n"
            + "\n".join(described)
            + "\nChoose another --output_dir, or discard that run with --overwrite_output_dir true."
        )
    if changed:
        warnings.warn(
            f"{folder} is continued with other arguments; the result will not equal an uninterrupted run's:\n"
            + "\n".join(described),
            stacklevel=2,
        )


def find_checkpoint(args: RecipeArguments) -> tuple[Path | None, str]:
    """The whole checkpoint that a run continues from, or None, and what to say of it.

    Raises:
        CheckpointError: the named checkpoint is not whole, or holds a model alone.
    """
    folder = Path(args.output_dir)
    if not resumes(args) or args.overwrite_output_dir:
        return None, ""
    if args.resume_from_checkpoint.lower() in ("true", "yes", "1"):
        found = last_checkpoint(folder)
        if found is None:
            return None, f"No checkpoint in {folder} yet: starting at step 0."
    else:
        found = Path(args.resume_from_checkpoint)
        if not found.is_dir():
            raise CheckpointError(f"--resume_from_checkpoint {found}: no such folder.")
        reason = defect(found)
        if reason is not None:
            raise CheckpointError(f"--resume_from_checkpoint {found} is not a whole checkpoint: {reason}.")
    if not any(path.name.startswith(("optimizer", "global_step")) for path in found.iterdir()):
        raise CheckpointError(
            f"{found} holds a model without the optimizer's state (--save_only_model true), so the run cannot be "
            f"continued. Train on from it as a model: --model_name_or_path {found} and another --output_dir."
        )
    return found, f"Continuing from {found}."


def prepare_folder(args: RecipeArguments) -> None:
    """Make the folder and write `run.yaml`.

    Raises:
        CheckpointError: the folder cannot be written, or another process trains in it.
    """
    folder = Path(args.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            if args.overwrite_output_dir and (folder / "run.yaml").is_file():
                for path in folder.iterdir():
                    if path.name != LOCK:
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
            discard_staging(folder)
            text = yaml.safe_dump(plain(args), sort_keys=True, allow_unicode=True)
            recipe = Path(sys.argv[0])
            shown = f"{recipe.parent.name}/{recipe.name}"
            (folder / "run.yaml").write_text(
                f"# accelerate launch {shown} --config {folder}/run.yaml\n{text}", encoding="utf-8"
            )
    except OSError as error:
        raise CheckpointError(f"--output_dir {folder} cannot be written: {error.strerror}.") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for one process. The lock goes with the process, however it ends.

    Raises:
        CheckpointError: another process holds it.
    """
    with (folder / LOCK).open("a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise CheckpointError(
                f"Another run (process {file.read().strip() or 'unknown'}) is training in {folder}: wait for it, end "
                "it, or choose another --output_dir."
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def plain(args: RecipeArguments) -> dict[str, Any]:
    """The arguments as YAML gives them back; what is None is left out."""
    return {k: v for k, v in yaml.safe_load(yaml.safe_dump(args.saved())).items() if v is not None}
