"""What the user can mend: one exception family, and the one place where it becomes a message and an exit code.

A `TunerError` names what was found, what was expected and what to do. `run` prints it on standard error without a
traceback and exits with 2, as argparse does (`GateError`: with 1). Anything else is a defect of ours and keeps its
traceback.
"""

from __future__ import annotations

import difflib
import errno
import gc
import importlib
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

EXIT_USAGE = 2
# What torch.distributed says when the other side of a connection is gone.
PEER_LEFT = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "failed to recv", "recvValue")


class TunerError(Exception):
    """The base: something outside the program that its user can mend."""

    exit_code = EXIT_USAGE


class ArgumentError(TunerError):
    """A flag or a YAML key: unknown, of the wrong type, or at odds with another."""


class DataError(TunerError):
    """A file, a row or a column that cannot be used."""


class ModelError(TunerError):
    """A model, tokenizer or chat template that cannot be used."""


class CheckpointError(TunerError):
    """A checkpoint or an output folder that cannot be written or continued."""


class NonFiniteError(TunerError):
    """A loss or gradient that is NaN or infinite."""


class GateError(TunerError):
    """A figure of an evaluation that falls short of what was asked: nothing is wrong but the model."""

    exit_code = 1


class Interrupted(TunerError):
    """Stopped by a signal after saving: where the state was saved and how to go on, and the signal's number."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean X?`, or nothing when no known name is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]}?" if close else ""


def one_line(error: BaseException) -> str:
    """What an error says, in one line; its kind, where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its kind, where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def unreadable(path: Path, error: OSError) -> str:
    """Why a file could not be read, and which one beside it was likely meant."""
    beside = () if path.exists() else path.parent.glob("*")
    return f"{error.strerror}.{nearest(path.name, (p.name for p in beside))}"


def from_extra(library: str, extra: str) -> ModuleType:
    """A library of an optional part of the installation; an ArgumentError that says how to get it."""
    try:
        return importlib.import_module(library)
    except ImportError:
        package = library.partition(".")[0]
        raise ArgumentError(f"This needs {package}: pip install 'tuner[{extra}]'.") from None


def survive(work: Callable[[], object], name: str) -> None:
    """Do what a run can do without; a failure is a warning."""
    try:
        work()
    except Exception as error:  # whatever it is, what was trained is not lost for it
        warnings.warn(f"{name} could not be made: {type(error).__name__}: {one_line(error)}", stacklevel=2)


def run(main: Callable[[], None]) -> None:
    """Call `main` and turn what the user can mend into one message and an exit code: 2, or 128 + signal."""
    try:
        main()
        return _leave_process_group()
    except Interrupted as stop:
        message, code = str(stop), 128 + stop.signal_number
    except KeyboardInterrupt:
        message, code = "Interrupted before there was anything to save.", 128 + signal.SIGINT
    except TunerError as error:
        message, code = f"error: {error}", error.exit_code
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        message, code = f"error: {error.strerror}{f': {error.filename}' if error.filename else ''}.", EXIT_USAGE
    except RuntimeError as error:
        # Another process of the run has ended, and says why, while this one waited for it.
        if os.environ.get("WORLD_SIZE", "1") == "1" or not any(text in str(error) for text in PEER_LEFT):
            raise
        sys.exit(EXIT_USAGE)
    notice(message)
    sys.exit(code)


def _leave_process_group() -> None:
    # A process group's threads that outlive the interpreter abort the process now and then; they live as long as
    # anything refers to the group, as a trainer does, which is a cycle. torch is not imported for this: `--help` ends
    # here too.
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        gc.collect()
        distributed.destroy_process_group()


def notice(message: str) -> None:
    """Print on standard error, in one process of a machine: all processes of a distributed run meet the same."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(message, file=sys.stderr, flush=True)
