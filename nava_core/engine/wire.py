"""What the app and its worker processes say to each other, and the line they say it on.

Each rank holds one connection to the app; a connection that closes ends its rank, and the group with it.
"""

from __future__ import annotations

import hmac
import os
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

from nava_core.engine.jobs import JobError
from nava_core.engine.runner import Outcome, Progress, Task
from nava_core.engine.source import PipelineSource
from nava_core.request import ModelSpec

ADDRESS_VARIABLE = "NAVA_WORKERS_ADDRESS"
KEY_VARIABLE = "NAVA_WORKERS_KEY"
HOST = "127.0.0.1"
# A process of ours sends its key at once; anybody else who connects must not hold up those who wait.
KEY_SECONDS = 2.0


@dataclass(frozen=True)
class Load:
    """App to every rank, first of all: which model."""

    source: PipelineSource


@dataclass(frozen=True)
class Run:
    """App to rank 0: make this clip."""

    task: Task


@dataclass(frozen=True)
class Cancel:
    """App to rank 0: end this job at its next step."""

    job_id: str


@dataclass(frozen=True)
class Hear:
    """App to rank 0: the speaker embedding of this recording, please."""

    id: str
    reference: Path


@dataclass(frozen=True)
class Hello:
    """Every rank's first word."""

    rank: int
    pid: int


@dataclass(frozen=True)
class Alive:
    """Every rank, each second."""


@dataclass(frozen=True)
class Ready:
    """Every rank once its model is loaded. Rank 0 adds what the app must know.

    tokenizer: the `tokenizers` JSON. work_shows: whether a rank that works uses the processor; one that waits for a
    device's answer may not.
    """

    spec: ModelSpec | None = None
    tokenizer: str | None = None
    work_shows: bool = False


@dataclass(frozen=True)
class Reported:
    """Rank 0: how a run is getting on."""

    job_id: str
    progress: Progress


@dataclass(frozen=True)
class Finished:
    """Rank 0: how a run ended on all ranks. result None: it was cancelled."""

    job_id: str
    result: Outcome | JobError | None


@dataclass(frozen=True)
class Heard:
    """Rank 0: the answer to `Hear`."""

    id: str
    answer: np.ndarray | JobError


@dataclass(frozen=True)
class Dying:
    """Any rank: why it ends now. error: what the job that it worked on failed of."""

    reason: str
    error: JobError | None = None


class GroupBroken(Exception):
    """An exchange between the ranks failed: one of them is gone."""


class Unsurvivable(Exception):
    """An error in a run that left the other ranks waiting, so that the group must end; `error` is for the job."""

    def __init__(self, reason: str, error: JobError):
        super().__init__(reason)
        self.error = error


class Line:
    """One end of a connection; any thread may send."""

    def __init__(self, connected: socket.socket):
        # Small messages follow one another; none may wait for the other side's acknowledgement.
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = Connection(connected.detach())
        self._sending = threading.Lock()

    def fileno(self) -> int:
        return self._connection.fileno()

    def send(self, message: Any) -> None:
        """Raises OSError where the other side is gone."""
        with self._sending:
            self._connection.send(message)

    def receive(self) -> Any:
        """The next message. Raises EOFError or OSError where the other side is gone."""
        return self._connection.recv()

    def waiting(self) -> bool:
        """Whether there is something to receive, be it the end."""
        return self._connection.poll()

    def close(self) -> None:
        self._connection.close()


class Switchboard:
    """The app's side: a port on this machine that only the owner of the key gets through to."""

    def __init__(self) -> None:
        self._socket = socket.create_server((HOST, 0))
        self._key = secrets.token_bytes(32)

    @property
    def environment(self) -> dict[str, str]:
        """What a worker needs to call; never on a command line, which everybody on the machine can read."""
        return {ADDRESS_VARIABLE: f"{HOST}:{self._socket.getsockname()[1]}", KEY_VARIABLE: self._key.hex()}

    def fileno(self) -> int:
        return self._socket.fileno()

    def answer(self) -> Line | None:
        """The next caller, or None where it does not know the key; to be called when there is one."""
        caller, _ = self._socket.accept()
        caller.settimeout(KEY_SECONDS)
        try:
            known = hmac.compare_digest(_read(caller, len(self._key)), self._key)
        except OSError:
            known = False
        if not known:
            caller.close()
            return None
        caller.settimeout(None)
        return Line(caller)

    def close(self) -> None:
        self._socket.close()


def dial(environment: Mapping[str, str] = os.environ) -> Line:
    """A worker's line to the app that started it. Raises OSError where that is gone."""
    host, port = environment[ADDRESS_VARIABLE].rsplit(":", 1)
    connected = socket.create_connection((host, int(port)))
    connected.sendall(bytes.fromhex(environment[KEY_VARIABLE]))
    connected.settimeout(None)
    return Line(connected)


def ready_among(ends: list[Any], seconds: float) -> list[Any]:
    """Those of some lines and switchboards that have something to say, waiting so long for the first."""
    return wait(ends, seconds)


def _read(caller: socket.socket, size: int) -> bytes:
    data, until = b"", time.monotonic() + KEY_SECONDS
    while len(data) < size and time.monotonic() < until and (more := caller.recv(size - len(data))):
        data += more
    return data
