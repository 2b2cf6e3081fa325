"""A forked process is the one that a new interpreter would have been."""

from __future__ import annotations

import os
import subprocess
import time

import pytest

from tests.processes import Forked, environment, run_fresh, run_python, run_together, server
from tests.recipes import NANO, SMALL, assert_same_run, losses_of, metrics_of, run_recipe

SHOW = "import os, sys; print(sys.argv, os.getcwd(), sys.stdin.read(), os.environ.get('RANK'), __name__)"


@pytest.mark.slow
def test_a_forked_run_is_a_fresh_one(chats, tmp_path):
    flags = ["--dataset_name", chats, *SMALL, *NANO, "--dropout", "0.1", "--output_dir"]
    for name in ("forked", "fresh"):
        done = run_recipe(*flags, tmp_path / name, fresh=name == "fresh")
        assert done.returncode == 0, done.stderr[-2000:]
    assert_same_run(tmp_path / "forked", tmp_path / "fresh")
    assert len(losses_of(tmp_path / "forked")) == 4 and losses_of(tmp_path / "forked") == losses_of(tmp_path / "fresh")
    assert metrics_of(tmp_path / "forked").keys() == metrics_of(tmp_path / "fresh").keys()


@pytest.mark.slow
def test_a_forked_run_is_killed_where_it_stands(chats, tmp_path):
    flags = ["--dataset_name", chats, *SMALL, *NANO, "--output_dir", tmp_path / "run"]
    done = run_recipe(*flags, kill_at="open:optimizer.pt")
    assert done.returncode == -9
    left = {path.name for path in (tmp_path / "run" / ".saving").rglob("*")}
    assert {"checkpoint-4", "config.json"} <= left, "nothing is cleaned up"
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    code = "import atexit, os; atexit.register(print, 'at exit'); print('begun', flush=True); "
    assert run_python("-c", code).stdout == "begun\nat exit\n"
    done = run_python("-c", code + "os.kill(os.getpid(), 9)")
    assert (done.returncode, done.stdout) == (-9, "begun\n")


@pytest.mark.parametrize(
    ("code", "expected"),
    [("pass", 0), ("raise SystemExit", 0), ("raise SystemExit(3)", 3), ("raise SystemExit('no')", 1), ("1 / 0", 1)],
)
def test_exit_codes_and_what_is_said(code, expected):
    forked, fresh = run_python("-c", code), run_fresh("-c", code)
    assert forked.returncode == fresh.returncode == expected
    assert forked.stderr.splitlines()[-1:] == fresh.stderr.splitlines()[-1:]


def test_a_process_sees_what_a_fresh_one_sees(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SHOW)
    for argv in (("-c", SHOW, "a b"), (script, "a b")):
        env = {"RANK": "3"}
        assert run_python(*argv, stdin="said", **env).stdout == run_fresh(*argv, stdin="said", **env).stdout
    assert run_python("-c", SHOW).stdout == run_fresh("-c", SHOW).stdout, "what one was given the next one has not"
    seen = "import os; import tuner.train; print(sorted(os.environ.items()))"
    assert run_python("-c", seen).stdout == run_fresh("-c", seen).stdout
    threads = "import torch; print(torch.get_num_threads())"
    assert run_python("-c", threads, OMP_NUM_THREADS="2").stdout == "2\n"


def test_what_is_read_at_the_start_takes_a_fresh_process(monkeypatch):
    assert server().takes(environment()) and server().takes(environment(RANK="1", OMP_NUM_THREADS="7"))
    assert not server().takes(environment(HF_DATASETS_CACHE="elsewhere"))
    argv = ("-c", "print(hash('a'))")
    assert run_python(*argv, PYTHONHASHSEED="7").stdout == run_fresh(*argv, PYTHONHASHSEED="7").stdout
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    assert not server().takes(environment())


def test_time_runs_out():
    """The process and what it started are killed, the server is not."""
    other = Forked(["-c", "input(); print('well')"], environment(), stdin="\n")
    code = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
    start = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired) as stop:
        run_python("-c", code, timeout=1)
    assert time.monotonic() - start < 20
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.kill(int(stop.value.output), 0)
            time.sleep(0.05)
    assert other.wait(10).stdout == "well\n"


def test_one_that_fails_ends_the_others():
    code = "import os, sys, time; print(os.environ['RANK'], flush=True); os.environ['RANK'] == '1' and sys.exit(5); "
    start = time.monotonic()
    done = run_together(2, "-c", code + "time.sleep(60)")
    assert done.returncode == 5 and time.monotonic() - start < 20
    assert done.stdout.split()[-1] == "1"
