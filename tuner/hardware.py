"""What this machine is and what is fast on it."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import timeit
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pyarrow
import torch


def device_type() -> str:
    """`cuda`, another accelerator that torch sees, or `cpu`."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator.type if accelerator else "cpu"


def has_fast_bf16(device: str | None = None) -> bool:
    """Whether products in bfloat16 run faster than in float32: on a CPU, AVX-512 with bf16 or AMX."""
    device = device or device_type()
    if device == "cpu":
        features = torch.cpu.get_capabilities()
        return bool(features.get("avx512_bf16") or features.get("amx_bf16"))
    return device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


@contextmanager
def many_shapes() -> Iterator[None]:
    """Attention by other kernels than cuDNN's, which on Hopper and later come first, and are planned anew for each
    shape: a text that grows by a token has another one with every token."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def cpu_cores() -> int:
    """Cores that this process may use; where the system does not say (macOS, Windows), those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_all_cores() -> None:
    """Undo OMP_NUM_THREADS=1, which `accelerate launch` exports without `--cpu` or a configuration file: on a machine
    without accelerators it halves the speed or worse. A number other than 1 is someone's choice and stays."""
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ
    if launched and device_type() == "cpu" and os.environ.get("OMP_NUM_THREADS") == "1":
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(cpu_cores() // processes, 1))


def measure_peak(dtype: torch.dtype, size: int | None = None) -> float:
    """Floating-point operations a second of a large square product in `dtype`, the best of three: the ceiling that a
    share is quoted of. Takes under a second on two CPU cores."""
    device = device_type()
    slow = device == "cpu" and dtype != torch.float32 and not has_fast_bf16(device)  # imitated, at a fraction of it
    size = size or (256 if slow else 1024 if device == "cpu" else 8192)
    left = torch.randn(size, size, device=device).to(dtype)

    def product() -> None:
        torch.matmul(left, left)
        if device != "cpu":
            torch.accelerator.synchronize()

    return 2 * size**3 / min(timeit.repeat(product, number=1, repeat=4))  # the first one warms up


def release_unused_memory() -> None:
    """Give back to the system what loading and tokenizing have freed; C's allocator keeps it otherwise."""
    gc.collect()
    pyarrow.default_memory_pool().release_unused()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):  # glibc's own
        trim(0)


def memory_bytes() -> int:
    """Memory that a model may use: the accelerator's, or the machine's."""
    if device_type() == "cuda":
        return torch.cuda.get_device_properties(0).total_memory
    return psutil.virtual_memory().total
