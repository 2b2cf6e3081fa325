"""Runs a recipe and kills its own process with SIGKILL at an exact point: `killer.py POINT recipe.py FLAGS...`.

Points: `step:N` before step N+1 computes; `open:NAME` when the file NAME of a checkpoint is about to be written;
`rename` when a finished checkpoint is about to get its name; `rotate` when an old checkpoint is about to be removed.
`@K` behind a point means its K-th time. The kill is real: nothing is flushed, closed or cleaned up.
"""

import os
import runpy
import signal
import sys


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point: str) -> None:
    what, _, times = point.partition("@")
    left = int(times or 1)
    kind, _, name = what.partition(":")

    def reached() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            die()

    if kind == "step":
        from tuner.train.callbacks import StepSeed

        seed_step = StepSeed.on_step_begin

        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == int(name):
                die()
            return seed_step(self, args, state, control, **kwargs)

        StepSeed.on_step_begin = on_step_begin
        return

    def hook(event, args):
        if kind == "open" and event == "open" and isinstance(args[0], str | bytes | os.PathLike):
            path = os.fsdecode(args[0])
            if ".saving" in path and os.path.basename(path) == name:
                reached()
        elif (kind == "rename" and event == "os.rename" and ".saving" in os.fsdecode(args[0])) or (
            kind == "rotate" and event == "shutil.rmtree" and "checkpoint-" in os.fsdecode(args[0])
        ):
            reached()

    sys.addaudithook(hook)


if __name__ == "__main__":
    point, *sys.argv = sys.argv[1:]
    sys.path.insert(0, os.path.dirname(sys.argv[0]))  # before anything of tuner is imported, as Python itself has it
    arm(point)
    runpy.run_path(sys.argv[0], run_name="__main__")
