"""A GPU that is lent for one clip at a time, as on a Hugging Face ZeroGPU Space: the `spaces` package around a run.

`spaces.GPU` runs a generator in a process that is forked with the loaded model, for as many seconds as were asked for
before it began, and ends it then. So the seconds are computed from the request. They count against the visitor's
quota: too many keep people out, too few lose the clip.

How many, before this machine has made a clip (`Cost.estimate`), with n tokens of the joint sequence, p forward passes
of a step, s steps, P parameters, L layers of width d, and R operations per second:

    seconds = 10 + s p (2 P n + 4 L d n^2) / R + n / 2000

and after the first clip what `estimates.predict` makes of those before; either way with MARGIN on top and never below
LEAST_SECONDS.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from nava_core.engine.estimates import Pace, RunTimes, Settings, predict, settings_of
from nava_core.engine.jobs import EngineError, JobError
from nava_core.engine.runner import Outcome, Progress, RunFailed, RunnerInfo, Task
from nava_core.engine.wire import Finished
from nava_core.request import GenerationCancelled, ModelSpec, RequestError

if TYPE_CHECKING:
    from nava_core.pipeline import NavaPipeline

logger = logging.getLogger(__name__)

SWITCH = "SPACES_ZERO_GPU"
MARGIN = 1.3
LEAST_SECONDS = 20
OVERHEAD_SECONDS = 10.0  # moving the weights, encoding the prompt, writing the file
# Of the slice of an H200 that is lent: its bf16 peak is about 420e12, a third of which a transformer reaches.
OPERATIONS_PER_SECOND = 1.4e14
TOKENS_DECODED_PER_SECOND = 2000.0


def lender(environment: Mapping[str, str] = os.environ) -> ModuleType | None:
    """The `spaces` package where GPUs are lent here, else None. To be asked before CUDA is first used."""
    if environment.get(SWITCH, "").lower() not in ("1", "t", "true"):
        return None
    try:
        return importlib.import_module("spaces")
    except ImportError:
        logger.warning("%s is set, but the spaces package is not installed; clips are made without it", SWITCH)
        return None


@dataclass(frozen=True)
class Cost:
    """What a forward pass of the backbone costs. parameters: all of them; width: of a token's hidden state."""

    parameters: int
    layers: int
    width: int

    @classmethod
    def of(cls, pipeline: NavaPipeline) -> Cost:
        transformer = pipeline.transformer
        config = transformer.config
        return cls(
            sum(parameter.numel() for parameter in transformer.parameters()),
            config.num_layers + config.num_single_layers + config.num_final_layers,
            config.num_attention_heads * config.attention_head_dim,
        )

    def estimate(self, settings: Settings) -> float:
        """Seconds of a run; the formula stands at the top of this module."""
        tokens = settings.tokens
        one_pass = 2 * self.parameters * tokens + 4 * self.layers * self.width * tokens**2
        denoising = settings.steps * settings.passes * one_pass / OPERATIONS_PER_SECOND
        return OVERHEAD_SECONDS + denoising + tokens / TOKENS_DECODED_PER_SECOND


class BorrowedRunner:
    """Runs tasks in this process on a GPU that `spaces` lends for each of them; see `Runner`.

    To be made before the page is launched: the package looks then for what it will lend to, and takes the weights that
    are loaded by then along.
    """

    def __init__(self, load: Callable[[], NavaPipeline], spaces: Any):
        from nava_core.engine.inprocess import InProcessRunner

        self._load = load
        self._inner = InProcessRunner(self._loaded)
        self._spec: ModelSpec | None = None
        self._cost: Cost | None = None
        self._history: list[RunTimes] = []
        self._lent: Callable[[Task], Generator[Progress | Finished, None, None]]
        self._lent = spaces.GPU(duration=self.seconds)(self._generate)
        self._ear: Callable[[Path], np.ndarray | JobError] = spaces.GPU(duration=LEAST_SECONDS)(self._hear)

    def start(self) -> RunnerInfo:
        info = self._inner.start()
        self._spec = info.spec
        return info

    def run(self, task: Task, report: Callable[[Progress], None], cancelled: threading.Event) -> Outcome:
        if self._spec is None:
            self.start()
        result, pace, started = None, Pace(), time.monotonic()
        try:
            with closing(self._lent(task)) as items:
                for item in items:
                    if isinstance(item, Finished):
                        result = item.result
                        continue
                    if cancelled.is_set():
                        raise GenerationCancelled
                    pace = _paced(pace, item, time.monotonic() - started)
                    report(item)
        except GenerationCancelled:
            raise
        except Exception as error:  # whatever the lender says: no quota left, time over, its process gone
            logger.exception("the borrowed GPU failed for job %s", task.job_id)
            raise RunFailed(
                JobError(f"no GPU was lent for as long as this clip needs: {error}", kind="lost")
            ) from error
        if isinstance(result, JobError):
            raise RequestError(result.field, result.message) if result.field else RunFailed(result)
        if result is None:
            raise GenerationCancelled
        self._learn(task, pace, time.monotonic() - started)
        return result

    def speaker_embedding(self, reference: Path) -> np.ndarray:
        if self._spec is None:
            self.start()
        heard = self._ear(reference)
        if isinstance(heard, JobError):
            raise RequestError(heard.field, heard.message) if heard.field else EngineError(heard.message)
        return heard

    def unload(self) -> None:
        """The model stays: between clips it takes up none of a GPU, and a fork brings it along."""

    def close(self) -> None:
        self._inner.close()

    def seconds(self, task: Task) -> int:
        """For how long to ask for a GPU. `spaces` calls this with what it will hand to the run."""
        assert self._spec is not None and self._cost is not None
        settings = settings_of(task.request.resolve(self._spec), self._spec)
        known = predict(self._history, settings)
        estimate = self._cost.estimate(settings) if known is None else OVERHEAD_SECONDS + known.seconds
        return max(LEAST_SECONDS, math.ceil(MARGIN * estimate))

    def _loaded(self) -> NavaPipeline:
        pipeline = self._load()
        self._cost = Cost.of(pipeline)
        return pipeline

    def _generate(self, task: Task) -> Generator[Progress | Finished, None, None]:
        """Runs where the GPU is, perhaps in another process: how it ended is data, for an exception would not pass."""
        try:
            with closing(self._inner.stream(task)) as items:
                for item in items:
                    yield Finished(task.job_id, item) if isinstance(item, Outcome) else item
        except GenerationCancelled:
            yield Finished(task.job_id, None)
        except RequestError as error:
            yield Finished(task.job_id, JobError(str(error), error.field, "request"))
        except RunFailed as error:
            yield Finished(task.job_id, error.error)
        except EngineError as error:
            yield Finished(task.job_id, JobError(str(error), kind=error.kind))

    def _hear(self, reference: Path) -> np.ndarray | JobError:
        """Runs where the GPU is, as `_generate` does."""
        try:
            return self._inner.speaker_embedding(reference)
        except RequestError as error:
            return JobError(str(error), error.field, "request")
        except EngineError as error:
            return JobError(str(error), kind=error.kind)

    def _learn(self, task: Task, pace: Pace, ended: float) -> None:
        assert self._spec is not None
        if (times := pace.times(settings_of(task.request.resolve(self._spec), self._spec), ended)) is not None:
            self._history.append(times)


def _paced(pace: Pace, item: Progress, now: float) -> Pace:
    if item.phase == "denoise" and item.step:
        return pace.at_step(item.step, now)
    return pace.at_decode(now) if item.phase in ("decode", "mux") else pace
