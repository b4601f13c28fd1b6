"""A worker whose backbone does, on demand, what real ones do by accident. Run by tests/test_workers.py.

Faults are files in the folder that NAVA_TEST_FAULTS names: `loading` (it does not come to an end), `slow` and `slower`
(every pass takes 0.2 or 0.6 s longer), `boundary-R` (rank R runs out of memory after a step's passes, once), and,
within a pass while the others wait for it in a collective, `inside-R` (rank R runs out of memory) and `asleep-R` (it
hangs, its heart beating on).
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import nava_core.pipeline as pipeline_module
from nava_core.engine import PipelineSource, rank_plan
from nava_core.engine.worker import main

FAULTS = Path(os.environ["NAVA_TEST_FAULTS"])
RANK = int(os.environ["RANK"])
# The tests' clips are so small that one rank alone would be quickest: here ranks share them as they share large ones.
rank_plan.CALL = rank_plan.EXCHANGE = 0.0


def load(source: PipelineSource) -> Any:
    pipeline = source.load()
    while (FAULTS / "loading").exists():
        time.sleep(0.05)
    pipeline.transformer.register_forward_pre_hook(disturb_pass)
    combine = pipeline_module.combine

    def disturbed_combine(*arguments: Any) -> Any:
        if take(f"boundary-{RANK}"):
            raise torch.OutOfMemoryError("out of memory, says the test")
        return combine(*arguments)

    pipeline_module.combine = disturbed_combine
    return pipeline


def disturb_pass(*_: Any) -> None:
    for fault, seconds in (("slow", 0.2), ("slower", 0.6)):
        if (FAULTS / fault).exists():
            time.sleep(seconds)
    for fault in FAULTS.glob("inside-*"):
        if fault.name == f"inside-{RANK}":
            raise torch.OutOfMemoryError("out of memory, says the test")
        dist.barrier()
    for fault in FAULTS.glob("asleep-*"):
        if fault.name == f"asleep-{RANK}":
            (FAULTS / "fell-asleep").write_text(str(time.monotonic()))
            time.sleep(3600)
        dist.barrier()


def take(fault: str) -> bool:
    try:
        (FAULTS / fault).unlink()
    except FileNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main(load)
