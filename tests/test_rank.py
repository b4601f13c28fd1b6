"""What a rank of a worker group tells of itself: work, errors, no progress; and who is heard at all."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from waiting import wait_for

from nava_core.engine import JobError
from nava_core.engine import rank as rank_module
from nava_core.engine.parallel import PeerError, RankFailure
from nava_core.engine.pulse import Patience
from nava_core.engine.runner import Task
from nava_core.engine.vitals import ALONE_SECONDS, Vitals
from nava_core.engine.wire import Alive, GroupBroken, Switchboard, Unsurvivable, dial, ready_among
from nava_core.request import GenerationCancelled, GenerationRequest, RequestError


def test_vitals_tell_work_and_waiting_for_work_from_rest() -> None:
    """Of a process alone, and of one whose child works for it."""
    source = "import subprocess, sys\nfor line in sys.stdin: "
    spin = "i = 10**9\nwhile i: i -= 1"
    process = psutil.Popen(
        [sys.executable, "-c", f"{source}subprocess.run([sys.executable, '-c', {spin!r}]) if 'child' in line else 0"],
        stdin=subprocess.PIPE,
        text=True,
    )
    vitals = Vitals(process.pid, time.monotonic())
    try:
        rests(vitals)
        print("child", file=process.stdin, flush=True)
        wait_for(process.children)
        # Starting the child was work of its own. Only after that has grown old does the child's count.
        time.sleep(1.5 * ALONE_SECONDS)
        wait_for(lambda: vitals.idle(time.monotonic()) < 0.5)
        process.children()[0].kill()
        rests(vitals)
        process.send_signal(signal.SIGSTOP)
        rests(vitals)
        vitals.excuse(now := time.monotonic())
        assert vitals.idle(now) == 0.0
    finally:
        process.kill()
        process.communicate()
    assert vitals.idle(time.monotonic() + 100) == 0.0  # of a process that is gone others tell


def rests(vitals: Vitals) -> None:
    """Waits until it has done nothing for two seconds."""
    wait_for(lambda: vitals.idle(time.monotonic()) >= 2.0)


class Recorder:
    """Stands in for everything that a rank talks to."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.send = self.sent.append

    def is_cancelled(self, job_id: str) -> bool:
        return False

    def mark(self) -> None: ...

    def skip(self) -> None: ...


@pytest.fixture
def attempt(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[BaseException], Any]]:
    """What a rank, alone in its group, makes of an error in a run."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    recorder: Any = Recorder()
    pipeline: Any = SimpleNamespace(profile="24gb")
    rank = rank_module.Rank(pipeline, torch.distributed.group.WORLD, recorder, recorder, recorder)  # type: ignore[arg-type]

    def run(error: BaseException) -> Any:
        def fail(*arguments: Any, **options: Any) -> None:
            raise error

        monkeypatch.setattr(rank_module, "run_together", fail)
        return rank._attempt(Task("job", GenerationRequest("a ball"), Path("clip")))

    yield run
    torch.distributed.destroy_process_group()


def test_what_a_rank_makes_of_errors(attempt: Callable[[BaseException], Any]) -> None:
    assert attempt(GenerationCancelled()) is None
    assert attempt(RequestError("image", "no image")) == JobError("no image", "image", "request")
    short = attempt(MemoryError())
    assert short.kind == "out_of_memory" and "--profile 16gb (now 24gb)" in short.message
    assert attempt(OSError(errno.ENOSPC, "no space")).kind == "disk"
    assert attempt(PeerError("rank 1 was asked for something else")).message == "rank 1 was asked for something else"
    with pytest.raises(Unsurvivable) as costly:
        failure = RankFailure("the others did not come")
        failure.__cause__ = torch.OutOfMemoryError("out of memory")
        attempt(failure)
    assert costly.value.error.kind == "out_of_memory"
    with pytest.raises(GroupBroken):
        attempt(RankFailure("lost touch"))
    with pytest.raises(torch.AcceleratorError):
        attempt(torch.AcceleratorError("a device-side assert"))
    with pytest.raises(SystemExit):
        attempt(SystemExit())


def test_patience_grows_with_the_steps_and_the_clip() -> None:
    patience = Patience(least=60, first=7200, factor=20)
    assert patience.limit(1.0) == 7200
    patience.saw(0.5, size=100)
    assert patience.limit(100) == 60 and patience.limit(1) == 60
    assert patience.limit(1000) == 20 * 0.5 * 100
    patience.saw(30, size=100)
    patience.saw(1, size=100)
    assert patience.limit(100) == 600 and patience.limit(50) == 600


HUNG = """
import sys
import time
from nava_core.engine.pulse import Patience, Pulse
from nava_core.engine.wire import dial
pulse = Pulse(dial(), Patience(first=0.5))
pulse.start()
sys.stdin.readline()
pulse.work(1.0)
time.sleep(600)
"""


def test_a_rank_that_makes_no_progress_says_so_and_ends() -> None:
    switchboard = Switchboard()
    environment = os.environ | switchboard.environment
    process = subprocess.Popen([sys.executable, "-c", HUNG], env=environment, stdin=subprocess.PIPE, text=True)
    line = switchboard.answer()
    assert line is not None
    words = [line.receive() for _ in range(3)]
    assert words == [Alive()] * 3  # waiting for work may take any time
    print(file=process.stdin, flush=True)
    while isinstance(word := line.receive(), Alive):
        continue
    assert "no progress" in word.reason
    assert process.wait(30) == 1
    with pytest.raises((EOFError, OSError)):
        line.receive()
    switchboard.close()


def test_strangers_are_not_answered() -> None:
    switchboard = Switchboard()
    stranger = dial(switchboard.environment | {"NAVA_WORKERS_KEY": "00" * 32})
    assert ready_among([switchboard], 5) and switchboard.answer() is None
    with pytest.raises((EOFError, OSError)):
        stranger.receive()
    friend = dial(switchboard.environment)
    line = switchboard.answer()
    assert line is not None
    friend.send(Alive())
    assert line.receive() == Alive()
    switchboard.close()
