"""Variations: the same request from consecutive seeds, as one group of jobs."""

from __future__ import annotations

import secrets
from dataclasses import replace

from nava_core.engine.jobs import Engine, EngineError, Job
from nava_core.request import GenerationRequest, RequestError


def submit_variations(engine: Engine, request: GenerationRequest, number: int, owner: str = "") -> str:
    """Queue `number` jobs that differ in their seeds alone; returns the first one's id. All are queued, or none.

    Raises RequestError or EngineError, as `Engine.submit` does.
    """
    if number == 1:
        return engine.submit(request, owner)
    group = secrets.token_hex(8)
    first = secrets.randbits(32) if request.seed is None else request.seed
    queued: list[str] = []
    try:
        for seed in range(first, first + number):
            queued.append(engine.submit(replace(request, seed=seed), owner, group))
    except (RequestError, EngineError):
        for job_id in queued:
            engine.cancel(job_id)
        raise
    return queued[0]


def unfinished(engine: Engine, job: Job) -> list[Job]:
    """Those of a job's group, itself included, that run or wait, in the order in which they will run."""
    if job.variations is None:
        return [] if job.finished else [job]
    return [one for one in engine.jobs() if one.variations == job.variations and not one.finished]


def finished_variations(engine: Engine, job: Job) -> list[str]:
    """The ids of those of a job's group that have a clip, in the order of their seeds; none for a job by itself."""
    if job.variations is None:
        return []
    group = [one for one in engine.jobs() if one.variations == job.variations and one.state == "done"]
    return [one.id for one in sorted(group, key=lambda one: one.request.seed or 0)]
