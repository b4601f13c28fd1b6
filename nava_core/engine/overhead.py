"""What a job costs over the bare call of the pipeline: for the benchmarks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import psutil

from nava_core.engine.inprocess import InProcessRunner
from nava_core.engine.queue import QueueEngine
from nava_core.engine.runner import Runner
from nava_core.export import output_suffix, save_output
from nava_core.request import GenerationRequest

if TYPE_CHECKING:
    from nava_core.pipeline import NavaPipeline

LIMIT_SHARE, LIMIT_SECONDS = 0.02, 0.05


@dataclass(frozen=True)
class Spent:
    """What one run took from the request to the finished file: seconds by the clock, and of all processors together."""

    clock: float
    processor: float


@dataclass(frozen=True)
class Overhead:
    """Runs in pairs, one right after the other: called directly, and as a job of a durable queue."""

    bare: list[Spent]
    job: list[Spent]

    @property
    def seconds(self) -> float:
        """By the clock; the median of the pairs."""
        return median(job.clock - bare.clock for bare, job in zip(self.bare, self.job, strict=True))

    @property
    def share(self) -> float:
        """Of the bare call's time by the clock."""
        return self.seconds / median(bare.clock for bare in self.bare)

    @property
    def processor_seconds(self) -> float:
        """Of processors, which other programs on the machine disturb least; waiting does not count."""
        return median(job.processor - bare.processor for bare, job in zip(self.bare, self.job, strict=True))

    @property
    def processor_share(self) -> float:
        """Of the bare call's processor time."""
        return self.processor_seconds / median(bare.processor for bare in self.bare)

    @property
    def ok(self) -> bool:
        """Whether a job costs at most 2% or 50 ms by the clock."""
        return self.share <= LIMIT_SHARE or self.seconds <= LIMIT_SECONDS


def job_overhead(
    pipeline: NavaPipeline,
    request: GenerationRequest,
    folder: Path,
    repeats: int = 3,
    previews: bool = True,
    runner: Runner | None = None,
) -> Overhead:
    """Measure it, after one pair to warm up.

    Args:
        folder: for the clips and the queue; on the disk whose speed matters.
        previews: whether a job in this process shows pictures on its way, as the studio's do.
        runner: of the same model; None runs the jobs on `pipeline` in this process.
    """
    runner = runner or InProcessRunner(lambda: pipeline, previews)
    engine = QueueEngine(runner, folder, folder / "queue" / "jobs.sqlite3")
    resolved = request.resolve(pipeline.spec)

    def call() -> None:
        output = pipeline.run(resolved, output_type="latent")
        save_output(pipeline, output, resolved, folder / f"bare{output_suffix(output)}")

    def run_job() -> None:
        (*_, last) = engine.events(engine.submit(resolved))
        assert last.state == "done", last.error

    bare: list[Spent] = []
    job: list[Spent] = []
    try:
        engine.wait_until_loaded()
        for number in range(repeats + 1):
            # Who comes second finds the caches warm, or the processor hot: they take turns.
            first, second = ((call, bare), (run_job, job))[:: 1 if number % 2 else -1]
            for measured, results in (first, second):
                results.append(_spent(measured))
    finally:
        engine.close()
    return Overhead(bare[1:], job[1:])


def _spent(action: Callable[[], None]) -> Spent:
    started, used = time.perf_counter(), _processor_seconds()
    action()
    return Spent(time.perf_counter() - started, _processor_seconds() - used)


def _processor_seconds() -> float:
    """Of this process and all that it has started, those that have ended included."""
    this = psutil.Process()
    times = [process.cpu_times() for process in (this, *this.children(recursive=True))]
    return sum(spent.user + spent.system + spent.children_user + spent.children_system for spent in times)
