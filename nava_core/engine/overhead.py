"""What a job costs over the bare call of the pipeline: for the benchmarks."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from nava_core.engine.inprocess import InProcessRunner
from nava_core.engine.queue import QueueEngine
from nava_core.engine.runner import Runner
from nava_core.export import output_suffix, save_output
from nava_core.request import GenerationRequest

if TYPE_CHECKING:
    from nava_core.pipeline import NavaPipeline


@dataclass(frozen=True)
class Overhead:
    """Median seconds from the request to the finished file: called directly, and as a job of a durable queue."""

    bare: float
    job: float

    @property
    def seconds(self) -> float:
        return self.job - self.bare

    @property
    def share(self) -> float:
        """Of the bare call's time."""
        return self.seconds / self.bare


def job_overhead(
    pipeline: NavaPipeline,
    request: GenerationRequest,
    folder: Path,
    repeats: int = 3,
    previews: bool = False,
    runner: Runner | None = None,
) -> Overhead:
    """Measure it, the two in turn after one of each to warm up.

    Args:
        folder: for the clips and the queue; on the disk whose speed matters.
        previews: count them as a cost of a job in this process.
        runner: of the same model; None runs the jobs on `pipeline` in this process.
    """
    runner = runner or InProcessRunner(lambda: pipeline, previews)
    engine = QueueEngine(runner, folder, folder / "queue" / "jobs.sqlite3")
    try:
        engine.wait_until_loaded()
        resolved = request.resolve(pipeline.spec)
        bare, job = [], []
        for number in range(repeats + 1):
            started = time.perf_counter()
            output = pipeline.run(resolved, output_type="latent")
            save_output(pipeline, output, resolved, folder / f"bare-{number}{output_suffix(output)}")
            bare.append(time.perf_counter() - started)
            started = time.perf_counter()
            (*_, last) = engine.events(engine.submit(resolved))
            job.append(time.perf_counter() - started)
            assert last.state == "done", last.error
    finally:
        engine.close()
    return Overhead(median(bare[1:]), median(job[1:]))
