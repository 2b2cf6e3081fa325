"""The group of a run's processes: it is opened once, with the flags that are for it."""

from __future__ import annotations

from tests.processes import run_together
from tests.recipes import run_recipe

ASKED = """
import sys
import torch
from tuner.config.arguments import RecipeArguments, parse_arguments
from tuner.train.run import _processes
args = parse_arguments(RecipeArguments, sys.argv[1:])
count = _processes(args, on_cpu=True)
group = torch.distributed.distributed_c10d._get_default_group()
print(count, group._get_backend(torch.device("cpu")).options._timeout.total_seconds())
"""


def test_it_waits_as_long_as_it_was_told():
    done = run_together(2, "-c", ASKED, "--output_dir", "unused", "--ddp_timeout", "77")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == ["2 77.0", "2 77.0"]


def test_one_process_has_no_group(tmp_path):
    done = run_recipe("--dataset_name", "builtin:sums", "--output_dir", tmp_path / "run", "--ddp_backend", "gloo")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: --ddp_backend gloo: ")
    assert "Traceback" not in done.stderr
