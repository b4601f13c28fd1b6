"""The queue in processes that are killed: nothing vanishes and nothing is made twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from queue_child import SoundRunner, lines, sound
from waiting import finished, wait_for

from nava_core import media
from nava_core.engine.jobs import Job
from nava_core.engine.queue import QueueEngine

CHILD = Path(__file__).with_name("queue_child.py")


class Children:
    """Children that can be killed, forked by one process that has loaded everything already."""

    def __init__(self) -> None:
        self._forker = subprocess.Popen(
            [sys.executable, str(CHILD)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, folder: Path, jobs: int, **order: Any) -> int:
        """The child's process id; `join` has to follow."""
        pid = self._ask({"folder": str(folder), "jobs": jobs, **order})
        assert pid > 1, "a signal to 0 would end the tests themselves"
        return pid

    def join(self) -> int:
        """The exit status of the child that was started last; negative: the signal that ended it."""
        return self._ask("join")

    def _ask(self, order: Any) -> int:
        assert self._forker.stdin is not None and self._forker.stdout is not None
        self._forker.stdin.write(json.dumps(order) + "\n")
        self._forker.stdin.flush()
        return int(self._forker.stdout.readline())

    def close(self) -> None:
        assert self._forker.stdin is not None
        self._forker.stdin.close()
        self._forker.wait(60)


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    children = Children()
    yield children
    children.close()


def finish_and_check(folder: Path) -> None:
    """Open what a killed process left, let everything be made, and check that all of it is as it was promised."""
    acknowledged = {line["id"]: line["seed"] for line in lines(folder / "acknowledged")}
    complete = {path: path.stat().st_mtime_ns for path in (folder / "out").glob("*.wav")}
    engine = QueueEngine(SoundRunner(folder / "begun"), folder / "out", folder / "queue" / "jobs.sqlite3")
    try:
        jobs = {job.id: job for job in engine.jobs()}
        assert set(acknowledged) <= set(jobs), "nothing vanishes"
        # One may have been stored when the process ended, before anybody was told.
        assert all(jobs[name].request.seed == seed for name, seed in acknowledged.items())
        engine.wait_until_loaded()
        engine.resume()
        for name in jobs:
            while (job := finished(engine, name)).state == "interrupted":
                assert job.error is not None and job.error.kind == "interrupted"
                engine.retry(name)
        jobs = {job.id: job for job in engine.jobs()}
    finally:
        engine.close()
    assert {name for name, job in jobs.items() if job.state == "cancelled"} <= set(lines(folder / "cancelled"))
    assert {job.state for job in jobs.values()} <= {"done", "cancelled"}
    _check_files(folder, jobs)
    assert all(path.stat().st_mtime_ns == at for path, at in complete.items()), "what was complete is not made again"


def _check_files(folder: Path, jobs: dict[str, Job]) -> None:
    made = {job.result: job for job in jobs.values() if job.state == "done"}
    assert set((folder / "out").glob("*")) == set(made), "one file for each job, and nothing else"
    for path, job in made.items():
        assert path is not None and media.read_recipe(path) == job.recipe
        assert job.recipe is not None and (job.recipe["job"], job.recipe["seed"]) == (job.id, job.request.seed)
        samples = soundfile.read(path, dtype="float32")[0]
        assert np.allclose(samples, sound(job.request.seed or 0)[0], atol=1e-4)
        assert Path(job.request.speakers[0]).read_bytes() == b"a voice", "its files are there, the originals are not"
    begun: dict[str, Any] = {}
    for line in lines(folder / "begun"):
        assert begun.setdefault(line["id"], line) == line, "nothing is made twice from different requests"
    assert not list((folder / "queue" / "files").glob(".part-*"))


def test_killed_at_every_commit_and_rename(children: Children, tmp_path: Path) -> None:
    """Once through to count the points, then once for each of them."""
    whole = tmp_path / "whole"
    whole.mkdir()
    children.start(whole, jobs=2, kill_at=10_000)
    assert children.join() == 0
    points = lines(whole / "points")
    assert points.count("before commit") >= 9 and points.count("after rename") >= 2
    finish_and_check(whole)
    for kill_at in range(len(points)):
        folder = tmp_path / f"at{kill_at}"
        folder.mkdir()
        children.start(folder, jobs=2, kill_at=kill_at)
        assert children.join() == -signal.SIGKILL, (kill_at, points[kill_at])
        finish_and_check(folder)


@pytest.mark.slow
def test_killed_again_and_again_at_any_moment(children: Children, tmp_path: Path) -> None:
    """One queue through thirty kills, each child taking over what the last one left and adding to it."""
    dice = random.Random(7)
    usual = 60.0  # seconds; the least of some, for one that took long would have the others killed after their end
    for number in range(3):
        (tmp_path / f"measure{number}").mkdir()
        started = time.monotonic()
        children.start(tmp_path / f"measure{number}", jobs=2, step_seconds=0.01)
        assert children.join() == 0
        usual = min(usual, time.monotonic() - started)
    folder = tmp_path / "queue"
    folder.mkdir()
    killed = 0
    for _ in range(30):
        child = children.start(folder, jobs=2, step_seconds=0.01)
        time.sleep(dice.uniform(0.0, 1.2 * usual))
        os.kill(child, signal.SIGKILL)
        killed += children.join() == -signal.SIGKILL
    assert killed >= 10
    finish_and_check(folder)


def test_a_job_that_kills_its_process_does_not_do_so_for_ever(children: Children, tmp_path: Path) -> None:
    """After the first time it goes on by itself; after the second it waits for a person."""
    for attempt, jobs in ((1, 1), (2, 0)):
        child = children.start(tmp_path, jobs=jobs, step_seconds=60.0)
        wait_for(lambda attempt=attempt: len(lines(tmp_path / "begun")) == attempt)
        os.kill(child, signal.SIGKILL)
        assert children.join() == -signal.SIGKILL
    children.start(tmp_path, jobs=0)
    assert children.join() == 0 and len(lines(tmp_path / "begun")) == 2
    finish_and_check(tmp_path)
    assert len(lines(tmp_path / "begun")) == 3
