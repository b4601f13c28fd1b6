"""Prompts being rewritten, behind the page: each goes on by itself, whoever watches, and can be looked up by its id."""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from nava_core.engine.jobs import EngineError, JobError
from nava_core.engine.runner import Outcome, Progress, Runner, RunnerInfo, Task
from nava_core.request import GenerationCancelled, RequestError
from rewriter import BackendUnavailable, RewriteCounts, RewriteError, Rewriter, RewriteResult
from rewriter.results import Tally

logger = logging.getLogger(__name__)

State = Literal["starting", "waiting", "thinking", "writing", "submitting", "done", "failed", "cancelled"]
FINISHED: tuple[State, ...] = ("done", "failed", "cancelled")
KEEP = 200
TURN_INTERVAL = 0.1
IN_PROCESS = "transformers"


class UnknownRewriting(LookupError):
    """No rewriting has this id: it is from before the server's last start, or was forgotten after many later ones."""


@dataclass(frozen=True)
class Rewriting:
    """One moment of one rewriting.

    state: "waiting" is for a clip that needs the device; "submitting" hands the caption on. text: what has been written
    so far, unchecked; with `result` there is a caption that was. label: the backend in words. asked: replies so far
    that were not good enough. for_clip: a clip is to be made from the caption; job_id: its job. error: why it failed;
    with a result, why that could not be handed on. counts: how the desk's prompts to a language model went, up to this
    one; None where rules alone wrote. replaced: another one took its place. owner: who asked for it, as they logged in.
    """

    id: str
    prompt: str
    state: State = "starting"
    text: str = ""
    label: str = ""
    asked: int = 0
    result: RewriteResult | None = None
    for_clip: bool = False
    job_id: str | None = None
    error: JobError | None = None
    counts: RewriteCounts | None = None
    created: float = 0.0
    replaced: bool = False
    owner: str = ""

    @property
    def finished(self) -> bool:
        return self.state in FINISHED


@dataclass
class _Record:
    now: Rewriting
    parts: list[str] = field(default_factory=list)
    task: asyncio.Task[None] | None = None
    ended: threading.Event = field(default_factory=threading.Event)


class RewriteDesk:
    """Rewrites prompts on a thread of its own, several at once where the backend can.

    make: returns the rewriter; called on first use and again whenever the backend was not there, so that a server which
    was started meanwhile is found. keep: how many finished rewritings are remembered.
    """

    def __init__(self, make: Callable[[], Rewriter], keep: int = KEEP):
        self._make, self._keep = make, keep
        self._rewriter: Rewriter | None = None
        self._tally = Tally()  # of all rewriters that were made
        self._making = asyncio.Lock()
        self._records: dict[str, _Record] = {}
        self._guard = threading.Lock()
        self._turn = threading.Condition()
        self._writers = 0
        self._clip = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="nava-rewriter", daemon=True)
        self._thread.start()

    def start(
        self,
        prompt: str,
        then: Callable[[RewriteResult], str] | None = None,
        replaces: str | None = None,
        owner: str = "",
    ) -> str:
        """Begin to rewrite; returns the rewriting's id.

        then: called with the result on a thread of its own; returns the id of the job that it started. It may raise
        RequestError or EngineError. replaces: the id of one that is not wanted any more.
        Raises RequestError where there is nothing to rewrite.
        """
        if not prompt.strip():
            raise RequestError("prompt", "the prompt is empty; describe the scene in a sentence or more")
        rewriting = Rewriting(secrets.token_hex(8), prompt, for_clip=then is not None, created=time.time(), owner=owner)
        record = _Record(rewriting)
        with self._guard:
            old = self._records.get(replaces or "")
            if old is not None and old.now.owner != owner:
                old = replaces = None
            if old is not None:
                old.now = replace(old.now, replaced=True)
            self._records[rewriting.id] = record
            self._forget_old()
        if replaces is not None:
            self.cancel(replaces)
        self._loop.call_soon_threadsafe(self._begin, record, then)
        return rewriting.id

    def rewriting(self, rewriting_id: str, owner: str | None = None) -> Rewriting:
        """How it stands now. owner: whose it has to be; None for anybody's. Raises UnknownRewriting."""
        with self._guard:
            record = self._records.get(rewriting_id)
            if record is None or owner not in (None, record.now.owner):
                raise UnknownRewriting(f"no rewriting has the id {rewriting_id!r}")
            return record.now if record.now.result else replace(record.now, text="".join(record.parts))

    def cancel(self, rewriting_id: str, owner: str | None = None) -> None:
        """Stop one, if it is known, the owner's (None: anybody's) and still writes."""
        with self._guard:
            record = self._records.get(rewriting_id)
        if record is not None and owner in (None, record.now.owner) and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._cancel, record)

    def close(self) -> None:
        """Stop all of them, and the thread."""
        if not self._thread.is_alive():
            return
        for record in list(self._records.values()):
            self.cancel(record.now.id)
            record.ended.wait(timeout=5)
        asyncio.run_coroutine_threadsafe(self._let_go(), self._loop).result(timeout=5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)
        self._loop.close()

    @contextmanager
    def clip_being_made(self, cancelled: threading.Event) -> Iterator[None]:
        """While a clip is made, no model of this process is on the device, or comes to it.

        Waits for one that writes, and for those that wait to: a long queue must not keep them waiting for its end.
        Raises GenerationCancelled once `cancelled` is set.
        """
        with self._turn:
            while self._writers:
                if cancelled.is_set():
                    raise GenerationCancelled
                self._turn.wait(TURN_INTERVAL)
            self._clip = True
        try:
            if self._rewriter is not None:
                self._rewriter.park()
            yield
        finally:
            with self._turn:
                self._clip = False

    # What follows runs on the desk's thread.

    def _begin(self, record: _Record, then: Callable[[RewriteResult], str] | None) -> None:
        record.task = self._loop.create_task(self._work(record, then))
        record.task.add_done_callback(lambda _: self._end(record))

    def _end(self, record: _Record) -> None:
        if not record.now.finished:  # stopped before its first step
            self._publish(record, state="cancelled")
        record.ended.set()

    def _cancel(self, record: _Record) -> None:
        if record.task is not None and record.now.state not in ("submitting", *FINISHED):
            record.task.cancel()

    async def _work(self, record: _Record, then: Callable[[RewriteResult], str] | None) -> None:
        try:
            result = await self._rewrite(record)
            if then is None:
                self._publish(record, state="done")
            else:
                self._publish(record, state="done", job_id=await asyncio.to_thread(then, result))
        except asyncio.CancelledError:
            self._publish(record, state="cancelled")
        except RewriteError as error:
            self._publish(record, state="failed", error=JobError(str(error), kind="model"))
        except RequestError as error:
            self._publish(record, state="failed", error=JobError(str(error), error.field, "request"))
        except EngineError as error:
            self._publish(record, state="failed", error=JobError(str(error), kind=error.kind))
        except Exception as error:
            logger.exception("rewriting %s failed", record.now.id)
            self._publish(record, state="failed", error=JobError(f"{type(error).__name__}: {error}"))

    async def _rewrite(self, record: _Record) -> RewriteResult:
        rewriter = await self._ready()
        try:
            async with self._turn_of(rewriter, record):
                self._publish(record, state="thinking", label=rewriter.label)
                return await self._follow(record, rewriter)
        except RewriteError as error:
            self._tally.add_failure()
            # The next prompt looks anew for what is there; a prompt that is refused unloads no model.
            if isinstance(error, BackendUnavailable) and self._rewriter is rewriter:
                self._rewriter = None
            raise

    async def _follow(self, record: _Record, rewriter: Rewriter) -> RewriteResult:
        async with aclosing(rewriter.stream(record.now.prompt)) as events:
            async for event in events:
                if event.kind == "text":
                    record.parts.append(event.text)
                    self._publish(record, state="writing")
                elif event.kind == "retry":
                    record.parts.clear()
                    self._publish(record, state="thinking", asked=record.now.asked + 1)
                elif event.result is not None:
                    if rewriter.model is not None:
                        self._tally.add(event.result)
                        self._publish(record, counts=self._tally.counts)
                    self._publish(record, state="submitting", result=event.result, text=event.result.caption)
                    return event.result
        raise AssertionError("a stream ends with its result")

    async def _ready(self) -> Rewriter:
        """The rewriter; rules alone are only settled for after another look for something better."""
        async with self._making:
            if self._rewriter is None or self._rewriter.model is None:
                self._rewriter = await asyncio.to_thread(self._make)
            return self._rewriter

    @asynccontextmanager
    async def _turn_of(self, rewriter: Rewriter, record: _Record) -> AsyncGenerator[None, None]:
        """A model of this process and a clip take turns on the device; others have their own place."""
        if rewriter.backend != IN_PROCESS:
            yield
            return
        with self._turn:
            self._writers += 1
        try:
            while self._clip:
                self._publish(record, state="waiting")
                await asyncio.sleep(TURN_INTERVAL)
            yield
        finally:
            with self._turn:
                self._writers -= 1
                self._turn.notify_all()

    async def _let_go(self) -> None:
        if self._rewriter is not None:
            await self._rewriter.aclose()

    def _publish(self, record: _Record, **changes: object) -> None:
        with self._guard:
            record.now = replace(record.now, **changes)  # type: ignore[arg-type]

    def _forget_old(self) -> None:
        finished = [rewriting_id for rewriting_id, record in self._records.items() if record.now.finished]
        for rewriting_id in finished[: max(0, len(finished) - self._keep)]:
            del self._records[rewriting_id]


class ConsiderateRunner:
    """A runner that has the device to itself while it makes a clip: the desk's model leaves it before; see `Runner`."""

    def __init__(self, runner: Runner, desk: RewriteDesk):
        self._runner, self._desk = runner, desk

    def start(self) -> RunnerInfo:
        return self._runner.start()

    def run(self, task: Task, report: Callable[[Progress], None], cancelled: threading.Event) -> Outcome:
        with self._desk.clip_being_made(cancelled):
            return self._runner.run(task, report, cancelled)

    def speaker_embedding(self, reference: Path) -> np.ndarray:
        return self._runner.speaker_embedding(reference)

    def unload(self) -> None:
        self._runner.unload()

    def close(self) -> None:
        self._runner.close()
