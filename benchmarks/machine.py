"""The machine that something was measured on, and the precision that it is measured in."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from nava_core.checkpoint import cpu_computes_in_bfloat16

FEATURES = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")


def compute_dtype() -> torch.dtype:
    """bfloat16 where the processor has instructions for it, as in `load_pipeline`; else float32."""
    return torch.bfloat16 if cpu_computes_in_bfloat16() else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def describe_machine() -> dict[str, Any]:
    """Processor, its widest instructions, cores, load, library versions."""
    return {
        "cpu": processor_name(),
        "cores": os.cpu_count(),
        "instructions": next((name for name in FEATURES if name in _flags()), platform.machine()),
        "dtype": dtype_name(compute_dtype()),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
    }


def processor_name() -> str:
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def _flags() -> set[str]:
    return set(_cpuinfo().get("flags", "").split())


def _cpuinfo() -> dict[str, str]:
    """The first processor's entry; empty where the system has no such file."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    first, _, _ = path.read_text(encoding="utf-8", errors="replace").partition("\n\n")
    entries = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in entries}
