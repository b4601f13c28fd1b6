"""The seam between the queue and whatever makes the clips: this process, or worker processes under a supervisor."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from nava_core.engine.jobs import JobError, JobPhase
from nava_core.request import GenerationRequest, ModelSpec

if TYPE_CHECKING:
    from nava_core.conditioning.text import TokenCount


@dataclass(frozen=True)
class Task:
    """One run. request: resolved. output: where the clip goes, folder and stem; the runner adds the suffix."""

    job_id: str
    request: GenerationRequest
    output: Path


@dataclass(frozen=True)
class Progress:
    """One moment of a run. step: denoising steps that are finished, of `steps`. preview: uint8 (height, width, 3)."""

    phase: JobPhase
    step: int
    steps: int
    preview: np.ndarray | None = None


@dataclass(frozen=True)
class Outcome:
    """A finished run: its file, complete under its final name, and the recipe that the file carries."""

    path: Path
    recipe: dict[str, Any]


@dataclass(frozen=True)
class RunnerInfo:
    """What is known once the model is loaded. `count_tokens` may be called from any thread, also while unloaded."""

    spec: ModelSpec
    count_tokens: Callable[[str], TokenCount | None]


class RunFailed(RuntimeError):
    """The run failed and the runner lives on: out of memory, a full disk, an internal error."""

    def __init__(self, error: JobError):
        super().__init__(error.message)
        self.error = error


class RunnerLost(RuntimeError):
    """The runner's processes died or hung; the words say why. `start` may be called again and the job tried again."""


class Runner(Protocol):
    """Loads a model and makes one clip at a time.

    All but `close` and `speaker_embedding` are called from the engine's own thread.
    """

    def start(self) -> RunnerInfo:
        """Load the model. Raises EngineError. May be called again after `unload` or RunnerLost."""
        ...

    def run(self, task: Task, report: Callable[[Progress], None], cancelled: threading.Event) -> Outcome:
        """Make one clip. Raises RequestError, GenerationCancelled, RunFailed or RunnerLost."""
        ...

    def speaker_embedding(self, reference: Path) -> np.ndarray:
        """The embedding of a voice's recording, float32 (192,), from any thread and beside a run.

        Raises RequestError, or EngineError where the model is not loaded or has no speaker encoder.
        """
        ...

    def unload(self) -> None:
        """Free the model's memory while there is nothing to do; the next `run` or `start` loads it again."""
        ...

    def close(self) -> None:
        """Stop for good, from any thread; a run that is under way ends soon."""
        ...
