"""A `Runner` whose model lives in worker processes, one for each device, that may die without harm to the app."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nava_core.engine.counting import TokenCounter
from nava_core.engine.group import Lost, WorkerGroup
from nava_core.engine.jobs import EngineError, JobError
from nava_core.engine.runner import Outcome, Progress, RunFailed, RunnerInfo, RunnerLost, Task
from nava_core.engine.source import PipelineSource
from nava_core.engine.wire import Cancel, Finished, Ready, Reported, Run
from nava_core.media import workshop_pattern
from nava_core.request import GenerationCancelled, RequestError

if TYPE_CHECKING:
    import numpy as np

logger = logging.getLogger(__name__)

CANCEL_INTERVAL = 0.05


class WorkerRunner:
    """Runs clips in `ranks` processes that work on one clip together.

    Args:
        source: the pipeline that every rank loads.
        ranks: one for each device; on GPUs at most as many as the machine has.
        worker: the module that the processes run.
        silence: seconds without a sign of life after which a rank counts as hung and the group is ended.
    """

    def __init__(
        self,
        source: PipelineSource,
        ranks: int = 1,
        *,
        worker: str = "nava_core.engine.worker",
        silence: float = 5.0,
    ):
        if ranks < 1:
            raise ValueError(f"ranks is {ranks}; give 1 or more, one for each device")
        self._source, self._ranks, self._worker, self._silence = source, ranks, worker, silence
        self._lock = threading.Lock()
        self._group: WorkerGroup | None = None
        self._info: RunnerInfo | None = None
        self._closed = False

    @property
    def pids(self) -> dict[int, int]:
        """Process ids by rank; empty while nothing is loaded."""
        group = self._group
        return {} if group is None or group.is_over else dict(group.pids)

    def start(self) -> RunnerInfo:
        """Start the processes and load the model, if that is not done. Raises EngineError.

        Processes that are killed while they load get a second chance, as a run does; those that say why they cannot
        load do not.
        """
        started = time.monotonic()
        message = self._load()
        if isinstance(message, Lost) and message.crashed and not self._closed:
            logger.warning("the model is loaded once more: %s", message.reason)
            message = self._load()
        if isinstance(message, Lost):
            raise EngineError(message.reason if self._closed else f"the model could not be loaded: {message.reason}")
        if message is not None:
            assert message.spec is not None
            counter = TokenCounter(message.tokenizer, message.spec.max_text_tokens)
            self._info = RunnerInfo(message.spec, counter)
            seconds = time.monotonic() - started
            logger.info("%s ready in %d processes after %.1f s", message.spec.name, self._ranks, seconds)
        assert self._info is not None
        return self._info

    def _load(self) -> Ready | Lost | None:
        """What comes of new processes; None where there are some that have loaded. Raises EngineError."""
        with self._lock:
            if self._closed:
                raise EngineError("the runner was closed")
            group = self._group
            if group is not None and group.is_over:
                group.end("it is over")  # waits until its processes are gone
            elif group is not None and self._info is not None:
                return None
            group = self._group = WorkerGroup(self._source, self._ranks, self._worker, self._silence)
        try:
            message: Ready | Lost = group.receive()
        except BaseException:
            group.end("starting was given up")
            raise
        return message

    def run(self, task: Task, report: Callable[[Progress], None], cancelled: threading.Event) -> Outcome:
        """Make one clip, on processes started for it if need be."""
        try:
            info = self.start()
        except EngineError as error:
            if self._closed:
                raise RunnerLost(str(error)) from error
            raise RunFailed(JobError(str(error), kind=error.kind)) from error
        group = self._group
        assert group is not None
        task = replace(task, request=task.request.resolve(info.spec))  # every rank must draw the same noise
        try:
            group.send(Run(task))
            result = self._follow(group, task, report, cancelled)
        except RunnerLost:
            raise
        except BaseException:
            # Whoever follows the run gave up on it; the processes must not stay behind with it.
            group.end("its run was given up")
            raise
        finally:
            if group.lost is not None:
                _remove_leftovers(task, group.pids.get(0))
        if isinstance(result, Outcome):
            return result
        raise GenerationCancelled if result is None else _as_exception(result)

    def speaker_embedding(self, reference: Path) -> np.ndarray:
        group = self._group
        if group is None or not group.is_ready:
            raise EngineError("the model is not loaded; try again in a moment")
        answer = group.ask(reference)
        if isinstance(answer, JobError):
            raise RequestError(answer.field, answer.message) if answer.field else EngineError(answer.message)
        return answer

    def unload(self) -> None:
        if self._group is not None:
            self._group.end("unloaded")

    def close(self) -> None:
        with self._lock:
            self._closed = True
            group = self._group
        if group is not None:
            group.end("the runner was closed")

    def _follow(
        self, group: WorkerGroup, task: Task, report: Callable[[Progress], None], cancelled: threading.Event
    ) -> Outcome | JobError | None:
        told = False
        while True:
            if cancelled.is_set() and not told:
                group.send(Cancel(task.job_id))
                told = True
            message: Any = group.receive(CANCEL_INTERVAL)
            match message:
                case Reported(task.job_id, progress):
                    report(progress)
                case Finished(task.job_id, result):
                    return result
                case Lost(_, JobError() as error):
                    return error
                case Lost(reason):
                    raise RunnerLost(reason)


def _as_exception(error: JobError) -> Exception:
    if error.kind == "request":
        return RequestError(error.field or "request", error.message)
    return RunFailed(error)


def _remove_leftovers(task: Task, pid: int | None) -> None:
    """What a process that was killed while it wrote the clip could not take away itself."""
    if pid is not None and task.output.parent.is_dir():
        for folder in task.output.parent.glob(workshop_pattern(pid)):
            shutil.rmtree(folder, ignore_errors=True)
