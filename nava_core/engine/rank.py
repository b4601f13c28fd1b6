"""One rank's part of the runs: the same calls on all of them, and what they agree on at its boundaries.

What the ranks do together inside a call is `parallel`'s; with one rank its calls are the pipeline's own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from nava_core.engine.disk import disk_full, is_disk_full
from nava_core.engine.failures import explain, release_memory
from nava_core.engine.jobs import JobError, JobPhase
from nava_core.engine.parallel import PeerError, RankFailure, parallelize, run_together, save_together
from nava_core.engine.preview import Preview
from nava_core.engine.pulse import Pulse, clip_size
from nava_core.engine.runner import Outcome, Progress, Task
from nava_core.engine.wire import Finished, GroupBroken, Line, Ready, Reported, Unsurvivable
from nava_core.export import output_suffix
from nava_core.request import GenerationCancelled, RequestError

if TYPE_CHECKING:
    from nava_core.engine.worker import Inbox
    from nava_core.pipeline import NavaPipeline

logger = logging.getLogger(__name__)

# How often rank 0 wakes the others while there is nothing to do, so that none waits for long in one collective.
IDLE_TICK = 2.0
# Ranks may come to an exchange as far apart as writing a clip takes; the app finds a dead or hung rank long before.
EXCHANGE_TIMEOUT = timedelta(minutes=30)

# What a rank brings to a boundary; the highest of all ranks counts. PEER: another rank's error, which that one brings.
GO, PEER, CANCEL, FAILED = range(4)


class Agreed(Exception):
    """An error of one rank or more that all of them know of."""

    def __init__(self, error: JobError):
        super().__init__(error.message)
        self.error = error


def join_group() -> dist.ProcessGroup:
    """Meet the other ranks. Returns a group for control messages, apart from the default one that carries tensors."""
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    return dist.new_group(backend="gloo", timeout=EXCHANGE_TIMEOUT)


class Rank:
    """This process's pipeline and its place among the others."""

    def __init__(self, pipeline: NavaPipeline, control: dist.ProcessGroup, line: Line, inbox: Inbox, pulse: Pulse):
        self.pipeline, self.control, self.line, self.inbox, self.pulse = pipeline, control, line, inbox, pulse
        self.leads = dist.get_rank() == 0
        if dist.get_world_size() > 1:
            parallelize(pipeline)

    def introduction(self) -> Ready:
        """What the app must know of the model."""
        tokenizer = self.pipeline.tokenizer
        return Ready(
            self.pipeline.spec,
            None if tokenizer is None else tokenizer.backend_tokenizer.to_str(),
            work_shows=not torch.accelerator.is_available(),
        )

    def serve(self) -> None:
        """Run one task after another until the process ends."""
        while True:
            task = self._next()
            self.pulse.work(clip_size(task.request))
            result = self._attempt(task)
            self.pulse.rest()
            if self.leads:
                self.inbox.forget(task.job_id)
                self.line.send(Finished(task.job_id, result))
            release_memory()

    def _next(self) -> Task:
        """The next task, which rank 0 has from the app and the others have from rank 0."""
        while True:
            shared = [self.inbox.task(IDLE_TICK) if self.leads else None]
            with _in_touch():
                dist.broadcast_object_list(shared, src=0, group=self.control)
            if shared[0] is not None:
                return shared[0]

    def _attempt(self, task: Task) -> Outcome | JobError | None:
        try:
            return _Attempt(self, task).make()
        except GenerationCancelled:
            return None
        except Agreed as agreed:
            return agreed.error


class _Attempt:
    """One run of one task on this rank. All ranks come to the same boundaries, whatever happens between them."""

    def __init__(self, rank: Rank, task: Task):
        self._rank, self._task = rank, task
        self._steps = task.request.num_inference_steps or 0
        self._preview = Preview()

    def make(self) -> Outcome | None:
        """The clip; on ranks other than 0 None. Raises GenerationCancelled or Agreed on all ranks alike."""
        outcome, state, error = None, GO, None
        try:
            outcome = self._make_clip()
        except (Agreed, GroupBroken):
            raise
        except PeerError as peer:
            state, error = PEER, JobError(str(peer))
        except GenerationCancelled:
            state = CANCEL
        except RankFailure as failure:
            raise self._unsurvivable(failure) from failure
        except Exception as failure:
            if _is_fatal(failure):
                raise
            if not isinstance(failure, RequestError):
                logger.exception("job %s failed", self._task.job_id)
            state, error = FAILED, self._explained(failure)
        self._meet(state, error)
        return outcome

    def _make_clip(self) -> Outcome | None:
        rank, task = self._rank, self._task
        self._report("encode", 0)
        output = run_together(rank.pipeline, task.request, callback_on_step_end=self._on_step)
        self._report("decode", self._steps)
        if not rank.leads:
            rank.pulse.rest()  # waiting for rank 0's pieces and its file; where that hangs, rank 0 knows
        path = task.output.with_name(task.output.name + output_suffix(output))
        recipe = save_together(rank.pipeline, output, task.request, path, self._on_frames, job_id=task.job_id)
        return None if recipe is None else Outcome(path, recipe)

    def _on_step(self, pipeline: NavaPipeline, step: int, timestep: Any, tensors: dict[str, Any]) -> None:
        self._meet(CANCEL if self._is_cancelled() else GO)
        if self._rank.leads:
            self._report("denoise", step + 1, self._preview.picture(pipeline, tensors.get("denoised")))

    def _on_frames(self, written: int, total: int) -> None:
        self._rank.pulse.mark()
        if self._is_cancelled():
            raise GenerationCancelled
        if written == total:
            self._report("mux", self._steps)

    def _is_cancelled(self) -> bool:
        return self._rank.leads and self._rank.inbox.is_cancelled(self._task.job_id)

    def _meet(self, state: int, error: JobError | None = None) -> None:
        """A boundary: the ranks wait for one another and learn the gravest of what they bring."""
        gravest = torch.tensor([state])
        with _in_touch():
            dist.all_reduce(gravest, dist.ReduceOp.MAX, group=self._rank.control)
        self._rank.pulse.mark()
        agreed = int(gravest)
        if agreed in (PEER, FAILED):
            raise Agreed(self._first_of(error if state == agreed else None))
        if agreed == CANCEL:
            raise GenerationCancelled

    def _first_of(self, error: JobError | None) -> JobError:
        errors: list[JobError | None] = [None] * dist.get_world_size()
        with _in_touch():
            dist.all_gather_object(errors, error, group=self._rank.control)
        return next(error for error in errors if error is not None)

    def _report(self, phase: JobPhase, step: int, preview: Any = None) -> None:
        if self._rank.leads:
            self._rank.line.send(Reported(self._task.job_id, Progress(phase, step, self._steps, preview)))
            self._rank.pulse.skip()

    def _explained(self, error: BaseException) -> JobError:
        if is_disk_full(error):
            return disk_full(self._task.output.parent, "the clip")
        return explain(error, self._task.request, self._rank.pipeline.profile)

    def _unsurvivable(self, failure: RankFailure) -> Exception:
        own = failure.__cause__
        if own is None or isinstance(own, GroupBroken | RankFailure):
            return GroupBroken(str(failure))
        return Unsurvivable(str(failure), self._explained(own))


@contextmanager
def _in_touch() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise GroupBroken(f"this rank lost touch with the others: {error}") from error


def _is_fatal(error: Exception) -> bool:
    """Whether the process is of no more use: a device that has faulted answers every later call with the same error."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    return isinstance(error, torch.AcceleratorError | dist.DistError)
