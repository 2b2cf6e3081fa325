"""Where a training step's time goes: kernels, launches, and moments at which the host waits for the card."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.setting import ROOT, synchronize

LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


class StepProfile:
    """Begins when it is made, ends with `stop`."""

    def __init__(self) -> None:
        synchronize()
        self.profile = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])
        self.profile.__enter__()
        self.started = time.perf_counter()

    def stop(self) -> dict[str, Any]:
        """Kernels and their share of the step, launches, waits, and what took longest."""
        synchronize()
        seconds = time.perf_counter() - self.started
        self.profile.__exit__(None, None, None)
        events = list(self.profile.events())
        on_card = (event for event in events if event.device_type == DeviceType.CUDA)
        # What somebody named on the host spans its kernels on the card too.
        kernels = [event for event in on_card if not event.is_user_annotation]
        busy = sum(event.time_range.elapsed_us() for event in kernels) / 1e6
        names = Counter(event.name for event in events)
        longest: Counter[str] = Counter()
        for event in kernels or events:
            longest[event.name[:80]] += event.time_range.elapsed_us() if kernels else event.self_cpu_time_total
        return {
            "profiled_seconds": round(seconds, 4),
            "kernels": len(kernels),
            "busy_share": round(busy / seconds, 3),
            "launches": sum(count for name, count in names.items() if name.startswith(LAUNCHES)),
            "synchronizations": sum(names[name] for name in WAITS),
            "longest": {name: round(us / 1e3, 3) for name, us in longest.most_common(12)},  # ms
        }


class HostWaits:
    """Counts, from when it is made to `stop`, the operations that make the host wait, by the line that asked."""

    def __init__(self) -> None:
        self.caught = warnings.catch_warnings(record=True)
        self.list = self.caught.__enter__()
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("warn")

    def stop(self) -> dict[str, Any]:
        """How many, and where."""
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("default")
        places = Counter(
            f"{warning.filename.removeprefix(f'{ROOT}/')}:{warning.lineno}"
            for warning in self.list
            if "synchroniz" in str(warning.message)
        )
        self.caught.__exit__(None, None, None)
        short = {place.split("site-packages/")[-1].removeprefix("/tmp/site/"): n for place, n in places.most_common(12)}
        return {"host_waits": sum(places.values()), "host_wait_places": short}
