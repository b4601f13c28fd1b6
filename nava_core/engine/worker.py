"""`python -m nava_core.engine.worker`: one rank's process. Started by `WorkerRunner` through torch's elastic launcher.

Nothing here imports torch before the line to the app is open: it takes seconds, and the app should hear of this process
first.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from nava_core.engine.pulse import Patience, Pulse
from nava_core.engine.source import PipelineSource
from nava_core.engine.wire import Cancel, Dying, GroupBroken, Hear, Hello, Line, Load, Ready, Run, Unsurvivable, dial

if TYPE_CHECKING:
    from nava_core.engine.runner import Task
    from nava_core.pipeline import NavaPipeline

logger = logging.getLogger(__name__)

# After the app has gone, or said to end: time for a run to take its temporary files away.
LEAVING_SECONDS = 1.0
PR_SET_PDEATHSIG = 1


def main(
    load: Callable[[PipelineSource], NavaPipeline] = PipelineSource.load, patience: Patience | None = None
) -> None:
    """Load what the app says, run what it asks for and end with it. Never returns."""
    rank = int(os.environ["RANK"])
    _log_with_prefix(rank)
    _end_with_the_launcher()
    signal.signal(signal.SIGTERM, _leave)
    line = dial()
    line.send(Hello(rank, os.getpid()))
    inbox = Inbox(line)
    pulse = Pulse(line, patience or Patience())
    pulse.start()
    code = 1
    try:
        _serve(load, line, inbox, pulse)
    except SystemExit:
        code = 0
    except GroupBroken as error:
        # Not the cause of anything, so nothing to tell the app; with the app gone, all ranks go.
        code = 0 if inbox.ended.is_set() else 1
        logger.log(logging.DEBUG if code == 0 else logging.WARNING, "%s", error)
    except BaseException as error:
        logger.critical("this rank ends", exc_info=True)
        _say_why(line, error)
    finally:
        # Libraries' own threads and process groups can hang at an orderly exit; nothing is left to save.
        sys.stderr.flush()
        os._exit(code)


class Inbox:
    """Listens to the app on a thread of its own: tasks are queued, cancelled jobs noted; its end is this process's."""

    def __init__(self, line: Line):
        first = line.receive()
        assert isinstance(first, Load), first
        self.source = first.source
        self.ended = threading.Event()
        self._line = line
        self._tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()
        self._questions: queue.SimpleQueue[Hear] = queue.SimpleQueue()
        self._cancelled: set[str] = set()
        threading.Thread(target=self._listen, name="nava-inbox", daemon=True).start()

    def task(self, seconds: float) -> Task | None:
        """The next task, or None where there is none for so long."""
        try:
            return self._tasks.get(timeout=seconds)
        except queue.Empty:
            return None

    def question(self) -> Hear:
        """The next question about a voice; waits for it."""
        return self._questions.get()

    def is_cancelled(self, job_id: str) -> bool:
        return job_id in self._cancelled

    def forget(self, job_id: str) -> None:
        self._cancelled.discard(job_id)

    def _listen(self) -> None:
        try:
            while True:
                message = self._line.receive()
                if isinstance(message, Run):
                    self._tasks.put(message.task)
                elif isinstance(message, Hear):
                    self._questions.put(message)
                elif isinstance(message, Cancel):
                    self._cancelled.add(message.job_id)
        except (EOFError, OSError):
            self.ended.set()
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(LEAVING_SECONDS)
            os._exit(0)  # the main thread is where no signal reaches it, such as a collective


def _serve(load: Callable[[PipelineSource], NavaPipeline], line: Line, inbox: Inbox, pulse: Pulse) -> None:
    from nava_core.engine.hearing import answer_questions
    from nava_core.engine.rank import Rank, join_group

    source = _placed(inbox.source)
    started = time.monotonic()
    pipeline = load(source)
    pipeline.set_progress_bar_config(disable=True)
    logger.info("%s loaded in %.1f s", pipeline.spec.name, time.monotonic() - started)
    control = join_group()
    rank = Rank(pipeline, control, line, inbox, pulse)
    answer_questions(pipeline, line, inbox)
    gc.freeze()  # the model stays as long as the process; collecting after each run need not look at it
    line.send(rank.introduction() if rank.leads else Ready())
    rank.serve()


def _placed(source: PipelineSource) -> PipelineSource:
    """The source with this rank's own device, where the machine has several. Raises ValueError."""
    import torch

    local_rank, local_ranks = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if source.device not in (None, "cuda") or not torch.cuda.is_available():
        return source
    if local_ranks > torch.cuda.device_count():
        raise ValueError(
            f"{local_ranks} worker processes were asked for, one for each GPU, and this machine has "
            f"{torch.cuda.device_count()}; ask for no more than that"
        )
    torch.cuda.set_device(local_rank)
    return replace(source, device=f"cuda:{local_rank}")


def _say_why(line: Line, error: BaseException) -> None:
    expected = isinstance(error, ValueError | OSError)
    try:
        if isinstance(error, Unsurvivable):
            line.send(Dying(str(error), error.error))
        else:
            line.send(Dying(str(error) if expected else f"{type(error).__name__}: {error}"))
    except OSError:
        logger.warning("the app is gone and cannot be told")


def _leave(signum: int, frame: object) -> None:
    # An exception, so that a run's files are taken away on the way out; only once, so that nothing disturbs that.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit


def _end_with_the_launcher() -> None:
    # For a rank that hangs with its interpreter locked; any other notices the closed line.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _log_with_prefix(rank: int) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_RankFormatter(rank))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.captureWarnings(True)


class _RankFormatter(logging.Formatter):
    """Each line with its level and rank in front, for the app to read (`group.py`)."""

    def __init__(self, rank: int):
        super().__init__("%(name)s: %(message)s")
        self._rank = rank

    def format(self, record: logging.LogRecord) -> str:
        lines = super().format(record).splitlines()
        return "\n".join(f"{record.levelno}|rank {self._rank}|{line}" for line in lines)


if __name__ == "__main__":
    main()
