"""`tuner doctor`: versions, hardware, and what is fast here."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shutil
from typing import Any

MISSING, WRONG = "[red]missing[/]", "[red]not the tested range[/]"


def add_parser(subparsers: Any) -> None:
    """Add the command, which has no flags."""
    subparsers.add_parser("doctor", help="versions, hardware, and what is fast here")


def main(args: argparse.Namespace) -> None:
    """Print the state of the installation and the machine. Takes a few seconds: products are measured."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    packages = Table("package", "installed", "wanted", "", title="Packages", title_justify="left")
    machine = Table("", "", title="Machine", title_justify="left", show_header=False)
    facts, advice = _machine()
    for table, rows in ((packages, versions()), (machine, facts)):
        for row in rows:
            table.add_row(*row)
    console.print(packages, machine, *(f"- {line}" for line in advice), sep="\n")


def versions() -> list[tuple[str, str, str, str]]:
    """Python and every dependency that `tuner` declares: name, installed, wanted, and what is wrong.

    Of the packages of an extra, which nobody has to install, those that are there in another version.
    """
    from packaging.requirements import Requirement

    about: Any = importlib.metadata.metadata("tuner")
    rows = []
    extras = ["", *about.get_all("Provides-Extra")]  # "": it is needed without any
    for wanted in map(Requirement, [f"python{about['Requires-Python']}", *about.get_all("Requires-Dist")]):
        name = wanted.name
        extra = next((extra for extra in extras if not wanted.marker or wanted.marker.evaluate({"extra": extra})), None)
        if extra is None:  # for another system
            continue
        try:
            installed = platform.python_version() if name == "python" else importlib.metadata.version(name)
            # A local version, as in 2.13.0+cpu, is the same release.
            state = "" if wanted.specifier.contains(installed.partition("+")[0], prereleases=True) else WRONG
        except importlib.metadata.PackageNotFoundError:
            installed, state = "-", MISSING
        if not extra or state == WRONG:
            rows.append((f"{name} (extra {extra})" if extra else name, installed, str(wanted.specifier), state))
    return rows


def _machine() -> tuple[list[tuple[str, str]], list[str]]:
    """What this machine is, and what to do about it."""
    import torch

    from tuner.hardware import cpu_cores, device_type, has_fast_bf16, measure_peak, memory_bytes

    kind, cores, threads, fast = device_type(), cpu_cores(), torch.get_num_threads(), has_fast_bf16()
    device = str(torch.cpu.get_capabilities().get("cpu_name", "cpu")) if kind == "cpu" else kind
    if kind == "cuda":
        device = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    facts = [
        ("system", f"{platform.system()} {platform.machine()}"),
        ("device", device),
        ("CPU cores, threads of torch", f"{cores}, {threads}"),
        ("memory", f"{memory_bytes() / 2**30:.1f} GiB"),
        ("free disk here", f"{shutil.disk_usage('.').free / 2**30:.1f} GiB"),
        ("fast bf16", "yes" if fast else "no"),
    ]
    for dtype in (torch.float32, torch.bfloat16)[: 1 + fast]:
        name = str(dtype).removeprefix("torch.")
        facts.append((f"measured peak, {name}", f"{measure_peak(dtype) / 1e9:,.0f} GFLOP/s"))
    advice = ["bf16 is not fast here: runs stay in float32 unless --bf16 true."]
    if fast:
        advice = ["Mixed precision in bf16 is on by default here: products run faster in it."]
    if kind == "cpu" and threads < cores:
        advice.append(f"torch uses {threads} of {cores} cores: unset OMP_NUM_THREADS.")
    if kind == "cpu":
        advice.append("--torch_compile true pays only for runs of many minutes: compiling takes about one.")
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        advice.append("HF_HUB_OFFLINE is set: Hub ids load from the cache only.")
    return facts, advice
