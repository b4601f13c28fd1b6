"""Who runs requests: the job interface that every front end shares, the durable queue, and its runners."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nava_core.engine.jobs import (
    DATABASE,
    DiskFullError,
    Engine,
    EngineError,
    EngineStatus,
    Job,
    JobError,
    JobStateError,
    UnknownJob,
)
from nava_core.engine.runner import Outcome, Progress, RunFailed, Runner, RunnerInfo, RunnerLost, Task
from nava_core.engine.source import PipelineSource

if TYPE_CHECKING:
    from nava_core.engine.inprocess import InProcessEngine, InProcessRunner
    from nava_core.engine.queue import QueueEngine

__all__ = [
    "DATABASE",
    "DiskFullError",
    "Engine",
    "EngineError",
    "EngineStatus",
    "InProcessEngine",
    "InProcessRunner",
    "Job",
    "JobError",
    "JobStateError",
    "Outcome",
    "PipelineSource",
    "Progress",
    "QueueEngine",
    "RunFailed",
    "Runner",
    "RunnerInfo",
    "RunnerLost",
    "Task",
    "UnknownJob",
]

# Late, so that a page which only follows jobs does not load torch.
_HOMES = {
    "InProcessEngine": "inprocess",
    "InProcessRunner": "inprocess",
    "QueueEngine": "queue",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
