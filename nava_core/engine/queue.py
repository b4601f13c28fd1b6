"""The durable queue: an engine whose jobs outlive the page, the process and the machine."""

from __future__ import annotations

import logging
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nava_core.engine.board import Board
from nava_core.engine.dispatcher import Dispatcher
from nava_core.engine.estimates import Estimate, predict, remaining, settings_of
from nava_core.engine.jobs import EngineError, EngineStatus, Job
from nava_core.engine.runner import Runner
from nava_core.engine.store import JobStore
from nava_core.media import workshop_pattern
from nava_core.request import GenerationRequest, ModelSpec, RequestError

if TYPE_CHECKING:
    import numpy as np

    from nava_core.conditioning.text import TokenCount

logger = logging.getLogger(__name__)


class QueueEngine:
    """Runs requests in order on `runner`, and keeps them in the database at `database`; see `Engine`.

    Whatever happens to the process, at any moment: no job vanishes, and none is made twice to a different clip, for its
    seed and its files are kept before it may run. What was running is `interrupted` at the next start, or done if its
    clip was complete. So is, when its turn comes, a job that was asked of another model than the one that is loaded.

    Args:
        output_dir: where clips are written, made on first use.
        database: None keeps the jobs in memory; `close` cancels them then.
        keep: how many finished jobs are remembered (their clips stay on disk in any case).
        idle_minutes: without work for so long, the runner frees the model's memory; None never does.
        go_on: interrupted jobs go on by themselves at the start, unless they were interrupted twice: a job that ends
            the process must not do so for ever.

    Raises:
        EngineError: if the database cannot be used, or another process owns it.
    """

    def __init__(
        self,
        runner: Runner,
        output_dir: str | Path = "outputs",
        database: str | Path | None = None,
        *,
        keep: int = 200,
        idle_minutes: float | None = None,
        go_on: bool = True,
    ):
        self.output_dir = Path(output_dir).absolute()
        self._durable = database is not None
        self._keep = keep
        self._closed = False
        self._store = JobStore(None if database is None else Path(database).absolute())
        self._board = Board()
        self._changed = self._board.changed
        self._dispatcher = Dispatcher(runner, self._store, self._board, self.output_dir, idle_minutes)
        try:
            self._take_over(go_on)
        except BaseException:
            self._store.close()
            raise
        self._dispatcher.start()

    def _take_over(self, go_on: bool) -> None:
        """Put in order what the last owner left, and show it."""
        self._store.recover(self._dispatcher.finished_clip, go_on)
        jobs = self._store.jobs()
        for job in jobs:
            self._board.add(job)
        self._board.set_order(self._store.order())
        remove_leftovers(self.output_dir, [job.id for job in jobs if job.attempts])

    @property
    def status(self) -> EngineStatus:
        return self._dispatcher.status

    @property
    def spec(self) -> ModelSpec:
        self.wait_until_loaded()
        info = self._dispatcher.info
        if info is None:
            raise EngineError(self.status.message)
        return info.spec

    def wait_until_loaded(self) -> EngineStatus:
        """The status once it is not "loading" any more."""
        with self._changed:
            self._changed.wait_for(lambda: self.status.state != "loading")
            return self.status

    def count_tokens(self, prompt: str) -> TokenCount | None:
        info = self._dispatcher.info
        return None if info is None else info.count_tokens(prompt)

    def speaker_embedding(self, reference: str | Path) -> np.ndarray:
        return self._dispatcher.speaker_embedding(Path(reference).absolute())

    # Watching

    def job(self, job_id: str) -> Job:
        return self._board.job(job_id)

    def jobs(self) -> list[Job]:
        return self._board.jobs()

    def events(self, job_id: str) -> Iterator[Job]:
        return self._board.events(job_id)

    @property
    def version(self) -> int:
        return self._board.version

    def changes(self) -> Iterator[int]:
        return self._board.changes()

    @property
    def paused(self) -> bool:
        return self._dispatcher.paused or bool(self._dispatcher.halted)

    # Changing

    def submit(self, request: GenerationRequest, owner: str = "", variations: str | None = None) -> str:
        self._refuse_if_over()
        packed = self._packed(request)
        with self._changing():
            self._forget_old()
            stored = self._store.submit(secrets.token_hex(8), packed, self._model, owner, variations)
            return self._added(stored.id)

    def duplicate(self, job_id: str) -> str:
        with self._changing():
            return self._added(self._store.duplicate(job_id, secrets.token_hex(8), self._model).id)

    def edit(self, job_id: str, request: GenerationRequest) -> None:
        self._refuse_if_over()
        packed = self._packed(request)
        with self._changing():
            record = self._board.record(job_id)
            edited = self._store.edit(job_id, packed, self._model).request
            self._board.publish(record, request=edited, steps=edited.num_inference_steps or 0, attempts=0)

    def move(
        self, job_id: str, *, before: str | None = None, after: str | None = None, to: Literal["front", "end"] = "end"
    ) -> None:
        if before is not None and after is not None:
            raise ValueError(f"before is {before!r} and after is {after!r}; give one of them")
        with self._changing():
            behind = after is not None or (before is None and to == "end")
            self._store.move(job_id, before if before is not None else after, behind)
            self._board.set_order(self._store.order())

    def reorder(self, job_ids: Sequence[str]) -> None:
        with self._changing():
            self._store.reorder(job_ids)
            self._board.set_order(self._store.order())

    def cancel(self, job_id: str) -> None:
        record = self._board.record(job_id)
        with self._changed:
            if record.job.state == "running":
                record.cancelled.set()
                self._board.publish(record, cancelling=True)
                self._dispatcher.save(partial(self._store.cancel, job_id))
            elif record.job.state in ("queued", "interrupted"):
                self._dispatcher.write_unsaved()
                ended = self._store.cancel(job_id)
                self._board.publish(record, state="cancelled", ahead=0, ended=ended.ended, error=None)
                self._board.set_order(self._store.order())

    def retry(self, job_id: str) -> None:
        record = self._board.record(job_id)
        with self._changing():
            self._board.begin_anew(record, self._store.retry(job_id, self._model))
            self._board.set_order(self._store.order())
            self._dispatcher.fresh.add(job_id)
            self._dispatcher.try_again()

    def pause(self) -> None:
        self._dispatcher.pause(True)

    def resume(self) -> None:
        self._dispatcher.pause(False)

    def close(self) -> None:
        with self._changed:
            if self._closed:
                return
            self._closed = True
            if not self._durable:
                for job in self.jobs():
                    self.cancel(job.id)
        self._dispatcher.stop(interrupt=self._durable)
        with self._changed:
            self._board.close()
            self._store.close()

    # Estimating

    def estimate(self, request: GenerationRequest) -> float | None:
        estimate = self._estimate(request)
        return None if estimate is None else estimate.seconds

    def remaining(self, job_id: str) -> float | None:
        with self._changed:
            job = self._board.job(job_id)
            if job.finished:
                return None
            before = [] if job.state == "running" else self._board.order[: self._board.order.index(job_id) + 1]
            try:
                running = [] if self._board.running is None else [self._running_seconds(self._board.running)]
                waiting = [self.estimate(self._board.job(other).request) for other in before]
            except RequestError:  # one that was taken before the model was known; it fails when its turn comes
                return None
        seconds = [*running, *waiting]
        return None if None in seconds else sum(part for part in seconds if part is not None)

    def _running_seconds(self, job_id: str) -> float | None:
        record = self._board.record(job_id)
        estimate, steps = self._estimate(record.job.request), record.job.steps
        return remaining(estimate, steps, record.pace, record.pace_elapsed)

    def _estimate(self, request: GenerationRequest) -> Estimate | None:
        info = self._dispatcher.info
        if info is None:
            return None
        return predict(self._dispatcher.history, settings_of(request.resolve(info.spec), info.spec))

    # Helpers

    @property
    def _model(self) -> str | None:
        """The model that is asked now; None while it loads."""
        info = self._dispatcher.info
        return None if info is None else info.spec.name

    def _packed(self, request: GenerationRequest) -> str:
        """The request with its seed, checked as far as it can be, and its files copied. Raises RequestError."""
        if request.seed is None:
            request = replace(request, seed=secrets.randbits(32))
        if self._dispatcher.info is not None:
            request = request.resolve(self._dispatcher.info.spec)
        return self._store.pack(request)

    def _added(self, job_id: str) -> str:
        self._dispatcher.fresh.add(job_id)
        self._board.add(self._store.job(job_id))
        self._board.set_order(self._store.order())
        self._dispatcher.try_again()
        return job_id

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Nothing else happens meanwhile, and the database knows what has happened so far."""
        with self._changed:
            self._refuse_if_over()
            self._dispatcher.write_unsaved()
            yield

    def _refuse_if_over(self) -> None:
        if self._dispatcher.over:
            raise EngineError(self.status.message)

    def _forget_old(self) -> None:
        self._board.forget(self._store.forget(self._keep))


def remove_leftovers(output_dir: Path, job_ids: list[str]) -> None:
    """Delete the temporary folders that dead runs of these jobs left beside their clips (see `media`)."""
    for folder in output_dir.glob(workshop_pattern()):
        if folder.is_dir() and any(job_id in folder.name for job_id in job_ids):
            logger.info("removing %s, left by a run that was ended", folder)
            shutil.rmtree(folder, ignore_errors=True)
