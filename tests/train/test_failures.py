"""When something breaks in the middle of a run: one message, exit code 2 (or on it goes), and nothing saved is lost."""

import json
import os
import subprocess
import sys

import pytest
import torch

from tests.processes import ROOT, run_python
from tests.recipes import NANO, SMALL, run_recipe
from tuner.train.checkpoint import defect, last_checkpoint

pytestmark = pytest.mark.slow

LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_full_disk_ends_the_run_and_keeps_the_previous_checkpoint(chats, tmp_path):
    """The limit on a file's size stands for the disk's end: the optimizer's file of the second save hits it."""
    folder = tmp_path / "full"
    flags = ["--dataset_name", chats, *SMALL, *NANO, "--resume_from_checkpoint", "true", "--output_dir", folder]
    done = run_recipe(*flags, kill_at="step:6")
    before = last_checkpoint(folder)
    assert done.returncode == -9 and before.name == "checkpoint-4"
    size = (before / "model.safetensors").stat().st_size

    limited = ("-c", LIMITED.format(size=size - 4096), ROOT / "recipes" / "sft.py")
    failed = run_python(*limited, *flags)
    assert failed.returncode == 2, failed.stderr[-2000:]
    assert "checkpoint-8 could not be saved" in failed.stderr and str(before) in failed.stderr
    assert "Traceback" not in failed.stderr
    assert defect(before) is None and last_checkpoint(folder) == before
    assert not (folder / ".saving").exists(), "nothing half-written stays"
    assert run_recipe(*flags).returncode == 0, "with room again the same command continues"


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounting a small disk needs root on Linux")
def test_a_really_full_disk(chats, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2200k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        flags = ["--dataset_name", chats, *SMALL, *NANO, "--output_dir", disk / "run"]  # a checkpoint, 1.4 MB, fits
        failed = run_recipe(*flags)
        assert failed.returncode == 2 and "No space left" in failed.stderr, failed.stderr[-2000:]
        assert "Traceback" not in failed.stderr
        assert last_checkpoint(disk / "run").name == "checkpoint-4"
    finally:
        subprocess.run(["umount", str(disk)], check=True)


POISON = """
import runpy, sys
import torch
import tuner.train.trainer as trainer
step = trainer.Trainer.training_step
def poisoned(self, model, inputs, num_items_in_batch=None):
    if {condition}:
        next(model.parameters()).data.view(-1)[0] = {value}
    return step(self, model, inputs, num_items_in_batch)
trainer.Trainer.training_step = poisoned
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("value", ["float('nan')", "float('inf')"])
def test_nan_stops_before_the_step_and_names_the_rows(chats, tmp_path, value):
    """A weight goes bad in the sixth step of twelve: the checkpoint of step 4 stays good, and the batch is named."""
    poisoned = ("-c", POISON.format(condition="self.state.global_step == 5", value=value), ROOT / "recipes" / "sft.py")
    failed = run_python(*poisoned, "--dataset_name", chats, *SMALL, *NANO, "--output_dir", tmp_path / "run")
    assert failed.returncode == 2, failed.stderr[-2000:]
    assert "at step 6, before the optimizer stepped" in failed.stderr and "training rows" in failed.stderr
    assert "Traceback" not in failed.stderr
    saved = last_checkpoint(tmp_path / "run")
    assert saved.name == "checkpoint-4"
    history = json.loads((saved / "trainer_state.json").read_text())["log_history"]
    assert all(torch.isfinite(torch.tensor(entry["loss"])) for entry in history if "loss" in entry)


def test_a_tracker_that_fails_does_not_end_the_run(chats, tmp_path):
    """TensorBoard's folder is a file, so its writer cannot open it."""
    blocked = tmp_path / "block_attention"
    blocked.write_text("not a folder")
    done = run_recipe(
        "--dataset_name",
        chats,
        *SMALL,
        *NANO,
        "--max_steps",
        "2",
        "--report_to",
        "tensorboard",
        "--output_dir",
        tmp_path / "run",
        TENSORBOARD_LOGGING_DIR=str(blocked),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "TensorBoardCallback failed and is switched off" in done.stderr


def test_tensorboard_gets_the_losses(chats, tmp_path):
    done = run_recipe(
        "--dataset_name",
        chats,
        *SMALL,
        *NANO,
        "--report_to",
        "tensorboard",
        "--output_dir",
        tmp_path / "run",
        TENSORBOARD_LOGGING_DIR=str(tmp_path / "board"),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path / "board"))
    board.Reload()
    assert len(board.Scalars("train/loss")) == 4
