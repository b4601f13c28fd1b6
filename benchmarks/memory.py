"""Peak memory: of tensors, as torch's allocator hands it out, and of a process, as the kernel counts it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def peak_tensor_bytes(action: Callable[[], Any]) -> int:
    """The most that `action` had allocated at any moment, beyond what there was before it.

    Temporaries inside operators are counted; memory that a library takes for itself (such as a matrix product's packed
    operands) is not. The same on every machine for the same shapes.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        action()
    results: Any = profile.profiler
    changes = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def resident_bytes(field: str = "VmRSS") -> int:
    """Of this process: "VmRSS" now, "VmHWM" the most since `forget_resident_peak`. Linux only."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def forget_resident_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
