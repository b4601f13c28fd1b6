"""Jobs as everybody outside the engine sees them: frozen snapshots, and the interface that hands them out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from nava_core.request import GenerationRequest, ModelSpec

if TYPE_CHECKING:
    from nava_core.conditioning.text import TokenCount

JobState = Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]
JobPhase = Literal["encode", "denoise", "decode", "mux"]
ErrorKind = Literal["request", "out_of_memory", "model", "internal", "disk", "lost", "interrupted"]
DATABASE = Path(".studio") / "jobs.sqlite3"
"""Where a queue lives by custom, within the folder of its clips."""
AT_REST: tuple[JobState, ...] = ("done", "failed", "cancelled", "interrupted")


class EngineError(RuntimeError):
    """The engine cannot take or answer this: its model could not be loaded, it was closed, the job's state forbids it.

    `kind` says where the trouble is, as in `JobError`.
    """

    kind: ErrorKind = "model"


class JobStateError(EngineError):
    """The job is in a state that does not allow this."""

    kind: ErrorKind = "request"

    def __init__(self, job_id: str, state: str, allowed: Sequence[str]):
        super().__init__(f"job {job_id} is {state}; this can be done to jobs that are {' or '.join(allowed)}")


class DiskFullError(EngineError):
    """There is no room for what has to be written."""

    kind: ErrorKind = "disk"


class UnknownJob(LookupError):
    """No job has this id: it never existed, or it was forgotten after many later ones."""

    def __init__(self, job_id: str):
        super().__init__(f"no job has the id {job_id!r}; it may be from before the server's last start")


@dataclass(frozen=True)
class JobError:
    """Why a job failed, in words for people. `field` names the request's field where one is to blame."""

    message: str
    field: str | None = None
    kind: ErrorKind = "internal"


@dataclass(frozen=True)
class Job:
    """One moment of one job.

    request: as submitted, with its seed; resolved (every blank filled) as soon as the model's spec is known. Its files
    are the engine's own copies.
    ahead: how many jobs run or wait before this one. step: denoising steps that are finished, of `steps`.
    cancelling: somebody asked it to end, which takes a step at most.
    preview: the newest picture of the clip in the making, uint8 (height, width, 3). seconds: time spent running.
    created, ended: seconds since 1970; ended is None until it is. attempts: how often it was started.
    owner: who submitted it, as they logged in; "" where nobody does. variations: what jobs that are variations of one
    another share; None for a job by itself.
    interrupted: what ran it ended in the middle of it, or it was asked of another model; `error` says so, and `retry`
    makes it from its seed, with the model that is there.
    """

    id: str
    request: GenerationRequest
    state: JobState = "queued"
    phase: JobPhase | None = None
    ahead: int = 0
    step: int = 0
    steps: int = 0
    cancelling: bool = False
    preview: np.ndarray | None = field(default=None, compare=False, repr=False)
    result: Path | None = None
    recipe: dict[str, Any] | None = None
    error: JobError | None = None
    seconds: float = 0.0
    created: float = 0.0
    ended: float | None = None
    attempts: int = 0
    owner: str = ""
    variations: str | None = None

    @property
    def finished(self) -> bool:
        """Whether nothing more happens to it unless somebody asks; so for an interrupted job too."""
        return self.state in AT_REST


@dataclass(frozen=True)
class EngineStatus:
    """Whether requests can run now. `message` says why not; while "ready", why the queue paused itself, or nothing."""

    state: Literal["loading", "ready", "failed", "closed"]
    message: str = ""


class Engine(Protocol):
    """Runs requests one after another, somewhere, and tells how each of them is getting on."""

    @property
    def status(self) -> EngineStatus:
        """Whether the model is there yet; never waits."""
        ...

    @property
    def spec(self) -> ModelSpec:
        """What the model can do. Waits until it is loaded; raises EngineError if it cannot be."""
        ...

    def count_tokens(self, prompt: str) -> TokenCount | None:
        """How much of the text encoder's room the prompt takes; None while no tokenizer is loaded."""
        ...

    def speaker_embedding(self, reference: str | Path) -> np.ndarray:
        """What the model hears in a voice's recording, float32 (192,); waits for the model, not for the queue.

        Raises RequestError ("speakers") for a recording that is no good, EngineError where no voice can be heard.
        """
        ...

    def submit(self, request: GenerationRequest, owner: str = "", variations: str | None = None) -> str:
        """Queue a request and return its job's id. Raises RequestError at once where the model's spec is known.

        owner, variations: as in `Job`; the engine only remembers them.
        """
        ...

    def job(self, job_id: str) -> Job:
        """The job as it stands now. Raises UnknownJob."""
        ...

    def jobs(self) -> list[Job]:
        """Every job that is remembered: the running one, the waiting ones in order, then the others, newest first."""
        ...

    def events(self, job_id: str) -> Iterator[Job]:
        """Every snapshot of the job, from its first to the one that ends it; older ones come without their preview.

        Ends early, after what there is, when the engine is closed.
        """
        ...

    @property
    def version(self) -> int:
        """A number that grows with every change of any job, of the order and of the pause."""
        ...

    def changes(self) -> Iterator[int]:
        """The version at once, and then each time after it has grown, until the engine is closed."""
        ...

    def cancel(self, job_id: str) -> None:
        """Ask a job to end: at once if it waits, at its next step if it runs. A finished job stays as it is."""
        ...

    def move(
        self, job_id: str, *, before: str | None = None, after: str | None = None, to: Literal["front", "end"] = "end"
    ) -> None:
        """Give a waiting job another place: before or after another waiting one, else at `to`. Raises JobStateError."""
        ...

    def reorder(self, job_ids: Sequence[str]) -> None:
        """Put waiting jobs into this order, within the places that they hold together now; all others keep theirs.

        So one owner's jobs change places among themselves without passing anybody else's. Raises JobStateError.
        """
        ...

    def edit(self, job_id: str, request: GenerationRequest) -> None:
        """Replace the request of a job that waits or was interrupted. Raises RequestError or JobStateError."""
        ...

    def duplicate(self, job_id: str) -> str:
        """Queue the same request, same seed, once more; returns the new job's id."""
        ...

    def retry(self, job_id: str) -> None:
        """Queue an interrupted, failed or cancelled job again, as it is, at the end. Raises JobStateError."""
        ...

    @property
    def paused(self) -> bool:
        """Whether waiting jobs stay where they are. Lasts over restarts, unless the engine itself paused."""
        ...

    def pause(self) -> None:
        """Start no further job; one that runs goes on."""
        ...

    def resume(self) -> None:
        """Go on with the queue."""
        ...

    def estimate(self, request: GenerationRequest) -> float | None:
        """Seconds that a request would run here, learned from earlier runs; None while there is nothing to go by.

        Raises RequestError.
        """
        ...

    def remaining(self, job_id: str) -> float | None:
        """Seconds until the job is done, those before it included; None while there is nothing to go by."""
        ...

    def close(self) -> None:
        """Stop. In a queue on disk waiting jobs stay and a running one is interrupted; else all are cancelled."""
        ...
