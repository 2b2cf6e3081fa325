"""Processes of a test: real ones, forked where that is the same from a server that has the imports behind it.

A run of a recipe takes a second or two and its imports take ten. `run_python` is
`subprocess.run([sys.executable, ...])` but for that; where the environment differs from the server's in what an
interpreter or a library reads while it starts, it is exactly that.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# What is read when it is needed, not when an interpreter or a library starts; threads are set anew.
READ_LATE = {
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("COLUMNS", "TERM", "TENSORBOARD_LOGGING_DIR", "OMP_NUM_THREADS"),
}


def environment(**extra: str) -> dict[str, str]:
    """This process's environment without what a launcher or torch's compiler left, and never asking the Hub."""
    left = ("ACCELERATE_", "PYTEST_", "TORCHINDUCTOR_", "TRITON_", "KMP_DUPLICATE_LIB_OK")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(left)}
    return {**kept, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), **extra}


class Server:
    """A process of `fork_server.py`; it ends when this one does."""

    def __init__(self) -> None:
        self.env = environment()
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "fork_server.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=self.env,
            start_new_session=True,  # Ctrl-C is for the tests, whose end is the server's
        )  # fmt: skip
        atexit.register(self.close)
        self.unread, self.ended = b"", dict[int, int]()
        self.read(time.monotonic() + 300)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def takes(self, env: dict[str, str]) -> bool:
        """Whether a process forked here is one that was started with `env`."""
        fixed, own = ({k: v for k, v in e.items() if k not in READ_LATE} for e in (env, self.env))
        return fixed == own and ("OMP_NUM_THREADS" in env or "OMP_NUM_THREADS" not in self.env)

    def start(self, argv: list[str], env: dict[str, str], files: dict[str, str]) -> int:
        """Fork; returns the process's number."""
        assert self.process.stdin is not None
        threads = env.get("OMP_NUM_THREADS")
        request = {
            **files, "argv": argv, "cwd": str(ROOT), "env": {name: env.get(name) for name in READ_LATE},
            "threads": None if threads == self.env.get("OMP_NUM_THREADS") else int(threads or 1),
        }  # fmt: skip
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        while True:
            if (pid := self.read(time.monotonic() + 60).get("started")) is not None:
                return pid

    def wait(self, pid: int, deadline: float) -> int:
        """The exit code of a process, negative for a signal.

        Raises:
            TimeoutError: it is still running.
        """
        while pid not in self.ended:
            self.read(deadline)
        return self.ended.pop(pid)

    def read(self, deadline: float) -> dict[str, Any]:
        """Wait for what the server says next.

        Raises:
            TimeoutError: it says nothing until then.
        """
        assert self.process.stdout is not None
        while b"\n" not in self.unread:
            if not select.select([self.process.stdout], [], [], max(deadline - time.monotonic(), 0))[0]:
                raise TimeoutError
            read = os.read(self.process.stdout.fileno(), 65536)
            if not read:
                raise RuntimeError("the server of forks has ended")
            self.unread += read
        line, _, self.unread = self.unread.partition(b"\n")
        words = json.loads(line)
        if "ended" in words:
            self.ended[words["ended"]] = words["code"]
        return words


@functools.cache
def server() -> Server:
    """This process's, begun with its first use."""
    return Server()


class Forked:
    """A running process, as `subprocess.Popen` is: `pid`, `send_signal`, `wait`."""

    def __init__(self, argv: list[str], env: dict[str, str], stdin: str = "") -> None:
        self.args = argv
        self.folder = tempfile.TemporaryDirectory()
        names = ("stdin", "stdout", "stderr")
        self.files = {name: Path(self.folder.name) / name for name in names}
        self.files["stdin"].write_text(stdin, encoding="utf-8")
        self.pid = server().start(argv, env, {name: str(path) for name, path in self.files.items()})

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it and what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def wait(self, timeout: float) -> subprocess.CompletedProcess[str]:
        """Its output and exit code. It is killed where it runs longer.

        Raises:
            subprocess.TimeoutExpired: it ran longer.
        """
        try:
            code = server().wait(self.pid, time.monotonic() + timeout)
        except TimeoutError:
            self.kill()
            server().wait(self.pid, time.monotonic() + 60)
            raise subprocess.TimeoutExpired(self.args, timeout, *self._shown()) from None
        shown = self._shown()
        self.folder.cleanup()
        return subprocess.CompletedProcess(self.args, code, *shown)

    def _shown(self) -> tuple[str, str]:
        out, err = (self.files[name].read_text(encoding="utf-8", errors="replace") for name in ("stdout", "stderr"))
        return out, err


def run_python(
    *argv: str | Path, stdin: str = "", timeout: float = 300, **env: str
) -> subprocess.CompletedProcess[str]:
    """What `python *argv` gives, from the repository's root: a script, `-m module` or `-c code`, with its arguments."""
    words, whole = [str(word) for word in argv], environment(**env)
    if server().takes(whole):
        return Forked(words, whole, stdin).wait(timeout)
    return run_fresh(*words, stdin=stdin, timeout=timeout, **env)


def run_fresh(*argv: str | Path, stdin: str = "", timeout: float = 300, **env: str) -> subprocess.CompletedProcess[str]:
    """The same by a new interpreter."""
    return subprocess.run(
        [sys.executable, *map(str, argv)],
        cwd=ROOT, env=environment(**env), input=stdin, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip


def run_together(count: int, *argv: str | Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """`count` processes of one group, as torchrun starts them: one that fails ends the others.

    Returns:
        The outputs one after the other, and the exit code of the first that failed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    group |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    words, deadline = [str(word) for word in argv], time.monotonic() + timeout
    ranks = [Forked(words, environment(**group, RANK=str(n), LOCAL_RANK=str(n))) for n in range(count)]
    code, done = 0, dict[int, subprocess.CompletedProcess[str]]()
    while len(done) < count:
        for number, rank in enumerate(ranks):
            if number not in done and rank.pid in server().ended:
                done[number] = rank.wait(0)
                if done[number].returncode and not code:
                    code = done[number].returncode
                    for other in ranks:
                        other.kill()
        if len(done) < count:
            try:
                server().read(deadline)
            except TimeoutError:
                for rank in ranks:
                    rank.kill()
                raise subprocess.TimeoutExpired(words, timeout) from None
    out, err = ("".join(getattr(done[n], name) for n in range(count)) for name in ("stdout", "stderr"))
    return subprocess.CompletedProcess(words, code, out, err)
