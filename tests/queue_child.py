"""A real process with a queue, for tests that end it at a chosen moment.

`python queue_child.py` loads everything once and then forks a child for each order (a line of JSON) on its standard
input and prints the child's id; asked to "join", it waits for the last one's end and prints its exit status. Until then
a child that has ended keeps its id, so that no other process can be killed in its place. A child works on a queue whose
runner writes real files with `write_audio`, and writes down beside the database what was promised to whom
(`acknowledged`) and what was begun (`begun`), each in one write, so that being killed leaves whole lines.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nava_core import media
from nava_core.engine.queue import QueueEngine
from nava_core.engine.runner import Outcome, Progress, RunnerInfo, Task
from nava_core.engine.store import JobStore
from nava_core.request import GenerationCancelled, GenerationRequest, ModelSpec

SPEC = ModelSpec("sounds", width=96, height=64, sizes=((96, 64),), seconds=0.5, num_inference_steps=2)
RATE = 16000


def sound(seed: int) -> np.ndarray:
    """What the runner makes of a seed: (channels, samples)."""
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (1, 1600)).astype(np.float32)


class SoundRunner:
    """Makes a short noise of each request's seed, as a real file, in a few milliseconds."""

    def __init__(self, log: Path | None = None, step_seconds: float = 0.0):
        self.log, self.step_seconds = log, step_seconds

    def start(self) -> RunnerInfo:
        return RunnerInfo(SPEC, lambda prompt: None)

    def run(self, task: Task, report: Callable[[Progress], None], cancelled: threading.Event) -> Outcome:
        request = task.request
        if self.log is not None:
            append(self.log, {"id": task.job_id, "seed": request.seed, "request": request.to_recipe()})
        steps = request.num_inference_steps or 0
        for step in range(steps):
            if cancelled.wait(self.step_seconds):
                raise GenerationCancelled
            report(Progress("denoise", step + 1, steps))
        report(Progress("decode", steps, steps))
        recipe = {**request.to_recipe(), "job": task.job_id}
        path = media.write_audio(
            task.output.with_name(task.output.name + ".wav"), sound(request.seed or 0), RATE, recipe
        )
        report(Progress("mux", steps, steps))
        return Outcome(path, recipe)

    def speaker_embedding(self, reference: Path) -> np.ndarray:
        return np.full(192, len(reference.name), np.float32)

    def unload(self) -> None:
        pass

    def close(self) -> None:
        pass


def append(path: Path, line: Any) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, (json.dumps(line) + "\n").encode())
    os.close(descriptor)


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def work(folder: Path, jobs: int, kill_at: int | None, step_seconds: float) -> None:
    """Submit jobs, change the queue, and wait for the end; or be killed at the given point of all points passed.

    With a point given, the model is loaded and the queue paused until all are submitted, so that each time the points
    are the same.
    """
    count_points(kill_at, folder / "points")
    engine = QueueEngine(SoundRunner(folder / "begun", step_seconds), folder / "out", folder / "queue" / "jobs.sqlite3")
    voice = folder / f"voice-{time.monotonic_ns()}.wav"
    voice.write_bytes(b"a voice")
    ids = []
    if kill_at is not None:
        engine.wait_until_loaded()
        engine.pause()
    for number in range(jobs):
        request = GenerationRequest(f"job ~~{number}~~", modality="audio", speakers=(str(voice),))
        ids.append(engine.submit(request))
        append(folder / "acknowledged", {"id": ids[-1], "seed": engine.job(ids[-1]).request.seed})
    voice.unlink()
    if len(ids) > 1:
        engine.move(ids[-1], to="front")
        append(folder / "cancelled", ids[0])
        engine.cancel(ids[0])
    engine.resume()
    for job in engine.jobs():
        list(engine.events(job.id))
    engine.close()


def count_points(kill_at: int | None, log: Path) -> None:
    """Count each commit and each rename, before and after; end this process without warning at the chosen one."""
    passed = 0

    def point(name: str) -> None:
        nonlocal passed
        if passed == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        passed += 1
        append(log, name)

    def around(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            point(f"before {name}")
            result = function(*arguments)
            point(f"after {name}")
            return result

        return wrapped

    JobStore._commit = around("commit", JobStore._commit)  # type: ignore[method-assign]
    Path.replace = around("rename", Path.replace)  # type: ignore[method-assign]


def main() -> None:
    child = 0
    for line in sys.stdin:
        order = json.loads(line)
        if order == "join":
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
            continue
        child = os.fork()
        if child == 0:
            status = 1
            try:
                work(Path(order["folder"]), order["jobs"], order.get("kill_at"), order.get("step_seconds", 0.0))
                status = 0
            finally:
                sys.stderr.flush()
                os._exit(status)
        print(child, flush=True)


if __name__ == "__main__":
    main()
