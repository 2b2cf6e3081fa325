"""A run and its folder: whose it is, where it stands, and what is written there before the first step.

`run.yaml` holds the resolved arguments, so that `--config <folder>/run.yaml` is the same run again. A folder is one
run's: another run is refused, and so is continuing a run with another model or other data under the same name.
"""

from __future__ import annotations

import shutil
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState
from transformers import PreTrainedModel, TrainingArguments, set_seed
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from tuner.config.arguments import DataArguments, ModelArguments, RecipeArguments
from tuner.errors import ArgumentError, CheckpointError, nearest
from tuner.hardware import device_type, has_fast_bf16, use_all_cores
from tuner.ops.block_attention import BLOCK_ATTENTION
from tuner.train.checkpoint import defect, discard_staging, last_checkpoint, list_checkpoints

# Arguments that may differ when a run is continued: none of them changes a weight.
FREE_TO_CHANGE = {
    *("resume_from_checkpoint", "overwrite_output_dir", "output_dir", "dry_run", "dataset_num_proc"),
    *("logging_steps", "report_to", "push_to_hub", "hub_model_id"),
    *("eval_strategy", "eval_steps", "eval_on_start", "per_device_eval_batch_size"),
    *("save_strategy", "save_steps", "save_total_limit", "max_minutes"),
}
# Those of recipes that make it another run, beside all that name data and model.
FIXED = {"objective", "train_tokenizer", "clean", "streaming", "shuffle_buffer"}

# Attention that skips what another sequence of the row holds, instead of masking it.
JOINING = (BLOCK_ATTENTION, "flash_attention_2", "flash_attention_3")


@dataclass
class Run:
    """What `open_run` found and decided.

    Attributes:
        args: the recipe's arguments.
        training: transformers' arguments, resolved (mixed precision among them).
        checkpoint: the whole checkpoint to continue from, or None to start afresh.
    """

    args: RecipeArguments
    training: TrainingArguments
    checkpoint: Path | None

    @property
    def folder(self) -> Path:
        return Path(self.args.output_dir)


def open_run(args: RecipeArguments) -> Run:
    """Check the output folder, find the checkpoint to continue from, and write `run.yaml` (not in a dry run).

    Raises:
        CheckpointError: the folder holds another run, or the named checkpoint is not whole.
        ArgumentError: arguments that transformers refuses.
    """
    use_all_cores()
    on_cpu = args.use_cpu or device_type() == "cpu"
    half = args.dtype == "bfloat16"  # then there is nothing to cast: products are in bfloat16 as they stand
    if half and args.bf16:
        raise ArgumentError("--dtype bfloat16 needs no mixed precision: leave --bf16 out.")
    if half and not args.optim.startswith("adamw_torch"):
        raise ArgumentError(f"--dtype bfloat16 is trained with AdamW, not with --optim {args.optim}.")
    bf16 = (
        not half and has_fast_bf16("cpu" if on_cpu else None) and not args.extra.get("fp16")
        if args.bf16 is None
        else args.bf16
    )
    training = args.to_training_arguments(
        bf16=bf16,
        use_cpu=on_cpu,
        # A run with resume_from_checkpoint as a word is resolved here, not by the Trainer.
        resume_from_checkpoint=None,
        report_to=_working_trackers(args.report_to),
        logging_nan_inf_filter=False,
        # One push of the finished model, not one of every half-trained state.
        hub_strategy=args.extra.get("hub_strategy", "end"),
        remove_unused_columns=False,
        prediction_loss_only=True,
        disable_tqdm=args.extra.get("disable_tqdm"),
    )
    set_seed(args.seed)
    chosen = " (the hardware is fast in it; --bf16 false turns it off)" if bf16 and args.bf16 is None else ""
    say(
        "Weights in bfloat16, their next bits in the optimizer."
        if half
        else f"Mixed precision: {'bf16' if bf16 else 'off'} on {training.device.type}{chosen}"
    )
    run = Run(args, training, checkpoint=None)
    _check_folder(run)
    run.checkpoint = _checkpoint(run)
    if not args.dry_run:
        with PartialState().main_process_first():
            if PartialState().is_main_process:
                _prepare_folder(run)
    return run


def _working_trackers(names: list[str]) -> list[str]:
    """The trackers that can be built here. One that cannot is no reason not to train.

    Raises:
        ArgumentError: a tracker that transformers does not know.
    """
    working: list[str] = []
    for name in names:
        if name in ("none", "all"):
            working += get_available_reporting_integrations() if name == "all" else []
        elif name not in INTEGRATION_TO_CALLBACK:
            raise ArgumentError(f"--report_to: unknown tracker {name!r}.{nearest(name, INTEGRATION_TO_CALLBACK)}")
        else:
            try:
                INTEGRATION_TO_CALLBACK[name]()
                working.append(name)
            except Exception as error:  # each tracker has its own way to say that it is not installed
                warnings.warn(f"--report_to {name} is left out: {' '.join(str(error).split())}", stacklevel=2)
    return working


def say(message: str) -> None:
    """Print on the main process."""
    if PartialState().is_main_process:
        print(message, flush=True)


def _resumes(args: RecipeArguments) -> bool:
    return args.resume_from_checkpoint.lower() not in ("false", "no", "0", "")


def _check_folder(run: Run) -> None:
    args, folder = run.args, run.folder
    earlier = folder / "run.yaml"
    if args.overwrite_output_dir or not earlier.is_file():
        return
    if not _resumes(args):
        if list_checkpoints(folder) or (folder / "metrics.json").exists():
            raise CheckpointError(
                f"{folder} already holds a run. Continue it with --resume_from_checkpoint true, discard it with "
                "--overwrite_output_dir true, or choose another --output_dir."
            )
        return
    before = yaml.safe_load(earlier.read_text(encoding="utf-8")) or {}
    now = _plain(args)
    changed = {k for k in before.keys() | now.keys() if before.get(k) != now.get(k)} - FREE_TO_CHANGE
    described = [f"  {name}: {before.get(name)} there, {now.get(name)} here" for name in sorted(changed)]
    fixed = FIXED | {*DataArguments.__annotations__, *ModelArguments.__annotations__}
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


def _checkpoint(run: Run) -> Path | None:
    args = run.args
    if not _resumes(args) or args.overwrite_output_dir:
        return None
    if args.resume_from_checkpoint.lower() in ("true", "yes", "1"):
        found = last_checkpoint(run.folder)
        if found is None:
            say(f"No checkpoint in {run.folder} yet: starting at step 0.")
        else:
            say(f"Continuing from {found}.")
        return found
    named = Path(args.resume_from_checkpoint)
    if not named.is_dir():
        raise CheckpointError(f"--resume_from_checkpoint {named}: no such folder.")
    reason = defect(named)
    if reason is not None:
        raise CheckpointError(f"--resume_from_checkpoint {named} is not a whole checkpoint: {reason}.")
    return named


def _prepare_folder(run: Run) -> None:
    folder = run.folder
    try:
        if run.args.overwrite_output_dir and (folder / "run.yaml").is_file():
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        discard_staging(folder)
        text = yaml.safe_dump(_plain(run.args), sort_keys=True, allow_unicode=True)
        recipe = Path(sys.argv[0])
        shown = f"{recipe.parent.name}/{recipe.name}"
        (folder / "run.yaml").write_text(
            f"# accelerate launch {shown} --config {folder}/run.yaml\n{text}", encoding="utf-8"
        )
    except OSError as error:
        raise CheckpointError(f"--output_dir {folder} cannot be written: {error.strerror}.") from error


def _plain(args: RecipeArguments) -> dict[str, Any]:
    """The arguments as YAML gives them back; what is None is left out."""
    return {k: v for k, v in yaml.safe_load(yaml.safe_dump(args.values())).items() if v is not None}


def product_dtype(training: TrainingArguments, model: PreTrainedModel) -> torch.dtype:
    """The dtype that a run's products are in."""
    return torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else model.dtype


def joins_rows(run: Run, model: PreTrainedModel) -> bool:
    """Whether a batch's sequences become one row: as asked, or where attention tells them apart at no cost.

    Not by default on several accelerators in one process, which take a share of the rows each; nor where the model is
    compiled, for every length anew.
    """
    if run.args.padding_free is not None:
        return run.args.padding_free
    joining = model.config._attn_implementation in JOINING
    return joining and run.training.n_gpu <= 1 and not run.args.torch_compile
