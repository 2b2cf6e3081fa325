"""Errors: what the user can mend is one message and an exit code; a defect of ours keeps its traceback."""

import pickle
import signal
import subprocess
import sys

import pytest

from tests.recipes import environment
from tuner import errors

MENDABLE = ["TunerError", "ArgumentError", "DataError", "ModelError", "CheckpointError", "NonFiniteError"]


def outcome(body: str, **env: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a program whose `main` has this body."""
    program = f"from tuner import errors\ndef main():\n    print('begun')\n    {body}\nerrors.run(main)\nprint('after')"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(**env), capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout, done.stderr


def test_success_is_silent():
    assert outcome("pass") == (0, "begun\nafter\n", "")


@pytest.mark.parametrize("kind", MENDABLE)
def test_what_the_user_can_mend(kind):
    assert outcome(f"raise errors.{kind}('rows.jsonl, line 3: no.\\nDo this.')") == (
        2,
        "begun\n",
        "error: rows.jsonl, line 3: no.\nDo this.\n",
    )


def test_every_kind_is_covered():
    found = {n for n, v in vars(errors).items() if isinstance(v, type) and issubclass(v, errors.TunerError)}
    assert found == {*MENDABLE, "GateError", "Interrupted"}


def test_a_gate_that_is_not_reached():
    assert outcome("raise errors.GateError('accuracy 0.8')") == (1, "begun\n", "error: accuracy 0.8\n")


def test_the_cause_is_not_shown():
    code, _, shown = outcome(
        "exec('try: 1 / 0\\nexcept ZeroDivisionError as e: raise errors.DataError(str(1)) from e')"
    )
    assert (code, shown) == (2, "error: 1\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_stopped_by_a_signal_after_saving(number):
    assert outcome(f"raise errors.Interrupted('Saved. Go on with ...', {int(number)})") == (
        128 + number,
        "begun\n",
        "Saved. Go on with ...\n",
    )


def test_interrupted_before_there_was_anything_to_save():
    # A process started in the background of a shell inherits that Ctrl-C is ignored: whoever runs the tests may be one.
    heed = "import signal, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    program = "from tuner import errors\nerrors.run(lambda: (print('begun', flush=True), time.sleep(60)))"
    with subprocess.Popen(
        [sys.executable, "-c", heed + program],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        _, shown = process.communicate(timeout=30)
    assert (process.returncode, shown) == (130, "Interrupted before there was anything to save.\n")


@pytest.mark.parametrize(
    ("body", "last"),
    [
        ("raise ValueError('ours')", "ValueError: ours"),
        ("assert 1 == 2, 'ours'", "AssertionError: ours"),
        ("{}['ours']", "KeyError: 'ours'"),
        ("main()", "RecursionError: maximum recursion depth exceeded"),
        ("open('/nowhere')", "FileNotFoundError: [Errno 2] No such file or directory: '/nowhere'"),
    ],
)
def test_a_defect_keeps_its_traceback(body, last):
    code, _, shown = outcome(body)
    assert code == 1
    assert shown.startswith("Traceback (most recent call last):\n")
    assert shown.rstrip().split("\n")[-1].startswith(last)
    assert "in main\n" in shown


@pytest.mark.parametrize("code", [0, 3])
def test_an_exit_is_an_exit(code):
    assert outcome(f"raise SystemExit({code})") == (code, "begun\n", "")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("raise errors.DataError('no')", 2),
        ("raise errors.Interrupted('no', 15)", 143),
        ("raise KeyboardInterrupt", 130),
    ],
)
def test_one_process_speaks_for_all(body, code):
    assert outcome(body, LOCAL_RANK="1") == (code, "begun\n", "")
    assert outcome(body, LOCAL_RANK="0")[2] != ""


@pytest.mark.parametrize("text", ["Connection closed by peer [127.0.0.1]:1", "failed to recv, got 0 bytes", "ours"])
def test_a_process_whose_peer_has_ended_is_silent(text):
    """The peer says why; any other defect keeps its traceback, and so does every one where there is no peer."""
    raises = f"raise RuntimeError({text!r})"
    code, _, shown = outcome(raises, WORLD_SIZE="2", LOCAL_RANK="1")
    assert (code, shown) == (2, "") if text != "ours" else shown.startswith("Traceback")
    assert outcome(raises, WORLD_SIZE="1")[2].startswith("Traceback")


def test_a_terminal_without_unicode_gets_the_message_too():
    assert outcome("raise errors.DataError('café')", PYTHONIOENCODING="ascii")[::2] == (2, "error: caf\\xe9\n")


@pytest.mark.slow
def test_no_thread_of_a_process_group_outlives_the_run(tmp_path):
    """Also where what refers to the group is a cycle, as a trainer is."""
    program = f"""
import time
import psutil
import torch.distributed as distributed
from tuner import errors

def main():
    print(threads())
    distributed.init_process_group("gloo", init_method="file://{tmp_path}/meet", rank=0, world_size=1)
    class Trainer: pass
    trainer = Trainer()
    trainer.itself, trainer.group = trainer, distributed.group.WORLD
    print(threads())

threads = psutil.Process().num_threads
errors.run(main)
time.sleep(0.5)  # a thread that has been joined may be counted for a moment
print(threads())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    alone, grouped, after = map(int, done.stdout.split())
    assert grouped > alone
    assert after == alone


@pytest.mark.parametrize("kind", MENDABLE)
def test_errors_travel_between_processes(kind):
    """`--dataset_num_proc` raises them in a worker."""
    error = pickle.loads(pickle.dumps(getattr(errors, kind)("rows.jsonl, row 3")))
    assert (type(error), str(error)) == (getattr(errors, kind), "rows.jsonl, row 3")


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("lerning_rate", ["learning_rate", "seed"], " Did you mean learning_rate?"),
        ("sed", iter(["learning_rate", "seed"]), " Did you mean seed?"),
        ("zzz", ["learning_rate", "seed"], ""),
        ("", ["learning_rate"], ""),
        ("seed", [], ""),
    ],
)
def test_nearest(name, known, expected):
    assert errors.nearest(name, known) == expected
