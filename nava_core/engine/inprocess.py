"""Jobs in this process: the pipeline behind the `Runner` interface, and an engine that keeps its jobs in memory."""

from __future__ import annotations

import copy
import logging
import queue
import threading
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nava_core.engine.disk import disk_full, is_disk_full
from nava_core.engine.failures import explain, release_memory
from nava_core.engine.hearing import hear
from nava_core.engine.jobs import EngineError
from nava_core.engine.preview import Preview
from nava_core.engine.queue import QueueEngine
from nava_core.engine.runner import Outcome, Progress, RunFailed, RunnerInfo, Task
from nava_core.request import GenerationCancelled, RequestError

if TYPE_CHECKING:
    import numpy as np

    from nava_core.conditioning.text import TokenCount
    from nava_core.pipeline import NavaPipeline

logger = logging.getLogger(__name__)

Report = Callable[[Progress], None]


class InProcessEngine(QueueEngine):
    """A queue in memory over a pipeline in this process.

    load: returns the pipeline; called on the engine's thread. output_dir: where clips are written, made on first use.
    keep: how many finished jobs are remembered (their clips stay on disk in any case).
    """

    def __init__(self, load: Callable[[], NavaPipeline], output_dir: str | Path = "outputs", *, keep: int = 200):
        super().__init__(InProcessRunner(load), output_dir, keep=keep)


class InProcessRunner:
    """Runs tasks on a pipeline of this process; see `Runner`.

    load: returns the pipeline, each time it is needed. previews: whether runs show pictures on their way.
    """

    def __init__(self, load: Callable[[], NavaPipeline], previews: bool = True):
        self._load = load
        self._previews = previews
        self._pipeline: NavaPipeline | None = None
        self._closed = threading.Event()
        self._hearing = threading.Lock()

    def start(self) -> RunnerInfo:
        try:
            pipeline = self._load()
            pipeline.set_progress_bar_config(disable=True)  # steps are events here, not a bar in the server's log
            info = RunnerInfo(pipeline.spec, _token_counter(pipeline))
        except BaseException as error:
            logger.debug("the model could not be loaded", exc_info=True)
            expected = isinstance(error, ValueError | OSError | EngineError)
            words = str(error) if expected else f"{type(error).__name__}: {error}"
            raise EngineError(f"the model could not be loaded: {words}") from error
        self._pipeline = pipeline
        return info

    def run(self, task: Task, report: Report, cancelled: threading.Event) -> Outcome:
        if self._pipeline is None:
            self.start()
        failure: Exception
        try:
            return self._generate(task, report, lambda: cancelled.is_set() or self._closed.is_set())
        except GenerationCancelled:
            failure = GenerationCancelled()
        except RequestError as error:
            failure = RequestError(error.field, str(error))
        except BaseException as error:
            logger.exception("job %s failed", task.job_id)
            full = is_disk_full(error)
            profile = None if self._pipeline is None else self._pipeline.profile
            words = disk_full(task.output.parent, "the clip") if full else explain(error, task.request, profile)
            failure = RunFailed(words)
        # Outside the handlers: there the traceback would still hold the run's tensors.
        release_memory()
        raise failure

    def stream(self, task: Task) -> Generator[Progress | Outcome, None, None]:
        """The run as a generator: every Progress, and the Outcome as its last item. Closing it cancels the run.

        For places where a borrowed device is there only as long as a generator runs. Raises what `run` raises.
        """
        items: queue.SimpleQueue[Progress | Outcome | Exception] = queue.SimpleQueue()
        cancelled = threading.Event()

        def work() -> None:
            try:
                items.put(self.run(task, items.put, cancelled))
            except (GenerationCancelled, RequestError, RunFailed, EngineError) as error:
                items.put(error)

        thread = threading.Thread(target=work, name=f"nava-{task.job_id}", daemon=True)
        thread.start()
        try:
            while True:
                item = items.get()
                if isinstance(item, Exception):
                    raise item
                yield item
                if isinstance(item, Outcome):
                    return
        finally:
            cancelled.set()
            thread.join()

    def speaker_embedding(self, reference: Path) -> np.ndarray:
        pipeline = self._pipeline
        if pipeline is None:
            raise EngineError("the model is not loaded; try again in a moment")
        with self._hearing:
            return hear(pipeline, reference)

    def unload(self) -> None:
        self._pipeline = None
        release_memory()

    def close(self) -> None:
        self._closed.set()

    def _generate(self, task: Task, report: Report, cancelled: Callable[[], bool]) -> Outcome:
        from nava_core.export import output_suffix, save_output

        pipeline = self._pipeline
        assert pipeline is not None
        steps = task.request.num_inference_steps or 0
        callback = _on_step(report, steps, cancelled, Preview() if self._previews else None)
        output = pipeline.run(task.request, callback_on_step_end=callback, output_type="latent")
        report(Progress("decode", steps, steps))
        path = task.output.with_name(task.output.name + output_suffix(output))
        progress = _on_frames(report, steps, cancelled)
        recipe = save_output(pipeline, output, task.request, path, progress=progress, job_id=task.job_id)
        return Outcome(path, recipe)


def _token_counter(pipeline: NavaPipeline) -> Callable[[str], TokenCount | None]:
    tokenizer = copy.deepcopy(pipeline.tokenizer)  # a fast tokenizer must not serve two threads at once
    return partial(_count_tokens, tokenizer, pipeline.spec.max_text_tokens, threading.Lock())


def _count_tokens(tokenizer: Any, limit: int, lock: threading.Lock, prompt: str) -> TokenCount | None:
    from nava_core.conditioning.text import count_tokens

    if tokenizer is None:
        return None
    with lock:
        return count_tokens(tokenizer, prompt, limit)


def _on_step(report: Report, steps: int, cancelled: Callable[[], bool], preview: Preview | None) -> Callable[..., None]:
    def callback(pipeline: NavaPipeline, step: int, timestep: Any, tensors: dict[str, Any]) -> None:
        if cancelled():
            raise GenerationCancelled
        picture = None if preview is None else preview.picture(pipeline, tensors.get("denoised"))
        report(Progress("denoise", step + 1, steps, picture))

    return callback


def _on_frames(report: Report, steps: int, cancelled: Callable[[], bool]) -> Callable[[int, int], None]:
    def progress(written: int, total: int) -> None:
        if cancelled():
            raise GenerationCancelled
        if written == total:
            report(Progress("mux", steps, steps))

    return progress
