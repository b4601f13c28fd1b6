"""The stage by itself, for tests: an engine that only remembers, clips that speak, and a page of the two panels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import gradio as gr
import numpy as np

from nava_core.engine.jobs import EngineStatus, Job, UnknownJob
from nava_core.media import write_audio, write_clip
from nava_core.request import GenerationRequest
from ui.catalogue import Catalogue
from ui.compare import ComparePanel, build_compare, connect_compare
from ui.handover import comparable_clips
from ui.service import Service
from ui.stage import StagePanel, build_stage, connect_stage, stage_updates

WIDTH, HEIGHT, FPS, SECONDS, RATE = 96, 64, 24, 4, 16_000
LINES = ("Hello <b>there</b>", "How are you today, my friend?")
SPOKEN = ((0.4, 1.2), (2.0, 3.6))
PROMPT = f"A café. She says: ~~{LINES[0]}~~ and he: ~~{LINES[1]}~~"


class Engine:
    """What the stage asks of an engine, over jobs that a test makes."""

    status = EngineStatus("ready")
    paused = False
    left: float | None = 12.0

    def __init__(self, *jobs: Job):
        self.known = {job.id: job for job in jobs}

    def job(self, job_id: str) -> Job:
        if job_id not in self.known:
            raise UnknownJob(job_id)
        return self.known[job_id]

    def remaining(self, job_id: str) -> float | None:
        return self.left


def service_of(engine: Engine, language: str = "en") -> Service:
    return Service(cast(Any, engine), cast(Any, None), Catalogue(language))


def spoken_sound(seconds: float = SECONDS) -> np.ndarray:
    """Two stretches that waver as a voice does."""
    moment = np.arange(round(seconds * RATE)) / RATE
    sound = np.random.default_rng(0).normal(0, 0.002, moment.size)
    for start, end in SPOKEN:
        sound += ((moment >= start) & (moment < end)) * np.sin(900 * moment) * (0.3 + 0.1 * np.sin(25 * moment))
    return sound.astype(np.float32)


def make_clip(folder: Path, name: str, seed: int = 1, modality: str = "audio_video") -> Job:
    """A job that is done, with its clip in `folder`."""
    request = GenerationRequest(
        PROMPT, width=WIDTH, height=HEIGHT, fps=FPS, seconds=SECONDS, seed=seed, modality=cast(Any, modality)
    )
    recipe = request.to_recipe() | {"model": "nava-nano"}
    if modality == "audio":
        path = write_audio(folder / f"{name}.wav", spoken_sound(), RATE, recipe)
    else:
        frames = (np.full((HEIGHT, WIDTH, 3), 40 + index, np.uint8) for index in range(SECONDS * FPS))
        sound = spoken_sound() if modality == "audio_video" else None
        path = write_clip(folder / f"{name}.mp4", frames, FPS, sound, RATE, recipe, preset="ultrafast")
    return Job(name, request, "done", "mux", step=4, steps=4, result=path, recipe=recipe, seconds=3.2)


@contextmanager
def stage_page(engine: Engine, folder: Path, language: str = "en", **options: Any) -> Iterator[str]:
    """A page that shows the job whose id is written into #show, and compares those of #group (apart by spaces).

    What the panels ask of the page stands in #asked. options: for `connect_stage`.
    """
    from ui import launch_options

    service = service_of(engine, language)
    with gr.Blocks() as demo:
        show, group = gr.Textbox(elem_id="show", label="Show"), gr.Textbox(elem_id="group", label="Compare")
        stage, compare = build_stage(service.text), build_compare(service.text)
        asked = gr.JSON(elem_id="asked", label="Asked")
        connect_stage(service, stage, **options)
        connect_compare(service, compare, partial(comparable_clips, service))
        _connect(service, show, group, stage, compare, asked)
    _, url, _ = demo.queue(default_concurrency_limit=None).launch(
        prevent_thread_lock=True, quiet=True, **launch_options(folder) | {"mcp_server": False}
    )
    try:
        yield url
    finally:
        demo.close()


def _connect(
    service: Service, show: gr.Textbox, group: gr.Textbox, stage: StagePanel, compare: ComparePanel, asked: gr.JSON
) -> None:
    show.submit(lambda job_id: stage_updates(service, stage, service.engine.job(job_id)), show, stage.outputs)
    group.submit(str.split, group, compare.group)
    for state in (stage.reuse, stage.continue_from):
        state.change(lambda value: value, state, asked)
    compare.taken.change(lambda value: {"taken": value}, compare.taken, asked)
