"""What each owner sees of the queue, and what of it has changed since a tab last asked.

Tabs ask again and again, with the revision that they have seen; an answer holds what is newer. Nothing is kept for a
tab, so that a thousand of them cost their questions and nothing else: no thread, no connection, no place among Gradio's
running events. All tabs of an owner share one picture, which is drawn anew only when something has happened.
"""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nava_core.engine.jobs import EngineError, Job
from nava_core.request import GenerationRequest, RequestError
from ui import queue_view
from ui.queue_view import Row
from ui.service import Service

# More rows would make a page slow and help nobody; the rest is said as a number.
LISTED = 300
# A larger picture takes too long to be drawn small while everybody waits.
LARGEST_PICTURE = 24_000_000


@dataclass
class _Picture:
    """What an owner sees, by part, each with the revision at which it last changed. `of`: what it was drawn of."""

    of: Any = None
    revision: int = 0
    parts: dict[str, tuple[Any, int]] = field(default_factory=dict)

    def update(self, parts: dict[str, Any]) -> None:
        changed = {name for name, value in parts.items() if self.parts.get(name, (None,))[0] != value}
        if changed or len(parts) != len(self.parts):
            self.revision += 1
        self.parts = {
            name: (value, self.revision) if name in changed else self.parts[name] for name, value in parts.items()
        }


class QueueFeed:
    """Answers tabs. Every method may be called from any thread and returns at once."""

    def __init__(self, service: Service):
        self._service = service
        self._began = time.time()
        self._epoch = secrets.token_hex(4)  # revisions of another start of the server mean nothing here
        self._lock = threading.Lock()
        self._pictures: dict[str, _Picture] = {}
        self._dismissed: set[str] = set()
        self._estimates: dict[Any, float | None] = {}
        self._learned = 0.0
        self._preview: tuple[np.ndarray | None, str] = (None, "")

    def answer(self, owner: str, epoch: Any = None, seen: Any = None) -> dict[str, Any]:
        """The parts that are newer than revision `seen` of `epoch`; everything where these are not ours."""
        with self._lock:
            picture = self._pictures.setdefault(owner, _Picture())
            self._draw(picture, owner)
            known = seen if epoch == self._epoch and isinstance(seen, int) else -1
            parts = {name: value for name, (value, revision) in picture.parts.items() if revision > known}
            return {"epoch": self._epoch, "revision": picture.revision, "parts": parts}

    def dismiss(self, job_id: str) -> None:
        """Show this job no longer among those that ended badly."""
        with self._lock:
            self._dismissed.add(job_id)
            for picture in self._pictures.values():
                picture.of = None

    def own(self, owner: str, jobs: Sequence[Job] | None = None) -> list[Job]:
        """The rows of an owner, in order: the running job, the waiting ones, then those that ended badly."""
        jobs = self._service.engine.jobs() if jobs is None else jobs
        mine = [job for job in jobs if job.owner == owner]
        return [job for job in mine if not job.finished] + [job for job in mine if self._is_notice(job)]

    def _is_notice(self, job: Job) -> bool:
        if job.id in self._dismissed:
            return False
        return job.state == "interrupted" or (job.state == "failed" and (job.ended or 0.0) >= self._began)

    def _draw(self, picture: _Picture, owner: str) -> None:
        engine = self._service.engine
        status, paused = engine.status, engine.paused
        running = "running" in {job.state for job in engine.jobs()[:1]}
        of = (engine.version, status, paused, int(time.time()) if running else 0)
        if picture.of == of:
            return
        picture.update(self._parts(owner, engine.jobs(), paused))
        picture.of = of

    def _parts(self, owner: str, jobs: list[Job], paused: bool) -> dict[str, Any]:
        text = self._service.text
        active = [job for job in jobs if not job.finished]
        rows = self.own(owner, jobs)
        mine = [job for job in rows if not job.finished]
        times = self._times(active, jobs)
        ends = {} if paused else self._ends(active, times)
        places = [at for at, job in enumerate(active) if job.owner == owner]
        listed = [*mine[:LISTED], *rows[len(mine) :][:LISTED]]
        parts: dict[str, Any] = {
            "head": queue_view.head(
                text,
                self._service.engine.status,
                mine=len(mine),
                others=len(active) - len(mine),
                before=places[0] if places else 0,
                paused=paused,
                notices=len(rows) > len(mine),
            ),
            "order": [job.id for job in listed],
            "foot": queue_view.unlisted(text, max(0, len(mine) - LISTED)),
            "clocks": {job.id: ends[job.id] for job in listed if job.id in ends},
            "busy": bool(active),
        }
        if mine and mine[-1].id in ends:
            parts["clocks"]["all"] = ends[mine[-1].id]
        groups = _groups(jobs, owner)
        for job in listed:
            seconds = times.get(job.id)
            row = Row(
                job,
                estimate=seconds if job.state == "queued" else None,
                left=seconds if job.state == "running" else None,
                held=paused and job.state == "queued",
                variation=_variation(groups, job),
                thumb=self._thumb(job),
            )
            parts[f"row:{job.id}"] = queue_view.row(text, row)
        return parts

    # Times

    def _times(self, active: list[Job], jobs: list[Job]) -> dict[str, float]:
        """Seconds that each takes, or that are left of the running one, as far as that is known."""
        learned = max((job.ended or 0.0 for job in jobs if job.state == "done"), default=0.0)
        if learned != self._learned:
            self._learned, self._estimates = learned, {}
        times = {}
        for job in active:
            seconds = self._remaining(job) if job.state == "running" else self._estimate(job.request)
            if seconds is not None:
                times[job.id] = seconds
        return times

    def _remaining(self, job: Job) -> float | None:
        try:
            return self._service.engine.remaining(job.id)
        except (EngineError, LookupError):  # it ended in this moment
            return None

    def _estimate(self, request: GenerationRequest) -> float | None:
        key = (
            *(request.modality, request.width, request.height, request.num_frames, request.seconds, request.fps),
            *(request.num_inference_steps, request.guidance, request.has_references),
        )
        if key not in self._estimates:
            try:
                self._estimates[key] = self._service.engine.estimate(request)
            except (RequestError, EngineError):
                return None
        if self._estimates[key] is None:  # the model may be there by now
            return self._estimates.pop(key)
        return self._estimates[key]

    @staticmethod
    def _ends(active: list[Job], times: dict[str, float]) -> dict[str, int]:
        """When each is done, in seconds since 1970, by the minute: so that it seldom changes."""
        ends, clock = {}, time.time()
        for job in active:
            if job.id not in times:
                break
            clock += times[job.id]
            ends[job.id] = math.ceil(clock / 60) * 60
        return ends

    def _thumb(self, job: Job) -> str:
        if job.preview is not None:
            if self._preview[0] is not job.preview:
                self._preview = (job.preview, queue_view.thumb(job.preview))
            return self._preview[1]
        image = job.request.image
        return _thumb_of(str(image)) if isinstance(image, str | Path) and not job.finished else ""


@lru_cache(maxsize=2 * LISTED)
def _thumb_of(path: str) -> str:
    """Of a first frame; "" where it cannot be read, which the run will say."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > LARGEST_PICTURE:
                return ""
            image.draft("RGB", queue_view.THUMB)
            return queue_view.thumb(image)
    except (OSError, ValueError, Image.DecompressionBombError):
        return ""


def _groups(jobs: list[Job], owner: str) -> dict[str, list[str]]:
    """The ids of the jobs that are variations of one another, in the order in which they were asked for."""
    groups: dict[str, list[str]] = {}
    for job in sorted(jobs, key=lambda job: job.created):
        if job.variations is not None and job.owner == owner:
            groups.setdefault(job.variations, []).append(job.id)
    return groups


def _variation(groups: dict[str, list[str]], job: Job) -> tuple[int, int] | None:
    members = groups.get(job.variations or "", [])
    return (members.index(job.id) + 1, len(members)) if len(members) > 1 else None
