"""Killed at any point and started again by the same command, a run ends in the same bits.

Dropout is on, two micro-batches make a step, checkpoints (every 4 steps) fall between log lines (every 3) and an
evaluation (every 6) lies in between: whatever could be restored at the wrong moment would show.
"""

import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.recipes import NANO, ROOT, SMALL, assert_same_run, environment, run_recipe, start_recipe
from tuner.train.checkpoint import defect, last_checkpoint

pytestmark = pytest.mark.slow

FLAGS = [
    *SMALL,
    *NANO,
    "--dropout",
    "0.1",
    "--gradient_accumulation_steps",
    "2",
    "--per_device_train_batch_size",
    "2",
    "--num_train_epochs",
    "3",
    "--max_steps",
    "-1",
    "--resume_from_checkpoint",
    "true",
]
# One epoch is 7 steps: kills lie in the first, second and third one, and inside saves of each file.
KILLS = [
    "step:1",
    "step:3",
    "open:model.safetensors",
    "open:optimizer.pt",
    "open:trainer_state.json",
    "open:manifest.json",
    "rename",
    "step:6",
    "rename@1",
    "step:10",
    "open:scheduler.pt@1",
    "rotate@1",
    "step:15",
]


@pytest.fixture(scope="module")
def chats(chats, tmp_path_factory):
    """Half of the conversations."""
    path = tmp_path_factory.mktemp("half") / "chats.jsonl"
    path.write_text("".join(chats.read_text(encoding="utf-8").splitlines(keepends=True)[:60]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def uninterrupted(chats, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    done = run_recipe("--dataset_name", chats, *FLAGS, "--output_dir", folder)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "No checkpoint" in done.stdout, "--resume_from_checkpoint true starts afresh where there is none"
    return folder


def test_a_chain_of_kills_ends_in_the_same_bits(uninterrupted, chats, tmp_path):
    folder = tmp_path / "killed"
    flags = ["--dataset_name", chats, *FLAGS, "--output_dir", folder]
    killed = []
    for point in KILLS:
        done = run_recipe(*flags, kill_at=point)
        if done.returncode == -signal.SIGKILL:
            killed.append(point)
        for checkpoint in folder.glob("checkpoint-*"):
            assert defect(checkpoint) is None, f"after {point}"
    assert len(killed) >= 10, killed
    assert run_recipe(*flags).returncode == 0
    assert_same_run(uninterrupted, folder)


def test_a_broken_checkpoint_is_skipped_and_the_previous_one_used(uninterrupted, chats, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(uninterrupted, folder)
    newest = last_checkpoint(folder)
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    done = run_recipe("--dataset_name", chats, *FLAGS, "--output_dir", folder)
    assert done.returncode == 0
    assert f"{newest.name} is not a whole checkpoint: model.safetensors has" in done.stderr
    assert_same_run(uninterrupted, folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_says_where_and_exits(uninterrupted, chats, tmp_path, number):
    folder = tmp_path / "stopped"
    flags = ["--dataset_name", str(chats), *FLAGS, "--output_dir", str(folder)]
    run = start_recipe(*flags)
    deadline = time.time() + 120
    while not list(folder.glob("checkpoint-*")) and time.time() < deadline:
        time.sleep(0.01)
    run.send_signal(number)
    done = run.wait(timeout=120)
    errors, saved = done.stderr, last_checkpoint(folder)
    assert done.returncode == 128 + number, errors[-2000:]
    assert f"Saved {saved}" in errors and "--resume_from_checkpoint true" in errors and "Traceback" not in errors
    assert run_recipe(*flags).returncode == 0
    assert_same_run(uninterrupted, folder)


def test_the_launchers_end_is_the_runs_end(chats, tmp_path):
    """`accelerate launch` passes no SIGTERM on: the run sees that it is gone, saves and stops."""
    folder = tmp_path / "orphaned"
    flags = ["--dataset_name", str(chats), *FLAGS, "--num_train_epochs", "600", "--output_dir", str(folder)]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", str(ROOT / "recipes" / "sft.py"), *flags]
    log = tmp_path / "log"
    with log.open("w") as stream:
        launcher = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=stream, stderr=subprocess.STDOUT)
        deadline = time.time() + 400
        while not list(folder.glob("checkpoint-*")) and launcher.poll() is None and time.time() < deadline:
            time.sleep(0.05)
        assert launcher.poll() is None, log.read_text()[-2000:]
        launcher.terminate()
        launcher.wait(timeout=30)
        while "Stopped by a signal" not in log.read_text() and time.time() < deadline:
            time.sleep(0.1)
    assert "Stopped by a signal" in log.read_text()
    assert last_checkpoint(folder) is not None


def test_a_finished_run_is_not_trained_further(uninterrupted, chats, tmp_path):
    folder = tmp_path / "again"
    shutil.copytree(uninterrupted, folder)
    done = run_recipe("--dataset_name", chats, *FLAGS, "--output_dir", folder)
    assert done.returncode == 0 and "nothing is left to train" in done.stdout
    assert_same_run(uninterrupted, folder)
