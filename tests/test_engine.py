"""The in-process engine, on the golden bundle's real pipeline."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from studio_server import held_up, tiny_pipeline
from waiting import finished, wait_for

from nava_core.conditioning.speaker import embed_speakers
from nava_core.engine import (
    EngineError,
    InProcessEngine,
    InProcessRunner,
    Outcome,
    Progress,
    QueueEngine,
    Task,
    UnknownJob,
    hearing,
)
from nava_core.engine import preview as preview_module
from nava_core.media import probe, read_audio, read_frames, read_recipe
from nava_core.request import GenerationCancelled, GenerationRequest, RequestError


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return tiny_pipeline()


@pytest.fixture
def engine(pipeline: Any, tmp_path: Path) -> Iterator[InProcessEngine]:
    engine = InProcessEngine(lambda: pipeline, tmp_path / "outputs")
    engine.wait_until_loaded()
    yield engine
    engine.close()


@pytest.fixture
def gate(pipeline: Any) -> Iterator[threading.Event]:
    """Holds every denoising step until it is set."""
    event = threading.Event()

    def hold(*_: Any) -> None:
        event.wait(30)

    hook = pipeline.transformer.register_forward_pre_hook(hold)
    yield event
    event.set()
    hook.remove()


@pytest.fixture
def break_next(pipeline: Any) -> Iterator[Callable[[BaseException], None]]:
    """Makes the backbone raise once, in the middle of the run that comes next."""
    errors: list[BaseException] = []

    def fail(*_: Any) -> None:
        if errors:
            raise errors.pop()

    hook = pipeline.transformer.register_forward_pre_hook(fail)
    yield errors.append
    hook.remove()


def test_a_job_becomes_a_clip_with_as_many_step_events_as_steps(engine: InProcessEngine) -> None:
    job_id = engine.submit(GenerationRequest("一个圆球 ~~你好~~", num_inference_steps=5))
    events = list(engine.events(job_id))
    assert [job.step for job in events if job.phase == "denoise"] == [1, 2, 3, 4, 5]
    assert [job.steps for job in events] == [5] * len(events)
    phases = list(dict.fromkeys(job.phase for job in events if job.state == "running"))
    assert phases == ["encode", "denoise", "decode", "mux"]
    last = events[-1]
    assert (last.state, last.error) == ("done", None)
    assert last.result is not None and last.recipe == read_recipe(last.result)
    assert last.recipe["seed"] == last.request.seed is not None
    info = probe(last.result)
    assert (info.width, info.height, info.num_frames) == (96, 64, 13)
    assert engine.job(job_id) == last


def test_the_preview_is_a_picture_of_the_clip_and_only_the_newest_is_kept(
    engine: InProcessEngine, pipeline: Any
) -> None:
    with held_up(pipeline, engine):
        job_id = engine.submit(GenerationRequest("一个圆球", num_inference_steps=2))
        wait_for(lambda: engine.job(job_id).step)
        preview = engine.job(job_id).preview
    assert preview is not None and preview.shape == (64, 96, 3) and preview.dtype == np.uint8
    assert finished(engine, job_id).state == "done"
    assert all(job.preview is None for job in engine.events(job_id))


def test_sound_alone_is_a_wav(engine: InProcessEngine) -> None:
    last = finished(engine, engine.submit(GenerationRequest("一个圆球", modality="audio", num_inference_steps=1)))
    assert last.state == "done" and last.result is not None and last.result.suffix == ".wav"


def test_the_same_seed_gives_the_same_file_name_never(engine: InProcessEngine) -> None:
    request = GenerationRequest("一个圆球", seed=7, num_inference_steps=1)
    first, second = (finished(engine, engine.submit(request)) for _ in range(2))
    assert first.result != second.result and first.result is not None and first.result.exists()


def test_cancel_ends_a_running_job_within_one_step(engine: InProcessEngine, pipeline: Any) -> None:
    with held_up(pipeline, engine):
        job_id = engine.submit(GenerationRequest("一个圆球", num_inference_steps=50))
        wait_for(lambda: engine.job(job_id).step)
        engine.cancel(job_id)
    last = finished(engine, job_id)
    assert last.state == "cancelled" and last.step <= 2
    assert last.result is None and not list(engine.output_dir.glob("*"))


def test_jobs_wait_in_order_and_a_waiting_one_can_be_cancelled(engine: InProcessEngine, gate: threading.Event) -> None:
    request = GenerationRequest("一个圆球", num_inference_steps=1)
    ids = [engine.submit(request) for _ in range(4)]
    wait_for(lambda: engine.job(ids[0]).state == "running")
    assert [engine.job(job_id).ahead for job_id in ids] == [0, 1, 2, 3]
    engine.cancel(ids[1])
    assert engine.job(ids[1]).state == "cancelled"
    assert [engine.job(job_id).ahead for job_id in ids[2:]] == [1, 2]
    gate.set()
    done = [finished(engine, job_id) for job_id in (ids[0], ids[2], ids[3])]
    assert [job.state for job in done] == ["done"] * 3
    times = [job.result.stat().st_mtime_ns for job in done if job.result]
    assert times == sorted(times)
    engine.cancel(ids[0])
    assert engine.job(ids[0]).state == "done"


def test_a_bad_request_is_refused_at_once_with_its_field(engine: InProcessEngine) -> None:
    with pytest.raises(RequestError) as caught:
        engine.submit(GenerationRequest("一个圆球", width=100))
    assert caught.value.field == "width"


def test_an_unreadable_reference_fails_its_job_with_its_field(engine: InProcessEngine, tmp_path: Path) -> None:
    path = tmp_path / "voice.wav"
    path.write_bytes(b"no sound at all")
    last = finished(engine, engine.submit(GenerationRequest("~~你好~~", speakers=(str(path),), num_inference_steps=1)))
    assert last.state == "failed" and last.error is not None
    assert (last.error.field, last.error.kind) == ("speakers", "request") and "voice.wav" in last.error.message


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "out_of_memory"),
        (MemoryError(), "out_of_memory"),
        (RuntimeError("a bug"), "internal"),
        (SystemExit("a library gave up"), "internal"),
    ],
)
def test_the_engine_outlives_any_error(
    engine: InProcessEngine, break_next: Callable[[BaseException], None], error: BaseException, kind: str
) -> None:
    break_next(error)
    request = GenerationRequest("一个圆球", num_inference_steps=1)
    failed = finished(engine, engine.submit(request))
    assert failed.state == "failed" and failed.error is not None and failed.error.kind == kind
    if kind == "out_of_memory":
        assert "96x64" in failed.error.message and "smaller" in failed.error.message
    assert finished(engine, engine.submit(request)).state == "done"


def test_the_model_loads_in_the_background_and_requests_may_come_first(pipeline: Any, tmp_path: Path) -> None:
    ready = threading.Event()

    def load() -> Any:
        ready.wait(30)
        return pipeline

    engine = InProcessEngine(load, tmp_path)
    try:
        assert engine.status.state == "loading" and engine.count_tokens("圆球") is None
        good = engine.submit(GenerationRequest("一个圆球", num_inference_steps=1))
        bad = engine.submit(GenerationRequest("一个圆球", width=100))
        ready.set()
        assert engine.wait_until_loaded().state == "ready" and engine.spec.name == "nava-nano"
        assert finished(engine, good).state == "done"
        error = finished(engine, bad).error
        assert error is not None and (error.field, error.kind) == ("width", "request")
        count = engine.count_tokens("一个圆球")
        assert count is not None and 0 < count.used < count.limit
    finally:
        ready.set()
        engine.close()


def test_a_model_that_cannot_be_loaded_is_said_to_everybody(tmp_path: Path) -> None:
    ready = threading.Event()

    def load() -> Any:
        ready.wait(30)
        raise ValueError("there is no folder 'nowhere'")

    engine = InProcessEngine(load, tmp_path)
    waiting = engine.submit(GenerationRequest("一个圆球"))
    ready.set()
    assert engine.wait_until_loaded().state == "failed" and "nowhere" in engine.status.message
    error = finished(engine, waiting).error
    assert error is not None and error.kind == "model" and "nowhere" in error.message
    with pytest.raises(EngineError, match="nowhere"):
        engine.submit(GenerationRequest("一个圆球"))
    with pytest.raises(EngineError, match="nowhere"):
        _ = engine.spec
    engine.close()


def test_close_ends_what_runs_and_what_waits(engine: InProcessEngine, gate: threading.Event) -> None:
    ids = [engine.submit(GenerationRequest("一个圆球", num_inference_steps=50)) for _ in range(2)]
    wait_for(lambda: engine.job(ids[0]).state == "running")

    def go_on() -> None:
        wait_for(lambda: engine.status.state == "closed")
        gate.set()

    threading.Thread(target=go_on).start()
    engine.close()
    assert [finished(engine, job_id).state for job_id in ids] == ["cancelled", "cancelled"]
    with pytest.raises(EngineError):
        engine.submit(GenerationRequest("一个圆球"))


def test_an_unknown_id_is_named_and_old_jobs_are_forgotten(pipeline: Any, tmp_path: Path) -> None:
    engine = InProcessEngine(lambda: pipeline, tmp_path, keep=1)
    ids = []
    for _ in range(3):
        ids.append(engine.submit(GenerationRequest("一个圆球", modality="audio", num_inference_steps=1)))
        finished(engine, ids[-1])
    last = engine.submit(GenerationRequest("一个圆球", modality="audio", num_inference_steps=1))
    assert engine.job(ids[-1]).state == "done"
    for ask in (engine.job, engine.events, engine.cancel):
        with pytest.raises(UnknownJob, match=ids[0]):
            ask(ids[0])
    assert finished(engine, last).state == "done"
    engine.close()


def test_previews_are_rare_and_cheap(monkeypatch: pytest.MonkeyPatch, pipeline: Any) -> None:
    now = [100.0]
    taken = []

    def slow_preview(vae: Any, latents: Any) -> np.ndarray:
        taken.append(now[0])
        now[0] += 0.1
        return np.zeros((2, 2, 3), np.uint8)

    monkeypatch.setattr("nava_core.export.preview_image", slow_preview)
    monkeypatch.setattr(preview_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    preview = preview_module.Preview()
    for _ in range(6000):
        now[0] += 0.01
        preview.picture(pipeline, torch.zeros(1))
    assert len(taken) >= 4
    assert 0.1 * len(taken) <= 0.0075 * (now[0] - 100.0) + 0.1
    assert preview.picture(pipeline, None) is None


def test_a_voice_is_heard_beside_a_running_clip(
    engine: InProcessEngine, pipeline: Any, gate: threading.Event, tmp_path: Path
) -> None:
    voice = write_voice(tmp_path / "voice.wav")
    job_id = engine.submit(GenerationRequest("一个圆球", num_inference_steps=2))
    wait_for(lambda: engine.job(job_id).state == "running")
    embedding = engine.speaker_embedding(voice)
    assert engine.job(job_id).state == "running"
    gate.set()
    assert embedding.shape == (192,) and embedding.dtype == np.float32
    assert np.array_equal(embedding, embed_speakers(pipeline.speaker_encoder, [voice])[0].numpy())
    assert finished(engine, job_id).state == "done"


def test_a_voice_that_cannot_be_heard(engine: InProcessEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.wav").write_bytes(b"no sound at all")
    with pytest.raises(RequestError, match=r"broken\.wav") as refused:
        engine.speaker_embedding(tmp_path / "broken.wav")
    assert refused.value.field == "speakers"
    voice = write_voice(tmp_path / "voice.wav")
    monkeypatch.setattr(hearing, "embed_speakers", lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(EngineError, match="not enough memory"):
        engine.speaker_embedding(voice)
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.speaker_embedding(voice)


def test_a_model_without_a_speaker_encoder_says_so(tmp_path: Path) -> None:
    deaf = tiny_pipeline()
    deaf.speaker_encoder = None
    engine = InProcessEngine(lambda: deaf, tmp_path)
    with pytest.raises(EngineError, match="no speaker encoder"):
        engine.speaker_embedding(write_voice(tmp_path / "voice.wav"))
    engine.close()


def test_a_freed_model_is_loaded_again_for_a_voice(pipeline: Any, tmp_path: Path) -> None:
    loads: list[int] = []
    gone = threading.Event()

    def load() -> Any:
        loads.append(1)
        if gone.is_set():
            raise ValueError("the disk is gone")
        return pipeline

    engine = QueueEngine(InProcessRunner(load), tmp_path, idle_minutes=0.001)
    voice = write_voice(tmp_path / "voice.wav")
    dispatcher = engine._dispatcher
    engine.wait_until_loaded()
    wait_for(lambda: not dispatcher._loaded)
    before = len(loads)
    assert engine.speaker_embedding(voice).shape == (192,) and len(loads) == before + 1
    wait_for(lambda: not dispatcher._loaded)
    gone.set()
    with pytest.raises(EngineError, match="the disk is gone"):
        engine.speaker_embedding(voice)
    gone.clear()
    engine.resume()
    assert finished(engine, engine.submit(GenerationRequest("一个圆球", num_inference_steps=1))).state == "done"
    engine.close()


def write_voice(path: Path) -> Path:
    soundfile.write(path, np.sin(np.arange(24_000) / 13) * 0.3, 16_000)
    return path


def test_counting_tokens_while_a_job_runs(engine: InProcessEngine) -> None:
    counts = {engine.count_tokens("一个圆球 ~~你好~~")}
    job_id = engine.submit(GenerationRequest("一个圆球 ~~你好~~", num_inference_steps=3))
    while not engine.job(job_id).finished:
        counts.add(engine.count_tokens("一个圆球 ~~你好~~"))
    assert len(counts) == 1 and engine.job(job_id).state == "done"


def test_a_run_as_a_generator_ends_with_its_outcome(pipeline: Any, tmp_path: Path) -> None:
    runner = InProcessRunner(lambda: pipeline)
    request = GenerationRequest("一个圆球", num_inference_steps=3, seed=1).resolve(runner.start().spec)
    *progress, outcome = runner.stream(Task("some-job", request, tmp_path / "clip"))
    assert isinstance(outcome, Outcome) and outcome.path == tmp_path / "clip.mp4"
    assert read_recipe(outcome.path) == outcome.recipe and outcome.recipe["job"] == "some-job"
    moments = [(moment.phase, moment.step) for moment in progress if isinstance(moment, Progress)]
    assert moments == [("denoise", 1), ("denoise", 2), ("denoise", 3), ("decode", 3), ("mux", 3)]
    cut_short = runner.stream(Task("other-job", request, tmp_path / "other"))
    next(cut_short)
    cut_short.close()
    bad = GenerationRequest("~~x~~", seed=1, speakers=(str(tmp_path / "no.wav"),)).resolve(pipeline.spec)
    with pytest.raises(RequestError):
        list(runner.stream(Task("bad-job", bad, tmp_path / "bad")))
    runner.unload()
    runner.close()
    with pytest.raises(GenerationCancelled):
        list(runner.stream(Task("late-job", request, tmp_path / "late")))
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_a_killed_run_is_made_again_to_the_same_clip(pipeline: Any, tmp_path: Path) -> None:
    """kill -9 in the middle of the real pipeline's denoising, in another process; this one takes over."""
    database = tmp_path / "queue" / "jobs.sqlite3"
    script = (
        "import sys\n"
        "from studio_server import held_up, tiny_pipeline\n"
        "from nava_core.engine import InProcessRunner, QueueEngine\n"
        "from nava_core.request import GenerationRequest\n"
        "pipeline = tiny_pipeline()\n"
        "engine = QueueEngine(InProcessRunner(lambda: pipeline), sys.argv[1], sys.argv[2])\n"
        "with held_up(pipeline, engine):\n"
        "    job_id = engine.submit(GenerationRequest('一个圆球 ~~你好~~', num_inference_steps=6))\n"
        "    for job in engine.events(job_id):\n"
        "        print(job_id, job.step, flush=True)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "clips"), str(database)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        job_id = next(line.split()[0] for line in child.stdout if line.split()[1] == "1")
        child.kill()
    engine = QueueEngine(InProcessRunner(lambda: pipeline), tmp_path / "clips", database)
    try:
        done = finished(engine, job_id)
        assert (done.state, done.attempts) == ("done", 2)
        twin = finished(engine, engine.duplicate(job_id))
        assert done.result is not None and twin.result is not None and done.recipe is not None
        assert done.recipe["seed"] == done.request.seed == twin.request.seed
        for one, other in zip(read_frames(done.result), read_frames(twin.result), strict=True):
            assert np.array_equal(one, other)
        assert np.array_equal(read_audio(done.result)[0], read_audio(twin.result)[0])
    finally:
        engine.close()
    assert len(list((tmp_path / "clips").iterdir())) == 2
