"""What everybody may know of the jobs, in memory: their snapshots, and who waits for the next one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from nava_core.engine.estimates import Pace
from nava_core.engine.jobs import Job, UnknownJob
from nava_core.engine.store import StoredJob


@dataclass
class Record:
    """A job's snapshots, and its run as long as it lasts.

    began: when the job was started; pace_began: when the model began with it, this time. Both on the monotonic clock.
    """

    job: Job
    history: list[Job]
    cancelled: threading.Event = field(default_factory=threading.Event)
    began: float | None = None
    pace: Pace = field(default_factory=Pace)
    pace_began: float = 0.0

    @property
    def elapsed(self) -> float:
        return self.job.seconds if self.began is None else time.monotonic() - self.began

    @property
    def pace_elapsed(self) -> float:
        return time.monotonic() - self.pace_began if self.pace_began else 0.0


class Board:
    """The jobs of one engine. Every method may be called from any thread; `changed` guards more than one call.

    order: ids of the waiting jobs, the next one first. running: the id of the one that runs.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.version = 0
        self.closed = False
        self.order: list[str] = []
        self.running: str | None = None
        self._records: dict[str, Record] = {}

    def add(self, stored: StoredJob) -> Record:
        job = snapshot(stored)
        with self.changed:
            record = self._records[stored.id] = Record(job, [job])
            self.touch()
            return record

    def record(self, job_id: str) -> Record:
        """Raises UnknownJob."""
        with self.changed:
            if job_id not in self._records:
                raise UnknownJob(job_id)
            return self._records[job_id]

    def forget(self, job_ids: list[str]) -> None:
        with self.changed:
            for job_id in job_ids:
                self._records.pop(job_id, None)
            self.touch()

    def job(self, job_id: str) -> Job:
        with self.changed:
            return _now(self.record(job_id))

    def jobs(self) -> list[Job]:
        """The running one, the waiting ones in order, the others, the newest first."""
        with self.changed:
            first = dict.fromkeys([*([self.running] if self.running else []), *self.order])
            others = [job_id for job_id in reversed(self._records) if job_id not in first]
            return [_now(self._records[job_id]) for job_id in (*first, *others)]

    def publish(self, record: Record, **changes: Any) -> None:
        """The job's next snapshot."""
        with self.changed:
            # Only the newest snapshot keeps its picture: a long job must not pile them up.
            record.history[-1] = replace(record.history[-1], preview=None)
            record.job = replace(record.job, **{"seconds": record.elapsed, **changes})
            record.history.append(record.job)
            self.touch()

    def begin(self, record: Record, attempts: int) -> None:
        """The first waiting job starts to run."""
        with self.changed:
            self.running = record.job.id
            record.began = time.monotonic()
            self.publish(record, state="running", phase="encode", ahead=0, attempts=attempts)
            self.set_order([job_id for job_id in self.order if job_id != record.job.id])

    def end(self, record: Record, **changes: Any) -> None:
        """The running job is at rest."""
        with self.changed:
            seconds, record.began = record.elapsed, None
            self.running = None
            ending = {"phase": None, "preview": None, "cancelling": False, "ended": time.time(), "seconds": seconds}
            self.publish(record, **{**ending, **changes})
            self.set_order(self.order)

    def begin_anew(self, record: Record, stored: StoredJob) -> None:
        """The job starts a new life: who followed the old one has seen its end."""
        with self.changed:
            record.job = snapshot(stored)
            record.history = [record.job]
            record.cancelled, record.began = threading.Event(), None
            record.pace, record.pace_began = Pace(), 0.0
            self.touch()

    def set_order(self, order: list[str]) -> None:
        """Renumber the waiting jobs."""
        with self.changed:
            self.order = order
            for ahead, job_id in enumerate(order, start=1 if self.running else 0):
                record = self._records[job_id]
                if record.job.ahead != ahead:
                    self.publish(record, ahead=ahead)
            self.touch()

    def touch(self) -> None:
        with self.changed:
            self.version += 1
            self.changed.notify_all()

    def close(self) -> None:
        """End everybody's waiting."""
        with self.changed:
            self.closed = True
            self.touch()

    def events(self, job_id: str) -> Iterator[Job]:
        return self._follow(self.record(job_id).history)

    def changes(self) -> Iterator[int]:
        seen = -1
        while True:
            with self.changed:
                while self.version <= seen and not self.closed:
                    self.changed.wait()
                if self.version <= seen:
                    return
                seen = self.version
            yield seen

    def _follow(self, history: list[Job]) -> Iterator[Job]:
        seen = 0
        while True:
            with self.changed:
                while len(history) <= seen and not self.closed:
                    self.changed.wait()
                fresh = history[seen:]
            yield from fresh
            seen += len(fresh)
            if not fresh or fresh[-1].finished:
                return


def snapshot(stored: StoredJob) -> Job:
    """A row as everybody sees it."""
    steps = stored.request.num_inference_steps or 0
    return Job(
        id=stored.id,
        request=stored.request,
        state=stored.state,
        step=steps if stored.state == "done" else 0,
        steps=steps,
        result=stored.result,
        recipe=stored.recipe,
        error=stored.error,
        seconds=stored.seconds,
        created=stored.created,
        ended=stored.ended,
        attempts=stored.attempts,
        owner=stored.owner,
        variations=stored.variations,
    )


def _now(record: Record) -> Job:
    return replace(record.job, seconds=record.elapsed) if record.job.state == "running" else record.job
