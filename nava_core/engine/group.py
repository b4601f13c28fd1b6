"""The app's view of one set of worker processes: started together, watched, ended together. Needs no torch."""

from __future__ import annotations

import logging
import os
import queue
import secrets
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nava_core.engine.jobs import JobError
from nava_core.engine.source import PipelineSource
from nava_core.engine.vitals import Vitals
from nava_core.engine.wire import (
    Alive,
    Dying,
    Finished,
    Hear,
    Heard,
    Hello,
    Line,
    Load,
    Ready,
    Run,
    Switchboard,
    ready_among,
)

logger = logging.getLogger(__name__)

PACKAGE_ROOT = Path(__file__).resolve().parents[2]
WATCH_INTERVAL = 0.25
# For a process to reach us: the launcher imports torch first, perhaps from a cold disk.
STARTING_SECONDS = 300.0
# Of rest of all ranks in a run; longer than one with an error waits for the others to have it too (`parallel.SETTLE`).
STANDSTILL_SECONDS = 6.5
# When this process itself stood still for so long, the others are not to blame for what it did not hear.
OWN_STALL_SECONDS = 1.0
# For processes to leave by themselves: asked, and where one of them is known to be dead or hung.
LEAVING_SECONDS = 3.0
LOST_SECONDS = 1.0
# The launcher ends workers that never reached us; it gives them LAUNCHER_SECONDS first.
LAUNCHER_SECONDS = 2
OVER = JobError("what hears voices has ended; it is started again with the next clip, so try again then", kind="lost")


@dataclass(frozen=True)
class Lost:
    """The group has ended, all its processes are gone.

    error: one rank's error in a run, which the group ended of. crashed: a process ended without a word, so that
    another try may fare better.
    """

    reason: str
    error: JobError | None = None
    crashed: bool = False


class _Ended(Exception):
    """The group is to be ended for this reason."""

    def __init__(self, reason: str, error: JobError | None = None, crashed: bool = False):
        super().__init__(reason)
        self.error, self.crashed = error, crashed


@dataclass
class _Member:
    line: Line
    heard: float
    rank: int | None = None
    vitals: Vitals | None = None
    ready: bool = False
    last_words: Dying | None = None
    is_gone: bool = False


class WorkerGroup:
    """`ranks` processes running `module`, each with the pipeline of `source`, until `end` or the first that fails.

    silence: seconds without a sign of life after which a rank counts as hung. Such a sign is its heart's beat; while it
    loads any work too, for a library may hold the interpreter's lock meanwhile.

    In a run one of the ranks must be at work, where that can be seen: hearts beat on while all wait for one another.
    """

    def __init__(self, source: PipelineSource, ranks: int, module: str, silence: float):
        self.ranks, self._source, self._silence = ranks, source, silence
        self.messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.pids: dict[int, int] = {}
        self.lost: Lost | None = None
        self._members: list[_Member] = []
        self._introduction: Ready | None = None
        self._run_began: float | None = None
        self._started = self._looked = time.monotonic()
        self.is_over = False  # nothing more can be sent; `lost` follows when all processes are gone
        self._ending = threading.Event()
        self._end_reason = ""
        self._asking = threading.Lock()
        self._asked: dict[str, Future[np.ndarray | JobError]] = {}
        self._switchboard = Switchboard()
        self._launcher = subprocess.Popen(
            [sys.executable, "-m", "nava_core.engine.launch", *_launcher_arguments(ranks, module)],
            env=_environment(ranks) | self._switchboard.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        threading.Thread(target=self._pass_on_logs, name="nava-worker-logs", daemon=True).start()
        self._watcher = threading.Thread(target=self._watch, name="nava-worker-watch", daemon=True)
        self._watcher.start()

    def send(self, message: Any) -> None:
        """To rank 0. Where that is gone, `messages` will say so."""
        line = next((member.line for member in self._members if member.rank == 0), None)
        if isinstance(message, Run):
            self._run_began = time.monotonic()
        try:
            if line is not None:
                line.send(message)
        except OSError:
            logger.debug("rank 0 is gone; %s was not sent", type(message).__name__)

    @property
    def is_ready(self) -> bool:
        """Whether all processes have loaded the model, and live."""
        return not self.is_over and self._all_ready()

    def ask(self, reference: Path) -> np.ndarray | JobError:
        """Rank 0's answer on the voice of a recording, beside whatever it works on. From any thread."""
        question: Future[np.ndarray | JobError] = Future()
        with self._asking:
            if self.is_over:
                return OVER
            question_id = secrets.token_hex(8)
            self._asked[question_id] = question
        self.send(Hear(question_id, reference))
        return question.result()

    def receive(self, seconds: float | None = None) -> Any:
        """The next of rank 0's messages, at the end the `Lost`; None where none came for so long."""
        try:
            return self.messages.get(timeout=seconds)
        except queue.Empty:
            return None

    def end(self, reason: str) -> None:
        """End all processes and wait until they are gone. From any thread."""
        if not self._ending.is_set():
            self._end_reason = reason
            self._ending.set()
        self._watcher.join()

    # What follows runs on the watching thread.

    def _watch(self) -> None:
        error, crashed = None, False
        try:
            while not self._ending.is_set():
                self._listen()
                self._judge()
            reason = self._end_reason
        except _Ended as ended:
            reason, error, crashed = str(ended), ended.error, ended.crashed
        except BaseException as failure:
            logger.exception("watching the workers failed")
            reason = f"watching the workers failed ({type(failure).__name__}: {failure})"
        with self._asking:
            self.is_over = True
            for question in self._asked.values():
                question.set_result(OVER)
        self._shut_down(asked=self._ending.is_set())
        self.lost = Lost(reason, error, crashed)
        self.messages.put(self.lost)

    def _listen(self) -> None:
        lines = {member.line: member for member in self._members}
        ends: list[Any] = [*lines]
        if len(self._members) < self.ranks:
            ends.append(self._switchboard)
        for end in ready_among(ends, WATCH_INTERVAL):
            if end is self._switchboard:
                self._welcome()
            else:
                self._hear(lines[end])
        self._mourn()
        now = time.monotonic()
        if now - self._looked > WATCH_INTERVAL + OWN_STALL_SECONDS:
            for member in self._members:
                member.heard = now
                if member.vitals is not None:
                    member.vitals.excuse(now)
        self._looked = now

    def _welcome(self) -> None:
        line = self._switchboard.answer()
        if line is None:
            return
        self._members.append(_Member(line, heard=time.monotonic()))
        try:
            line.send(Load(self._source))
        except OSError:
            logger.debug("a worker ended as soon as it had called")  # and its line says so next

    def _hear(self, member: _Member) -> None:
        try:
            while member.line.waiting():
                self._take(member, member.line.receive())
        except (EOFError, OSError):
            member.is_gone = True
        member.heard = time.monotonic()

    def _mourn(self) -> None:
        gone = [member for member in self._members if member.is_gone]
        if not gone:
            return
        # Who was killed says nothing and others end of it; but one that cannot load says so, and the launcher ends the
        # others. What names the cause comes first.
        speakers_first = not self._all_ready()
        cause = min(gone, key=lambda member: (member.last_words is None) == speakers_first)
        if cause.last_words is None:
            raise _Ended(f"{self._name(cause)} ended unexpectedly", crashed=True)
        raise _Ended(self._quoted(cause), cause.last_words.error)

    def _take(self, member: _Member, message: Any) -> None:
        match message:
            case Alive():
                pass
            case Hello(rank, pid):
                member.rank, member.vitals = rank, Vitals(pid, time.monotonic())
                self.pids[rank] = pid
            case Heard(question_id, answer):
                with self._asking:
                    self._asked.pop(question_id).set_result(answer)
            case Dying():
                member.last_words = message
            case Ready(spec):
                member.ready = True
                if spec is not None:
                    self._introduction = message
                if self._all_ready():
                    self.messages.put(self._introduction)
            case _:
                if isinstance(message, Finished):
                    self._run_began = None
                self.messages.put(message)

    def _judge(self) -> None:
        status = self._launcher.poll()
        if status is not None:
            raise _Ended(f"the workers' launcher ended with status {status}; the log says why", crashed=True)
        now = time.monotonic()
        if len(self.pids) < self.ranks and now - self._started > STARTING_SECONDS:
            raise _Ended(f"{len(self.pids)} of {self.ranks} workers had started after {STARTING_SECONDS:.0f} s")
        for member in self._members:
            silent = now - member.heard
            if not self._all_ready() and member.vitals is not None:
                silent = min(silent, member.vitals.idle(now))
            if silent > self._silence:
                raise _Ended(f"{self._name(member)} gave no sign of life for {silent:.0f} s", crashed=True)
        if self._run_began is not None and self._introduction is not None and self._introduction.work_shows:
            idle = min(member.vitals.idle(now) for member in self._members if member.vitals is not None)
            if min(idle, now - self._run_began) > STANDSTILL_SECONDS:
                whose = "the worker" if self.ranks == 1 else "every worker"
                raise _Ended(f"{whose} stood still for {idle:.0f} s in the middle of a run")

    def _all_ready(self) -> bool:
        return len(self._members) == self.ranks and all(member.ready for member in self._members)

    def _name(self, member: _Member) -> str:
        return f"worker {member.rank} of {self.ranks}" if self.ranks > 1 else "the worker"

    def _quoted(self, member: _Member) -> str:
        assert member.last_words is not None
        reason = member.last_words.reason
        return f"{self._name(member)}: {reason}" if self._all_ready() else reason  # loading fails alike on all

    def _shut_down(self, asked: bool) -> None:
        for member in self._members:
            member.line.close()
        self._switchboard.close()
        self._wait(LEAVING_SECONDS if asked else LOST_SECONDS)
        assert self._launcher.stdin is not None
        self._launcher.stdin.close()
        if len(self.pids) < self.ranks:
            self._wait(LAUNCHER_SECONDS + LEAVING_SECONDS)
        # Each rank leads a process group of its own, with its ffmpeg in it.
        for pid in [*self.pids.values(), self._launcher.pid]:
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._launcher.wait()

    def _wait(self, seconds: float) -> None:
        try:
            self._launcher.wait(seconds)
        except subprocess.TimeoutExpired:
            logger.debug("the workers did not leave within %g s", seconds)

    # And this on the thread that reads what the processes write.

    def _pass_on_logs(self) -> None:
        assert self._launcher.stdout is not None
        with self._launcher.stdout as output:
            for raw in output:
                level, _, text = raw.decode(errors="replace").rstrip().partition("|")
                if text and level.isdecimal():
                    rank, _, text = text.partition("|")
                    logger.log(int(level), "[%s] %s", rank, text)
                elif line := raw.decode(errors="replace").rstrip():
                    # The launcher, or a library below Python; of an end that was asked for there is nothing to say.
                    logger.log(logging.DEBUG if self._ending.is_set() else logging.INFO, "[workers] %s", line)


def _launcher_arguments(ranks: int, module: str) -> list[str]:
    return [
        "--standalone",
        f"--nproc-per-node={ranks}",
        "--max-restarts=0",
        "--local-addr=127.0.0.1",
        f"--log-dir={os.devnull}",  # the logs come through the pipe; this keeps folders out of the temporary one
        f"--shutdown-timeout={LAUNCHER_SECONDS}",
        "-m",
        module,
    ]


def _environment(ranks: int) -> dict[str, str]:
    environment = dict(os.environ)
    path = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = os.pathsep.join([str(PACKAGE_ROOT), *([path] if path else [])])
    if sys.platform == "linux":
        # All ranks are on this machine, whose own name may not resolve.
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # Threads that wait for one another sleep instead of spinning. Without a GPU the browser takes one of the cores from
    # time to time: on two of them a clip then needs 3.5 times as long spinning, 1.7 times asleep; with the cores to
    # themselves they lose nothing (docs/engine-evidence.md).
    environment.setdefault("OMP_WAIT_POLICY", "passive")
    if ranks > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))
    return environment
