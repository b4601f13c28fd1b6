"""The thread that takes the first waiting job, has it made, and writes down how that ended."""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nava_core.engine.board import Board, Record
from nava_core.engine.disk import disk_full, disk_full_words, has_room, is_disk_full
from nava_core.engine.estimates import Pace, RunTimes, settings_of
from nava_core.engine.jobs import DiskFullError, EngineError, EngineStatus, JobError, JobState, JobStateError
from nava_core.engine.runner import Outcome, Progress, RunFailed, Runner, RunnerInfo, RunnerLost, Task
from nava_core.engine.store import JobStore, StoredJob
from nava_core.media import read_recipe
from nava_core.request import GenerationCancelled, GenerationRequest, RequestError, ResolvedRequest

if TYPE_CHECKING:
    import numpy as np

logger = logging.getLogger(__name__)

# After so many jobs in a row that took their runner with them, the rest of the queue is spared.
LOST_IN_A_ROW = 2
CLOSED = JobError(
    "NAVA Studio was closed while this clip was being made; it is made again, from the same seed, at the next start",
    kind="interrupted",
)


@dataclass(frozen=True)
class Ending:
    """How a run ended."""

    state: JobState
    result: Path | None = None
    recipe: dict[str, Any] | None = None
    error: JobError | None = None


class Dispatcher:
    """Runs the queue of `store` on `runner`, one job at a time, and shows it on `board`.

    halted: why it stopped by itself to take jobs, or "". status and info: see `Engine`. fresh: ids of the jobs that
    were submitted to this process.
    """

    def __init__(self, runner: Runner, store: JobStore, board: Board, output_dir: Path, idle_minutes: float | None):
        self.status = EngineStatus("loading")
        self.info: RunnerInfo | None = None
        self.history: list[RunTimes] = []
        self.paused = store.paused
        self.halted = ""
        self.fresh: set[str] = set()
        self._runner, self._store, self._board, self._output_dir = runner, store, board, output_dir
        self._idle_seconds = None if idle_minutes is None else idle_minutes * 60
        self._changed = board.changed
        self._loaded = self._wanted = False
        self._hearing = 0  # voices at this moment
        self._lost_in_a_row = 0
        self._learned: tuple[str, RunTimes] | None = None
        self._unsaved: list[Callable[[], object]] = []
        self._thread = threading.Thread(target=self._work, name="nava-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def over(self) -> bool:
        return self.status.state in ("failed", "closed")

    def pause(self, paused: bool) -> None:
        """Stop to take jobs, or go on. Raises DiskFullError."""
        with self._changed:
            self._store.set_paused(paused)
            self.paused = paused
            if not paused:
                self.try_again()
            self._board.touch()

    def try_again(self) -> None:
        """Somebody wants something: if the queue has paused itself, the reason may be gone."""
        with self._changed:
            self.halted = ""
            if self.status.state == "ready":
                self.status = EngineStatus("ready")
            self._board.touch()

    def stop(self, interrupt: bool) -> None:
        """Take no more jobs and end the running one: as interrupted, or else as cancelled."""
        with self._changed:
            self.status = EngineStatus("closed", "the engine was closed")
            running = None if self._board.running is None else self._board.record(self._board.running)
            if running is not None:
                running.cancelled.set()
            self._board.touch()
        self._runner.close()
        self._thread.join(timeout=5)
        if running is not None:  # a step that takes longer than that is left alone; the process ends anyway
            self._end(running, Ending("interrupted", error=CLOSED) if interrupt else Ending("cancelled"))
        try:
            self.write_unsaved()
        except DiskFullError as error:
            logger.error("the next start cannot know of the last changes: %s", error)

    def speaker_embedding(self, reference: Path) -> np.ndarray:
        """See `Engine`; a model whose memory was freed is loaded for it. Raises RequestError or EngineError."""
        with self._kept_loaded():
            with self._changed:
                if not self._loaded and not self.over:
                    self._wanted = True
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._loaded or not self._wanted or self.over)
                if self.over or not self._loaded or self.info is None:
                    raise EngineError(self.status.message or "the model is not loaded; try again in a moment")
                if not self.info.spec.accepts_speakers:
                    raise EngineError(
                        f"{self.info.spec.name} has no speaker encoder, so it cannot hear a voice; load a bundle that "
                        "holds a ReDimNet release (<name>.pt)"
                    )
            return self._runner.speaker_embedding(reference)

    @contextmanager
    def _kept_loaded(self) -> Iterator[None]:
        """No idle time that ends meanwhile frees the model's memory."""
        with self._changed:
            self._hearing += 1
        try:
            yield
        finally:
            with self._changed:
                self._hearing -= 1

    def save(self, action: Callable[[], object]) -> None:
        """Write a change that has happened already; later, if the disk is full now."""
        with self._changed:  # as one: whoever resumes in between would be paused again by an error of before
            try:
                self.write_unsaved()
                action()
            except JobStateError as error:
                logger.warning("%s", error)
            except (DiskFullError, sqlite3.Error) as error:
                if self.status.state == "closed":
                    logger.warning("not written after the end: %s", error)
                    return
                self._unsaved.append(action)
                self._halt(str(error))

    def write_unsaved(self) -> None:
        """Catch up with what a full disk has held back. Raises DiskFullError if it still does."""
        with self._changed:
            while self._unsaved:
                try:
                    self._unsaved[0]()
                except JobStateError as error:
                    logger.warning("%s", error)
                del self._unsaved[0]

    def finished_clip(self, job: StoredJob) -> tuple[Path, dict[str, Any]] | None:
        """The complete clip of an earlier run of exactly this job, and its recipe."""
        if job.output is None:
            return None
        asked = json.loads(json.dumps(job.request.to_recipe()))
        for suffix in (".mp4", ".wav"):
            path = job.output.with_name(job.output.name + suffix)
            if not path.is_file():
                continue
            try:
                recipe = read_recipe(path)
            except ValueError as error:
                logger.warning("%s", error)
                continue
            if recipe.get("job") == job.id and all(recipe.get(name) == value for name, value in asked.items()):
                return path, recipe
        return None

    # What follows runs on the thread.

    def _work(self) -> None:
        try:
            self._load()
        except EngineError as error:
            self._give_up(str(error))
            return
        with self._changed:
            if self.status.state == "loading":
                self.status = EngineStatus("ready")
            self._board.touch()
        try:
            self._serve()
        except BaseException as error:
            logger.exception("the queue's thread ends")
            with self._changed:
                if not self.over:
                    message = f"the engine failed ({type(error).__name__}: {error}); start NAVA Studio again"
                    self.status = EngineStatus("failed", message)
                self._board.touch()

    def _serve(self) -> None:
        while True:
            record = self._next()
            if self.over:
                return
            if record is None:
                self._load_or_unload()
                continue
            self._end(record, self._make(record))
            if self._learned is not None:
                model, times = self._learned
                self._learned = None
                self.save(partial(self._store.add_run, model, times.to_json()))

    def _load(self) -> None:
        """Raises EngineError."""
        if self._loaded:
            return
        started = time.monotonic()
        try:
            info = self._runner.start()
        except EngineError:
            if self.status.state != "closed":  # who closes the engine need not wait for the model
                logger.exception("the model could not be loaded")
            raise
        except Exception as error:
            logger.exception("the model could not be loaded")
            raise EngineError(f"the model could not be loaded: {type(error).__name__}: {error}") from error
        logger.info("%s loaded in %.1f s", info.spec.name, time.monotonic() - started)
        with self._changed:
            self._loaded, self.info = True, info
            self.save(partial(self._store.adopt, info.spec.name))
            self.history = [RunTimes.from_json(times) for times in self._store.runs(info.spec.name)]

    def _load_or_unload(self) -> None:
        """There is no job: somebody wants the model for something else, or nobody has wanted it for long enough."""
        if not self._wanted:
            with self._changed:
                if self._hearing:
                    return
                self._loaded = False
            logger.info("nothing to do: the model's memory is freed until the next job")
            self._runner.unload()
            return
        try:
            self._load()
        except EngineError as error:
            self._halt(str(error))  # a job would fare no better
        finally:
            with self._changed:
                self._wanted = False
                self._board.touch()

    def _give_up(self, message: str) -> None:
        """The model cannot be had. Who is waiting here is told; jobs of earlier days stay in the queue."""
        with self._changed:
            if self.status.state != "loading":
                return
            self.status = EngineStatus("failed", message)
            for job_id in [job_id for job_id in self._board.order if job_id in self.fresh]:
                self._claim(job_id)
                self._end(self._board.record(job_id), Ending("failed", error=JobError(message, kind="model")))
            self._board.touch()

    def _next(self) -> Record | None:
        """The next job, running; None when there was none for long enough, or the model is wanted, or all is over."""
        with self._changed:
            while not self.over:
                timeout = self._idle_seconds if self._loaded else None
                if not self._changed.wait_for(lambda: self.over or self._wanted or self._may_start(), timeout):
                    return None
                self._wanted = self._wanted and not self._loaded
                if self.over or self._wanted:
                    return None
                if not has_room(self._output_dir):
                    self._halt(disk_full_words(self._output_dir, "a clip"))
                elif (record := self._claim(self._board.order[0])) is not None:
                    return record
        return None

    def _may_start(self) -> bool:
        return bool(self._board.order) and not self.paused and not self.halted

    def _claim(self, job_id: str) -> Record | None:
        output = self._output_dir / f"{time.strftime('%Y%m%d-%H%M%S')}-{job_id}"
        try:
            self.write_unsaved()
            stored = self._store.claim(job_id, output)
        except (DiskFullError, sqlite3.Error) as error:
            self._halt(str(error))
            return None
        record = self._board.record(job_id)
        self._board.begin(record, stored.attempts)
        return record

    def _make(self, record: Record) -> Ending:
        ending = self._made(record)
        self._lost_in_a_row = self._lost_in_a_row + 1 if ending.error and ending.error.kind == "lost" else 0
        # A full disk, or a model that cannot be loaded again: the next job would fare no better.
        hopeless = ending.error is not None and ending.error.kind in ("disk", "model")
        if ending.error and (hopeless or self._lost_in_a_row >= LOST_IN_A_ROW):
            self._halt(ending.error.message)
        if self.status.state == "closed" and ending.state != "done" and not record.job.cancelling:
            return Ending("interrupted", error=CLOSED)
        return ending

    def _made(self, record: Record) -> Ending:
        try:
            stored = self._store.job(record.job.id)
            clip = self.finished_clip(stored) if stored.attempts > 1 else None
            if clip is None:
                self._load()
                if (another := self._asked_of_another(stored)) is not None:
                    return Ending("interrupted", error=another)
                outcome = self._run(record, self._task(record, stored))
                clip = outcome.path, outcome.recipe
            return Ending("done", *clip)
        except GenerationCancelled:
            return Ending("cancelled")
        except RequestError as error:
            failure = JobError(str(error), error.field, "request")
        except RunFailed as error:
            failure = error.error
        except RunnerLost as error:
            failure = JobError(f"what was making this clip was lost twice: {error}", kind="lost")
        except EngineError as error:
            failure = JobError(str(error), kind=error.kind)
        except Exception as error:
            logger.exception("job %s failed", record.job.id)
            full = is_disk_full(error)
            failure = disk_full(self._output_dir, "the clip") if full else JobError(f"{type(error).__name__}: {error}")
        return Ending("failed", error=failure)

    def _asked_of_another(self, stored: StoredJob) -> JobError | None:
        """Why the job is laid aside: another model would make another clip than was asked for, and nobody might see."""
        assert self.info is not None
        model = self.info.spec.name
        if stored.model in (None, model):
            return None
        return JobError(
            f"this clip was asked of {stored.model}, and {model} is loaded now: it goes on by itself when NAVA Studio "
            f"is started with {stored.model}; let it go on here to make it with {model}",
            kind="interrupted",
        )

    def _task(self, record: Record, stored: StoredJob) -> Task:
        """The run, with its request resolved and written down before it begins. Raises RequestError."""
        assert self.info is not None and stored.output is not None
        request: GenerationRequest = stored.request
        if not isinstance(request, ResolvedRequest):
            request = request.resolve(self.info.spec)
            self._store.resolved(stored.id, self._store.pack(request))
            self._board.publish(record, request=request, steps=request.num_inference_steps)
        else:
            request.resolve(self.info.spec)  # the model may be another one since
        return Task(stored.id, request, stored.output)

    def _run(self, record: Record, task: Task) -> Outcome:
        """Raises what `Runner.run` raises; RunnerLost only the second time."""
        try:
            return self._run_once(record, task)
        except RunnerLost as error:
            self._loaded = False
            if record.cancelled.is_set():
                raise GenerationCancelled from error
            logger.warning("job %s is started again, because what ran it was lost: %s", task.job_id, error)
        self._store.again(task.job_id)
        self._board.publish(record, phase="encode", step=0, preview=None, attempts=record.job.attempts + 1)
        self._load()
        try:
            return self._run_once(record, task)
        except RunnerLost:
            self._loaded = False
            raise

    def _run_once(self, record: Record, task: Task) -> Outcome:
        record.pace, record.pace_began = Pace(), time.monotonic()

        def report(progress: Progress) -> None:
            now = time.monotonic() - record.pace_began
            if progress.phase == "denoise":
                record.pace = record.pace.at_step(progress.step, now)
            elif progress.phase in ("decode", "mux"):
                record.pace = record.pace.at_decode(now)
            picture = {} if progress.preview is None else {"preview": progress.preview}
            steps = progress.steps or record.job.steps
            self._board.publish(record, phase=progress.phase, step=progress.step, steps=steps, **picture)

        outcome = self._runner.run(task, report, record.cancelled)
        self._learn(task.request, record.pace, time.monotonic() - record.pace_began)
        return outcome

    def _learn(self, request: GenerationRequest, pace: Pace, seconds: float) -> None:
        """For the next estimate now; on disk after the job's end, which somebody waits for."""
        assert self.info is not None
        times = pace.times(settings_of(request, self.info.spec), seconds)
        if times is not None:
            self._learned = self.info.spec.name, times
            with self._changed:
                self.history = [*self.history, times]

    # Endings

    def _end(self, record: Record, ending: Ending) -> None:
        with self._changed:
            if record.job.state != "running":
                return
            # What is shown is what is kept: its seconds do not hold those that keeping it takes.
            found: dict[str, Any] = {
                "result": ending.result,
                "recipe": ending.recipe,
                "error": ending.error,
                "seconds": record.elapsed,
            }
            self.save(lambda: self._store.finish(record.job.id, ending.state, **found))
            self._board.end(record, state=ending.state, **found)

    def _halt(self, message: str) -> None:
        """Take no further job until somebody asks: each would spend its time and fail for the same reason."""
        with self._changed:
            logger.error("the queue pauses: %s", message)
            self.halted = message
            if self.status.state == "ready":
                self.status = EngineStatus("ready", message)
            self._board.touch()
