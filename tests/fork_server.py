"""Imports what is heavy once, then forks a process for each request: the other end of `tests/processes.py`.

A line of JSON on standard input asks for a process; lines of JSON on standard output tell its number and, when it has
ended, how. Nothing is computed before a fork: torch has no threads yet, no device and no process group is open. A
process finds what a new interpreter has after its imports; all share the seed of `hash`, and end as those of
`multiprocessing` do: exit handlers run, modules are not taken apart.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import random
import runpy
import signal
import sys
import threading
import types
from typing import Any

HEAVY = [
    *("tuner.train", "tuner.commands.chat", "tuner.commands.convert", "tuner.commands.plan"),
    *("transformers.models.auto.modeling_auto", "transformers.trainer", "matplotlib.pyplot", "scipy.io"),
]
# What torch's compiler and another library set when they are imported, which a run of a recipe may never do.
IMPORTED = ("TORCHINDUCTOR_CACHE_DIR", "KMP_DUPLICATE_LIB_OK")


def import_everything() -> None:
    for name in HEAVY:  # tuner.train first: it sets what torch reads at its first tensor
        importlib.import_module(name)
    import tuner

    for name in tuner.__all__:
        getattr(tuner, name)
    for name in IMPORTED:
        os.environ.pop(name, None)
    from accelerate.state import PartialState

    assert not PartialState._shared_state, "an import has opened accelerate's state"


def serve(replies: int) -> dict[str, Any] | None:
    """Fork for every request; returns the request in the child, and None in the server when there are no more."""
    running: set[int] = set()

    def reply(**words: Any) -> None:
        os.write(replies, f"{json.dumps(words)}\n".encode())

    def reap(*_: object) -> None:
        while running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            running.discard(pid)
            reply(ended=pid, code=os.waitstatus_to_exitcode(status))

    signal.signal(signal.SIGCHLD, reap)
    for line in sys.stdin:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # until the process is known
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
            os.close(replies)
            return json.loads(line)
        running.add(pid)
        reply(started=pid)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for pid in running:
        os.killpg(pid, signal.SIGKILL)
    return None


def become(request: dict[str, Any]) -> None:
    """Be the process that was asked for, up to the code that it runs."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        file = os.open(request[name], os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(file, number)
        os.close(file)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    os.chdir(request["cwd"])
    for name, value in request["env"].items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    import numpy
    import torch

    random.seed()
    numpy.random.seed()
    if request["threads"] is not None:
        torch.set_num_threads(request["threads"])


def run(argv: list[str]) -> int:
    """Run what `python *argv` runs; returns the exit code."""
    try:
        if argv[0] == "-c":
            sys.argv, sys.path[0] = ["-c", *argv[2:]], ""
            sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(argv[1], "<string>", "exec"), vars(sys.modules["__main__"]))
        elif argv[0] == "-m":
            sys.argv, sys.path[0] = argv[1:], os.getcwd()
            runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0] = argv, os.path.dirname(argv[0])
            runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def main() -> None:
    channel = os.dup(1)
    os.dup2(2, 1)
    import_everything()
    gc.collect()
    gc.freeze()
    os.write(channel, b'{"ready": true}\n')
    request = serve(channel)
    if request is None:
        os._exit(0)
    become(request)
    code = run(request["argv"])
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
