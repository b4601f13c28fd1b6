"""What a job, an error or the loaded model makes of the page's components."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from nava_core.engine.jobs import Engine, Job, JobError
from nava_core.request import ModelSpec
from ui import views
from ui.catalogue import Catalogue
from ui.panels import Page
from ui.rewriting import RewriteDesk

Updates = dict[Any, Any]
WATCH_INTERVAL = 0.2
# What kept these from being made may be gone by now.
WORTH_ANOTHER_TRY = ("lost", "disk", "model", "interrupted")
FIELD_LABELS = {
    "prompt": "prompt.label",
    "negative_prompt": "negative.label",
    "image": "image.label",
    "speakers": "voices.label",
    "modality": "modality.label",
    "width": "size.label",
    "height": "size.label",
    "seconds": "seconds.label",
    "num_frames": "seconds.label",
    "fps": "seconds.label",
    "num_inference_steps": "steps.label",
    "seed": "seed.label",
    "variations": "variations.label",
    "guidance": "guidance.title",
}


@dataclass(frozen=True)
class Service:
    """What handlers work with: the engine that runs requests, the desk that rewrites prompts, and the page's words."""

    engine: Engine
    desk: RewriteDesk
    text: Catalogue

    @property
    def spec(self) -> ModelSpec | None:
        """The model's spec, or None while there is none; never waits."""
        return self.engine.spec if self.engine.status.state == "ready" else None


def stage_updates(service: Service, page: Page, job: Job) -> Updates:
    """Everything on the page that follows from the job alone."""
    text, stage, engine = service.text, page.stage, service.engine
    path = str(job.result) if job.state == "done" else None
    is_sound = job.request.modality == "audio"
    paused = job.state == "queued" and engine.paused
    left = None if job.finished else engine.remaining(job.id)
    progress = views.progress(text, job, left, engine.status.message if paused else None)
    updates = {
        **start_buttons(service, page, busy=not job.finished),
        page.bar.cancel: cancel_button(text, job),
        stage.progress: gr.update(value=progress, visible=True),
        stage.picture: gr.update(value=views.stage_picture(text, job, paused), visible=job.state != "done"),
        stage.again: _again_button(text, job, paused),
        stage.clip: gr.update(value=None if is_sound else path, visible=path is not None and not is_sound),
        stage.sound: gr.update(value=path if is_sound else None, visible=path is not None and is_sound),
        stage.download: gr.update(value=path, visible=path is not None),
        stage.recipe_section: gr.update(visible=path is not None),
        stage.recipe: views.recipe(text, job.recipe) if job.recipe else "",
        stage.recipe_json: job.recipe,
    }
    return updates | (failure(service, page, job.error) if job.error else {})


def started_job(page: Page, job: Job, random_seed: bool) -> Updates:
    """What the browser keeps of the job that it began."""
    seed = str(job.request.seed)
    return {
        page.job: {"id": job.id, "seed": seed, "random_seed": random_seed},
        page.bar.seed: seed,
        page.examples: gr.update(visible=False),
    }


def start_buttons(service: Service, page: Page, busy: bool = False, rewriting: bool = False) -> Updates:
    """The buttons that begin a clip. rewriting: its caption is being written."""
    state = service.engine.status.state
    key = "generate.busy" if busy else "generate.loading" if state == "loading" else "generate.button"
    usable = not busy and not rewriting and state == "ready"
    return {
        page.bar.generate: gr.update(value=service.text(key), interactive=usable),
        page.bar.rewrite_and_generate: gr.update(visible=not busy, interactive=usable),
    }


def cancel_button(text: Catalogue, job: Job) -> Any:
    words = text("cancel.asked" if job.cancelling else "cancel.button")
    return gr.update(visible=not job.finished, value=words, interactive=not job.cancelling)


def _again_button(text: Catalogue, job: Job, paused: bool) -> Any:
    if paused:
        return gr.update(value=text("again.resume"), visible=True)
    if job.state == "interrupted":
        return gr.update(value=text("again.go_on"), visible=True)
    worth_it = job.state == "failed" and job.error is not None and job.error.kind in WORTH_ANOTHER_TRY
    return gr.update(value=text("again.try"), visible=worth_it)


# Messages: the one boundary between errors and people


def failure(service: Service, page: Page, error: JobError) -> Updates:
    """The message beside the field that is to blame, with its section opened, and a word near the button."""
    text = service.text
    place = page.errors.get(error.field or "")
    if place is None:
        return {page.bar.notice: note(error_words(text, error), "error")}
    where = text("stage.check_field", field=text(FIELD_LABELS[error.field or ""]))
    updates: Updates = {place: note(error.message, "error"), page.bar.notice: note(where, "error")}
    if error.field == "guidance":
        updates[page.mixer.section] = gr.update(open=True)
    if error.field in ("negative_prompt", "modality", "num_inference_steps"):
        updates[page.advanced.section] = gr.update(open=True)
    return updates


def error_words(text: Catalogue, error: JobError) -> str:
    return error.message if error.kind == "request" else text(f"error.{error.kind}", message=error.message)


def nothing_wrong(page: Page) -> Updates:
    return {place: note("") for place in [*page.errors.values(), page.bar.notice]}


def note(words: str, kind: str = "error") -> Any:
    return gr.update(value=views.message(words, kind) if words else "", visible=bool(words))
