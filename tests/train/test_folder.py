"""A run's folder: no secret in it, one run at a time, and no continuing of what cannot be continued."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import yaml

from tests.processes import environment
from tuner.config.arguments import RecipeArguments, parse_arguments
from tuner.errors import CheckpointError
from tuner.train.run import locked, prepare_folder

SECRET = "hf_abcdefgh"


def test_a_secret_is_neither_written_nor_shown(tmp_path):
    args = parse_arguments(RecipeArguments, ["--output_dir", str(tmp_path / "run"), "--hub_token", SECRET])
    prepare_folder(args)
    written = [path.read_text() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert written and not any(SECRET in text for text in written)
    assert SECRET not in str(args.shown()) and args.shown()["hub_token"] == "***"


def test_the_home_directory_in_yaml_is_one_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.yaml").write_text("output_dir: ~/runs/x\n")
    args = parse_arguments(RecipeArguments, ["--config", str(tmp_path / "a.yaml")])
    prepare_folder(args)
    assert args.to_training_arguments(use_cpu=True).output_dir == args.output_dir == str(tmp_path / "runs" / "x")
    assert yaml.safe_load((tmp_path / "runs" / "x" / "run.yaml").read_text())["output_dir"] == args.output_dir


@pytest.mark.slow
def test_one_run_at_a_time(tmp_path):
    """Held by a process of its own, which is named; free again as soon as that one is killed."""
    program = f"""
import time
from pathlib import Path
from tuner.train.run import locked
with locked(Path({str(tmp_path)!r})):
    print("held", flush=True)
    time.sleep(100)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment()) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(CheckpointError, match=rf"process {holder.pid}\) is training in {tmp_path}"):
            prepare_folder(RecipeArguments(output_dir=str(tmp_path), overwrite_output_dir=True))
        holder.kill()
        holder.wait()
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())
