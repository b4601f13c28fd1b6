"""Row 11: what a job of the durable queue costs over the bare call, and how soon it can be stopped."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median

from benchmarks.catalogue import row
from benchmarks.harness import Row, quartiles
from benchmarks.machine import processor_name
from nava_core.checkpoint import load_pipeline
from nava_core.engine import PipelineSource, QueueEngine
from nava_core.engine.overhead import LIMIT_SECONDS, LIMIT_SHARE, job_overhead
from nava_core.engine.workers import WorkerRunner
from nava_core.request import GenerationRequest

CLIP = GenerationRequest("A red ball falls and bounces.", seed=1)
"""nava-nano's default clip: of a shorter one the same milliseconds are a larger share."""
LONG_STEPS = replace(CLIP, width=256, height=256, num_frames=49, num_inference_steps=100)
MOMENTS = (0.2, 0.5, 0.8)  # of a step, at which a job is cancelled
SOURCE = PipelineSource(None, "cpu")


def engine_part(budget: float) -> list[Row]:
    """nava-nano in a worker process with previews, as in the app, against the same pipeline called here."""
    pipeline = load_pipeline(device="cpu")
    pipeline.set_progress_bar_config(disable=True)
    started = time.monotonic()
    pipeline.run(CLIP)
    repeats = int(0.7 * budget / (2 * (time.monotonic() - started))) - 1  # one pair more warms up
    with tempfile.TemporaryDirectory() as folder:
        costs = job_overhead(pipeline, CLIP, Path(folder), max(2, min(repeats, 8)), runner=WorkerRunner(SOURCE))
    with tempfile.TemporaryDirectory() as folder:
        cancels = cancel_jobs(Path(folder))
    share, call = costs.processor_share, median(bare.processor for bare in costs.bare)
    shares = [(job.processor - bare.processor) / call for bare, job in zip(costs.bare, costs.job, strict=True)]
    within = share <= LIMIT_SHARE or costs.processor_seconds <= LIMIT_SECONDS
    detail = {
        "summary": f"{costs.processor_seconds * 1000:+.0f} ms of processor time on a call of {call:.2f} s, limit 2% or "
        f"{LIMIT_SECONDS * 1000:.0f} ms; {costs.seconds * 1000:+.0f} ms ({100 * costs.share:+.1f}%) by the clock "
        f"(nava-nano, {processor_name()}, one thread)",
        "share": share,
        "processor_seconds": costs.processor_seconds,
        "clock_seconds": costs.seconds,
        "clock_share": costs.share,
        "bare": [vars(one) for one in costs.bare],
        "job": [vars(one) for one in costs.job],
    }
    worked_on = [cancel.steps for cancel in cancels]
    cancel_detail = {
        "summary": f"steps that were still worked on, the one under way at the order included, the most of "
        f"{len(cancels)} jobs; over after "
        + ", ".join(f"{cancel.seconds:.2f}" for cancel in cancels)
        + f" s by the clock, where a step takes {median(cancel.step_seconds for cancel in cancels):.2f} s",
        "steps": worked_on,
        "seconds": [cancel.seconds for cancel in cancels],
    }
    # A job within 50 ms meets the limit whatever its share of a short call is.
    value = min(share, LIMIT_SHARE) if within else share
    return [
        row("engine", value, detail, quartiles(shares)),
        row("engine.cancel", max(worked_on), cancel_detail),
    ]


@dataclass(frozen=True)
class Cancelled:
    """A job that was cancelled in the midst of a step.

    steps: worked on from the order to the end, the one under way included. seconds: from the order to the end.
    """

    steps: int
    seconds: float
    step_seconds: float


def cancel_jobs(folder: Path) -> list[Cancelled]:
    """One for each of `MOMENTS`."""
    engine = QueueEngine(WorkerRunner(SOURCE), folder, folder / "queue" / "jobs.sqlite3")
    results = []
    try:
        engine.wait_until_loaded()
        for seed, moment in enumerate(MOMENTS):
            job_id = engine.submit(replace(LONG_STEPS, seed=seed))
            ends: dict[int, float] = {}
            at_order, ordered = 0, 0.0
            for job in engine.events(job_id):
                if job.step and job.step not in ends and not ordered:
                    ends[job.step] = time.monotonic()
                if len(ends) == 4 and not ordered:
                    step_seconds = _median_gap(ends)
                    time.sleep(moment * step_seconds)
                    at_order, ordered = engine.job(job_id).step, time.monotonic()
                    engine.cancel(job_id)
            seconds, last = time.monotonic() - ordered, engine.job(job_id)
            assert last.state == "cancelled", last.state
            results.append(Cancelled(last.step - at_order + 1, seconds, step_seconds))
    finally:
        engine.close()
    return results


def _median_gap(ends: dict[int, float]) -> float:
    """Seconds of a step, from when steps were seen to end."""
    seen = sorted(ends.items())
    return median((later - sooner) / (b - a) for (a, sooner), (b, later) in pairwise(seen))
