"""What the operating system knows of a process that cannot, or must not, speak for itself."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

# More processor time than this is work; what else a process does meanwhile, such as looking at a clock, needs less.
WORK_SECONDS = 0.02
# Running, and waiting for a disk: reading a model, or memory that was swapped out.
WORKING_STATES = ("R", "D")
# Finding a process's children costs milliseconds, so only who rests for so long is asked for them.
ALONE_SECONDS = 1.0


class Vitals:
    """Whether a process's main thread, or a process that it started, does anything.

    Not its other threads: those that listen to the other ranks never rest. Linux only; elsewhere nobody is ever idle.
    """

    def __init__(self, pid: int, now: float):
        self._pid = pid
        self._worked = now
        self._own, self._childrens = 0.0, 0.0

    def idle(self, now: float) -> float:
        """Seconds until `now` without work, as far as looks were taken; 0 where the system does not tell."""
        try:
            own, at_work = _main_thread(self._pid)
            at_work = at_work or own - self._own >= WORK_SECONDS
            if not at_work and now - self._worked > ALONE_SECONDS:
                at_work = self._children_work()
        except (OSError, psutil.Error):
            return 0.0
        if at_work:
            self._worked, self._own = now, own
        return now - self._worked

    def excuse(self, now: float) -> None:
        """What happened until now was not seen and does not count."""
        self._worked = now

    def _children_work(self) -> bool:
        seconds, at_work = 0.0, False
        for child in psutil.Process(self._pid).children(recursive=True):
            with child.oneshot():
                times = child.cpu_times()
                at_work = at_work or child.status() in (psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP)
            seconds += times.user + times.system
        # Less than before, where one has ended.
        if not at_work and abs(seconds - self._childrens) < WORK_SECONDS:
            return False
        self._childrens = seconds
        return True


def _main_thread(pid: int) -> tuple[float, bool]:
    """Processor seconds that it has used, and whether it is at work in this moment. Raises OSError."""
    status = Path(f"/proc/{pid}/task/{pid}/stat").read_text().rpartition(") ")[2].split()
    ticks = int(status[11]) + int(status[12])
    return ticks / os.sysconf("SC_CLK_TCK"), status[0] in WORKING_STATES
