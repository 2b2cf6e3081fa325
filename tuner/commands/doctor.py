"""`tuner doctor`: versions, hardware, and what is fast here."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil

import torch
from packaging.requirements import Requirement
from rich.console import Console
from rich.table import Table

from tuner.hardware import device_type, has_fast_bf16, measure_peak, memory_bytes


def examine() -> None:
    """Print the state of the installation and the machine. Takes a few seconds: products are measured."""
    console = Console(highlight=False)
    console.print(_versions())
    console.print(_machine())
    for line in _advice():
        console.print(f"- {line}")


def _versions() -> Table:
    """Every dependency that `tuner` declares, with the range it is declared with."""
    table = Table(title="Packages", title_justify="left")
    for column in ("package", "installed", "wanted", ""):
        table.add_column(column)
    table.add_row("python", platform.python_version(), ">=3.10", "")
    for text in importlib.metadata.requires("tuner") or []:
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            table.add_row(wanted.name, "-", str(wanted.specifier), "[red]missing[/]")
            continue
        fits = wanted.specifier.contains(re.sub(r"\+.*", "", installed), prereleases=True)
        table.add_row(wanted.name, installed, str(wanted.specifier), "" if fits else "[red]not the tested range[/]")
    return table


def _machine() -> Table:
    table = Table(title="Machine", title_justify="left", show_header=False)
    table.add_column()
    table.add_column()
    table.add_row("system", f"{platform.system()} {platform.machine()}")
    table.add_row("device", _device_name())
    table.add_row("CPU cores, threads of torch", f"{len(os.sched_getaffinity(0))}, {torch.get_num_threads()}")
    table.add_row("memory", f"{memory_bytes() / 2**30:.1f} GiB")
    table.add_row("free disk here", f"{shutil.disk_usage('.').free / 2**30:.1f} GiB")
    table.add_row("fast bf16", "yes" if has_fast_bf16() else "no")
    for dtype in (torch.float32, torch.bfloat16):
        if dtype is torch.float32 or has_fast_bf16():
            peak = measure_peak(dtype) / 1e9
            table.add_row(f"measured peak, {str(dtype).removeprefix('torch.')}", f"{peak:,.0f} GFLOP/s")
    return table


def _device_name() -> str:
    kind = device_type()
    if kind == "cuda":
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return f"{len(names)} x {names[0]}"
    return str(torch.cpu.get_capabilities().get("cpu_name", "cpu")) if kind == "cpu" else kind


def _advice() -> list[str]:
    lines = [
        "Mixed precision in bf16 is on by default here: products run faster in it."
        if has_fast_bf16()
        else "bf16 is not fast here: runs stay in float32 unless --bf16 true."
    ]
    cores = len(os.sched_getaffinity(0))
    if device_type() == "cpu" and torch.get_num_threads() < cores:
        lines.append(f"torch uses {torch.get_num_threads()} of {cores} cores: unset OMP_NUM_THREADS.")
    if device_type() == "cpu":
        lines.append("--torch_compile true pays only for runs of many minutes: compiling takes about one.")
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        lines.append("HF_HUB_OFFLINE is set: Hub ids load from the cache only.")
    return lines
