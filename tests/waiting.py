"""Waiting for what other threads and processes do."""

from __future__ import annotations

import time
from collections.abc import Callable

from nava_core.engine import Engine, Job


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def finished(engine: Engine, job_id: str) -> Job:
    """The job when nothing more happens to it."""
    return list(engine.events(job_id))[-1]
