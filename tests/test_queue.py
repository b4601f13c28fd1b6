"""The durable queue: what people may do to it, and what is left of it when its disk is full or its runner lost."""

from __future__ import annotations

import errno
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from queue_child import SPEC, SoundRunner
from waiting import finished, wait_for

from nava_core import media
from nava_core.engine import disk as disk_module
from nava_core.engine.jobs import DiskFullError, EngineError, Job, JobError, JobStateError, UnknownJob
from nava_core.engine.queue import QueueEngine
from nava_core.engine.runner import Outcome, RunFailed, RunnerInfo, RunnerLost
from nava_core.engine.store import JobStore
from nava_core.request import GenerationRequest, RequestError

REQUEST = GenerationRequest("a ball", modality="audio")


class GatedRunner(SoundRunner):
    """Waits at each run's start, and with each voice, until it is let go; raises what is put into `errors` instead of
    running.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Semaphore(0)
        self.hearing = threading.Semaphore(0)
        self.errors: list[BaseException] = []
        self.calls: list[str] = []
        self.spec = SPEC

    def start(self) -> RunnerInfo:
        self.calls.append("start")
        if self.errors and isinstance(self.errors[0], EngineError):
            raise self.errors.pop(0)
        return replace(super().start(), spec=self.spec)

    def run(self, task: Any, report: Any, cancelled: Any) -> Outcome:
        self.calls.append(task.job_id)
        while not self.gate.acquire(timeout=0.01):
            if cancelled.is_set():
                raise RunnerLost("closed")
        if self.errors:
            raise self.errors.pop(0)
        return super().run(task, report, cancelled)

    def speaker_embedding(self, reference: Path) -> np.ndarray:
        self.calls.append("hear")
        assert self.hearing.acquire(timeout=60)
        return super().speaker_embedding(reference)

    def unload(self) -> None:
        self.calls.append("unload")


@pytest.fixture
def runner() -> GatedRunner:
    return GatedRunner()


@pytest.fixture
def open_engine(tmp_path: Path, runner: GatedRunner) -> Iterator[Callable[..., QueueEngine]]:
    engines = []

    def open_one(database: Path | None = tmp_path / "queue" / "jobs.sqlite3", **options: Any) -> QueueEngine:
        engines.append(QueueEngine(runner, tmp_path / "out", database, **options))
        engines[-1].wait_until_loaded()
        return engines[-1]

    yield open_one
    for engine in engines:
        engine.close()


def waiting(engine: QueueEngine) -> list[str]:
    return [job.id for job in engine.jobs() if job.state == "queued"]


def test_some_jobs_change_places_among_themselves_and_pass_nobody(open_engine: Any, runner: GatedRunner) -> None:
    engine = open_engine()
    engine.pause()
    a, x, b, y, c = (engine.submit(REQUEST, owner) for owner in ("ann", "bob", "ann", "bob", "ann"))
    version = engine.version
    engine.reorder([c, a, b])
    assert waiting(engine) == [c, x, a, y, b] and engine.version > version
    engine.reorder([])
    engine.cancel(a)
    with pytest.raises(JobStateError, match="cancelled"):
        engine.reorder([b, a, c])
    with pytest.raises(UnknownJob):
        engine.reorder([b, "nobody", c])
    with pytest.raises(ValueError, match="once"):
        engine.reorder([b, b])
    assert waiting(engine) == [c, x, y, b]
    engine.close()
    assert waiting(open_engine()) == [c, x, y, b]


def test_the_order_is_what_people_make_it(open_engine: Any, runner: GatedRunner) -> None:
    engine = open_engine()
    engine.pause()
    a, b, c, d = (engine.submit(REQUEST) for _ in range(4))
    version = engine.version
    engine.move(d, before=a)
    assert waiting(engine) == [d, a, b, c] and engine.version > version
    engine.move(a, after=c)
    engine.move(b, to="front")
    engine.move(d)
    assert waiting(engine) == [b, c, a, d]
    assert [engine.job(name).ahead for name in (b, c, a, d)] == [0, 1, 2, 3]
    twin = engine.duplicate(a)
    assert engine.job(twin).request == engine.job(a).request
    engine.edit(c, GenerationRequest("a star", modality="audio", seed=77))
    engine.cancel(a)
    with pytest.raises(JobStateError, match="cancelled"):
        engine.move(a, to="front")
    with pytest.raises(ValueError, match="one of them"):
        engine.move(b, before=c, after=d)
    with pytest.raises(RequestError):
        engine.edit(b, GenerationRequest("a star", width=100))
    assert engine.paused and runner.calls == ["start"]
    runner.gate.release(10)
    engine.resume()
    for name in (b, c, d, twin):
        assert finished(engine, name).state == "done"
    assert runner.calls[1:] == [b, c, d, twin]
    edited = engine.job(c)
    assert edited.recipe is not None and (edited.recipe["prompt"], edited.recipe["seed"]) == ("a star", 77)
    with pytest.raises(JobStateError, match="done"):
        engine.edit(b, REQUEST)
    engine.retry(a)
    assert finished(engine, a).state == "done"
    for ask in (engine.job, engine.retry, engine.cancel, engine.events, engine.remaining, engine.duplicate):
        with pytest.raises(UnknownJob):
            ask("nobody")


def test_everything_is_there_again_after_a_restart(open_engine: Any, runner: GatedRunner, tmp_path: Path) -> None:
    engine = open_engine()
    runner.gate.release()
    done = engine.job(engine.submit(REQUEST))
    done = finished(engine, done.id)
    engine.pause()
    voice = tmp_path / "voice.wav"
    voice.write_bytes(b"a voice")
    first, second = engine.submit(REQUEST), engine.submit(GenerationRequest("x ~~y~~", speakers=(str(voice),)))
    voice.unlink()
    engine.move(second, to="front")
    before = {name: engine.job(name) for name in (first, second)}
    engine.close()
    with pytest.raises(EngineError):
        engine.submit(REQUEST)
    engine = open_engine()
    assert engine.paused and waiting(engine) == [second, first]
    assert {name: engine.job(name).request for name in before} == {name: job.request for name, job in before.items()}
    again = engine.job(done.id)
    assert (again.state, again.result, again.recipe) == ("done", done.result, done.recipe)
    assert again.seconds == done.seconds
    assert Path(engine.job(second).request.speakers[0]).read_bytes() == b"a voice"
    assert list(engine.events(done.id)) == [again]


def test_closing_interrupts_what_runs_and_the_next_start_goes_on(open_engine: Any, runner: GatedRunner) -> None:
    engine = open_engine()
    running, queued = engine.submit(REQUEST), engine.submit(REQUEST)
    wait_for(lambda: running in runner.calls)
    watched: list[Job] = []
    watchers = [threading.Thread(target=lambda n=n: watched.extend(engine.events(n))) for n in (running, queued)]
    for watcher in watchers:
        watcher.start()
    engine.close()
    for watcher in watchers:
        watcher.join(30)
        assert not watcher.is_alive(), "whoever watches is let go"
    job = engine.job(running)
    assert job.state == "interrupted" and job.finished and job.error is not None and "next start" in job.error.message
    assert engine.job(queued).state == "queued"
    runner.gate.release(2)
    engine = open_engine()
    assert [finished(engine, name).state for name in (running, queued)] == ["done", "done"]
    assert engine.job(running).attempts == 2 and runner.calls[-2:] == [running, queued]


def test_a_job_waits_for_the_model_that_it_was_asked_of(open_engine: Any, runner: GatedRunner) -> None:
    engine = open_engine()
    engine.pause()
    first, second, third = (engine.submit(REQUEST) for _ in range(3))
    engine.close()
    runner.spec = replace(SPEC, name="others")
    engine = open_engine()
    copy, own = engine.duplicate(third), engine.submit(REQUEST)
    engine.edit(third, replace(REQUEST, prompt="a cube"))
    runner.gate.release(9)
    engine.resume()
    assert [finished(engine, name).state for name in (third, copy, own)] == ["done", "done", "done"]
    for name in (first, second):
        job = finished(engine, name)
        assert job.state == "interrupted" and name not in runner.calls
        assert job.error is not None and "sounds" in job.error.message and "others" in job.error.message
    engine.retry(second)
    assert finished(engine, second).state == "done"
    engine.close()
    runner.spec = SPEC
    assert finished(open_engine(), first).state == "done"


def test_jobs_taken_while_the_model_loads_are_asked_of_it(tmp_path: Path, runner: GatedRunner) -> None:
    database = tmp_path / "jobs.sqlite3"
    store = JobStore(database)
    store.submit("early", store.pack(replace(REQUEST, seed=5)))
    store.set_paused(True)
    store.close()
    engine = QueueEngine(runner, tmp_path / "out", database)
    engine.wait_until_loaded()
    engine.close()
    store = JobStore(database)
    assert store.job("early").model == SPEC.name
    store.close()


def test_in_memory_closing_cancels(open_engine: Any, runner: GatedRunner) -> None:
    engine = open_engine(database=None)
    ids = [engine.submit(REQUEST) for _ in range(2)]
    wait_for(lambda: ids[0] in runner.calls)
    engine.close()
    assert [finished(engine, name).state for name in ids] == ["cancelled", "cancelled"]


def test_a_lost_runner_is_started_anew_and_the_job_tried_once_more(open_engine: Any, runner: GatedRunner) -> None:
    engine = open_engine()
    runner.errors = [RunnerLost("rank 1 was killed")]
    runner.gate.release(2)
    job_id = engine.submit(REQUEST)
    assert finished(engine, job_id).state == "done"
    assert engine.job(job_id).attempts == 2 and runner.calls == ["start", job_id, "start", job_id]
    runner.errors = [RunnerLost("rank 1 was killed"), RunnerLost("rank 1 hung")]
    runner.gate.release(2)
    error = finished(engine, engine.submit(REQUEST)).error
    assert error is not None and error.kind == "lost" and "rank 1 hung" in error.message
    runner.gate.release()
    assert finished(engine, engine.submit(REQUEST)).state == "done", "the next one gets a new runner"


def test_a_runner_that_cannot_be_had_again_pauses_the_queue(open_engine: Any, runner: GatedRunner) -> None:
    engine = open_engine()
    runner.gate.release(3)
    runner.errors = [RunnerLost("gone"), EngineError("there is no device any more")]
    first, second = engine.submit(REQUEST), engine.submit(REQUEST)
    error = finished(engine, first).error
    assert error is not None and error.kind == "model" and "no device" in error.message
    assert engine.paused and "no device" in engine.status.message and engine.job(second).state == "queued"
    engine.resume()
    assert finished(engine, second).state == "done" and not engine.paused and not engine.status.message


def test_jobs_that_take_their_runner_with_them_do_not_use_up_the_queue(open_engine: Any, runner: GatedRunner) -> None:
    engine = open_engine()
    engine.pause()
    ids = [engine.submit(REQUEST) for _ in range(3)]
    runner.errors = [RunnerLost("gone") for _ in range(4)]
    runner.gate.release(5)
    engine.resume()
    assert [finished(engine, name).state for name in ids[:2]] == ["failed", "failed"]
    assert engine.paused and engine.job(ids[2]).state == "queued"
    engine.resume()
    assert finished(engine, ids[2]).state == "done"


def test_idle_frees_the_model_and_the_next_job_loads_it(open_engine: Any, runner: GatedRunner) -> None:
    engine = open_engine(idle_minutes=0.05 / 60)
    wait_for(lambda: "unload" in runner.calls)
    runner.gate.release()
    job_id = engine.submit(REQUEST)
    assert finished(engine, job_id).state == "done"
    wait_for(lambda: runner.calls.count("unload") == 2)
    assert runner.calls == ["start", "unload", "start", job_id, "unload"]


def test_the_model_stays_while_it_hears_a_voice(open_engine: Any, runner: GatedRunner) -> None:
    engine = open_engine(idle_minutes=0.05 / 60)
    heard: list[Any] = []
    asking = threading.Thread(target=lambda: heard.append(engine.speaker_embedding("voice.wav")))
    asking.start()
    wait_for(lambda: "hear" in runner.calls)
    time.sleep(0.5)
    assert runner.calls[-1] == "hear"
    runner.hearing.release()
    asking.join()
    assert heard and heard[0].shape == (192,)
    wait_for(lambda: runner.calls[-1] == "unload")


def test_a_full_disk_under_a_clip_fails_it_and_spares_the_rest(
    open_engine: Any, runner: GatedRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine()
    engine.pause()
    first, second = engine.submit(REQUEST), engine.submit(REQUEST)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    runner.gate.release(3)
    with monkeypatch.context() as patch:
        patch.setattr(media, "_raw_sound", full)
        engine.resume()
        error = finished(engine, first).error
    assert error is not None and error.kind == "disk" and str(engine.output_dir) in error.message
    assert engine.paused and engine.status.message == error.message and engine.job(second).state == "queued"
    assert not list(engine.output_dir.iterdir())
    engine.retry(first)  # whoever asks for something, tries again
    assert finished(engine, second).state == "done" and finished(engine, first).state == "done"


def test_no_job_starts_on_a_disk_that_is_full_already(
    open_engine: Any, runner: GatedRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine()
    monkeypatch.setattr(disk_module, "_free_bytes", lambda folder: 1000)
    runner.gate.release()
    job_id = engine.submit(REQUEST)
    wait_for(lambda: engine.status.message)
    assert engine.paused and engine.job(job_id).state == "queued" and "full" in engine.status.message
    monkeypatch.undo()
    engine.resume()
    assert finished(engine, job_id).state == "done"


def test_a_database_on_a_full_disk_loses_nothing(
    open_engine: Any, runner: GatedRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine()
    job_id = engine.submit(REQUEST)
    wait_for(lambda: job_id in runner.calls)

    def full(store: JobStore) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(JobStore, "_commit", full)
        runner.gate.release()
        done = finished(engine, job_id)
        assert done.state == "done" and done.result is not None and done.result.exists()
        with pytest.raises(DiskFullError, match="the queue"):
            engine.submit(REQUEST)
        with pytest.raises(DiskFullError):
            engine.resume()
        assert engine.paused
    engine.resume()
    runner.gate.release()
    assert finished(engine, engine.submit(REQUEST)).state == "done"
    engine.close()
    assert open_engine().job(job_id).state == "done"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small disk cannot be mounted here: {error}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_is_really_full(small_disk: Path, runner: GatedRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clips and queue on one small disk: full at submit, and again in the middle of a run."""
    monkeypatch.setattr(disk_module, "MIN_FREE_BYTES", 0)
    engine = QueueEngine(runner, small_disk, small_disk / ".studio" / "jobs.sqlite3")
    ballast = small_disk / "ballast"

    def fill() -> None:
        with pytest.raises(OSError), ballast.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    try:
        engine.wait_until_loaded()
        fill()
        long = GenerationRequest("a ball " * 4000, modality="audio")
        with pytest.raises(DiskFullError, match="full"):
            engine.submit(long)
        assert engine.jobs() == []
        ballast.unlink()
        first, second = engine.submit(long), engine.submit(REQUEST)
        wait_for(lambda: first in runner.calls)
        fill()
        runner.gate.release()
        failed = finished(engine, first)
        assert failed.state == "failed" and failed.error is not None and failed.error.kind == "disk"
        assert engine.paused and engine.job(second).state == "queued"
        ballast.unlink()
        runner.gate.release(2)
        engine.retry(first)
        assert [finished(engine, name).state for name in (second, first)] == ["done", "done"]
        assert len(list(small_disk.glob("*.wav"))) == 2 and not list(small_disk.glob(".nava-*"))
    finally:
        engine.close()


@pytest.mark.parametrize("error", [RunFailed(JobError("too large", kind="out_of_memory")), ValueError("a bug")])
def test_a_failed_run_is_the_end_of_that_job_alone(open_engine: Any, runner: GatedRunner, error: Exception) -> None:
    engine = open_engine()
    runner.errors = [error]
    runner.gate.release(2)
    first, second = engine.submit(REQUEST), engine.submit(REQUEST)
    failed = finished(engine, first)
    assert failed.state == "failed" and failed.error is not None and str(error) in failed.error.message
    assert finished(engine, second).state == "done"


def test_a_model_that_cannot_be_loaded_leaves_the_queue_of_earlier_days(open_engine: Any, runner: GatedRunner) -> None:
    engine = open_engine()
    engine.pause()
    kept = engine.submit(REQUEST)
    engine.close()
    runner.errors = [EngineError("there is no folder 'nowhere'")]
    engine = open_engine()
    assert engine.status.state == "failed" and engine.job(kept).state == "queued"
    with pytest.raises(EngineError, match="nowhere"):
        engine.submit(REQUEST)
    engine.close()
    assert open_engine().job(kept).state == "queued"


def test_changes_tell_of_everything_and_end_with_the_engine(open_engine: Any, runner: GatedRunner) -> None:
    engine = open_engine()
    seen: list[int] = []
    watcher = threading.Thread(target=lambda: seen.extend(engine.changes()))
    watcher.start()
    runner.gate.release()
    finished(engine, engine.submit(REQUEST))
    engine.close()
    watcher.join(30)
    assert not watcher.is_alive() and seen == sorted(set(seen)) and seen[-1] == engine.version


def test_an_estimate_is_learned_and_outlives_a_restart(open_engine: Any, runner: GatedRunner) -> None:
    engine = open_engine()
    assert engine.estimate(REQUEST) is None
    runner.gate.release(2)
    done = finished(engine, engine.submit(REQUEST))
    learned = engine.estimate(REQUEST)
    # Of its two steps the second counts twice, where the first was quicker than that.
    assert learned is not None and 0.0 < learned <= 2 * done.seconds
    assert engine.remaining(done.id) is None
    engine.pause()
    first, second = engine.submit(REQUEST), engine.submit(REQUEST)
    one, two = engine.remaining(first), engine.remaining(second)
    assert one is not None and two == pytest.approx(2 * one)
    wait_for(lambda: engine._store.runs(SPEC.name) != [])
    engine.close()
    assert open_engine().estimate(REQUEST) == pytest.approx(learned)
    with pytest.raises(RequestError):
        engine.estimate(GenerationRequest("x", width=100))


def test_nobody_can_say_how_long_a_request_takes_that_cannot_run(open_engine: Any, runner: GatedRunner) -> None:
    engine = open_engine()
    running, queued = engine.submit(REQUEST), engine.submit(REQUEST)
    wait_for(lambda: running in runner.calls)
    info = engine._dispatcher.info
    assert info is not None
    # As for one that was taken before the model was known, which runs for a moment before it is refused.
    engine._dispatcher.info = replace(info, spec=replace(info.spec, max_seconds=0.01))
    assert engine.remaining(running) is None and engine.remaining(queued) is None


def test_leftovers_of_dead_runs_are_removed_and_nobody_elses(open_engine: Any, runner: GatedRunner) -> None:
    engine = open_engine()
    job_id = engine.submit(REQUEST)
    wait_for(lambda: job_id in runner.calls)
    engine.close()
    names = (f".nava-1-20260101-000000-{job_id}-x1", ".nava-1-a clip of somebody else-x2", ".navarra")
    for name in names:
        (engine.output_dir / name).mkdir(parents=True)
        (engine.output_dir / name / "picture.mp4").write_bytes(b"half")
    engine = open_engine()
    assert [(engine.output_dir / name).exists() for name in names] == [False, True, True]
