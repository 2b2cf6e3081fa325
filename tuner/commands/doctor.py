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
    for table, rows in ((packages, versions()), (machine, _machine())):
        for row in rows:
            table.add_row(*row)
    console.print(packages, machine, sep="\n")
    for line in _advice():
        console.print(f"- {line}")


def versions() -> list[tuple[str, str, str, str]]:
    """Python and every dependency that `tuner` declares: name, installed, wanted, and what is wrong.

    Of the packages of an extra, which nobody has to install, those that are there in another version.
    """
    from packaging.requirements import Requirement

    about: Any = importlib.metadata.metadata("tuner")
    rows = [("python", *_compare(platform.python_version(), about.get("Requires-Python", "")))]
    for text in about.get_all("Requires-Dist") or []:
        wanted = Requirement(text)
        extras = ["", *(about.get_all("Provides-Extra") or [])]  # "": it is needed without any
        extra = next((extra for extra in extras if not wanted.marker or wanted.marker.evaluate({"extra": extra})), None)
        if extra is None:  # for another system
            continue
        try:
            found = _compare(importlib.metadata.version(wanted.name), str(wanted.specifier))
        except importlib.metadata.PackageNotFoundError:
            found = ("-", str(wanted.specifier), MISSING)
        if not extra or found[2] == WRONG:
            rows.append((f"{wanted.name} (extra {extra})" if extra else wanted.name, *found))
    return rows


def _compare(installed: str, wanted: str) -> tuple[str, str, str]:
    from packaging.specifiers import SpecifierSet

    # A local version, as in 2.13.0+cpu, is the same release.
    fits = SpecifierSet(wanted).contains(installed.partition("+")[0], prereleases=True)
    return installed, wanted, "" if fits else WRONG


def _machine() -> list[tuple[str, str]]:
    import torch

    from tuner.hardware import cpu_cores, has_fast_bf16, measure_peak, memory_bytes

    fast = has_fast_bf16()
    rows = [
        ("system", f"{platform.system()} {platform.machine()}"),
        ("device", _device_name()),
        ("CPU cores, threads of torch", f"{cpu_cores()}, {torch.get_num_threads()}"),
        ("memory", f"{memory_bytes() / 2**30:.1f} GiB"),
        ("free disk here", f"{shutil.disk_usage('.').free / 2**30:.1f} GiB"),
        ("fast bf16", "yes" if fast else "no"),
    ]
    for dtype in (torch.float32, torch.bfloat16)[: 1 + fast]:
        peak = measure_peak(dtype) / 1e9
        rows.append((f"measured peak, {str(dtype).removeprefix('torch.')}", f"{peak:,.0f} GFLOP/s"))
    return rows


def _device_name() -> str:
    import torch

    from tuner.hardware import device_type

    kind = device_type()
    if kind == "cuda":
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return f"{len(names)} x {names[0]}"
    return str(torch.cpu.get_capabilities().get("cpu_name", "cpu")) if kind == "cpu" else kind


def _advice() -> list[str]:
    import torch

    from tuner.hardware import cpu_cores, device_type, has_fast_bf16

    lines = [
        "Mixed precision in bf16 is on by default here: products run faster in it."
        if has_fast_bf16()
        else "bf16 is not fast here: runs stay in float32 unless --bf16 true."
    ]
    if device_type() == "cpu" and torch.get_num_threads() < cpu_cores():
        lines.append(f"torch uses {torch.get_num_threads()} of {cpu_cores()} cores: unset OMP_NUM_THREADS.")
    if device_type() == "cpu":
        lines.append("--torch_compile true pays only for runs of many minutes: compiling takes about one.")
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        lines.append("HF_HUB_OFFLINE is set: Hub ids load from the cache only.")
    return lines
