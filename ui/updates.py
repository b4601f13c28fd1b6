"""What a job, an error or the loaded model makes of the page's components."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from nava_core.engine.jobs import Engine, Job, JobError
from nava_core.request import ModelSpec
from ui import stage, views
from ui.catalogue import Catalogue
from ui.library.gallery import Gallery
from ui.library.voices import VoiceLibrary
from ui.panels import Page
from ui.rewriting import RewriteDesk

Updates = dict[Any, Any]
WATCH_INTERVAL = 0.2
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
    "guidance": "guidance.title",
}


@dataclass(frozen=True)
class Service:
    """What handlers work with: the engine that runs requests, the desk that rewrites prompts, and the page's words.

    voices, gallery: what people keep; None where the page has no such panel.
    """

    engine: Engine
    desk: RewriteDesk
    text: Catalogue
    voices: VoiceLibrary | None = None
    gallery: Gallery | None = None

    @property
    def spec(self) -> ModelSpec | None:
        """The model's spec, or None while there is none; never waits."""
        return self.engine.spec if self.engine.status.state == "ready" else None


def stage_updates(service: Service, page: Page, job: Job) -> Updates:
    """Everything on the page that follows from the job alone."""
    updates = {
        **start_buttons(service, page, busy=not job.finished),
        page.writing.cancel: cancel_button(service.text, job),
        **stage.stage_updates(service, page.stage, job),
    }
    return updates | (failure(service, page, job.error) if job.error else {})


def started_job(page: Page, job: Job, random_seed: bool) -> Updates:
    """What the browser keeps of the job that it began."""
    seed = str(job.request.seed)
    return {page.job: {"id": job.id, "seed": seed, "random_seed": random_seed}, page.settings.seed: seed}


def start_buttons(service: Service, page: Page, busy: bool = False, rewriting: bool = False) -> Updates:
    """The buttons that begin a clip. rewriting: its caption is being written."""
    state = service.engine.status.state
    key = "generate.busy" if busy else "generate.loading" if state == "loading" else "generate.button"
    usable = not busy and not rewriting and state == "ready"
    return {
        page.writing.generate: gr.update(value=service.text(key), interactive=usable),
        page.writing.rewrite_and_generate: gr.update(visible=not busy, interactive=usable),
    }


def cancel_button(text: Catalogue, job: Job) -> Any:
    words = text("cancel.asked" if job.cancelling else "cancel.button")
    return gr.update(visible=not job.finished, value=words, interactive=not job.cancelling)


# Messages: the one boundary between errors and people


def failure(service: Service, page: Page, error: JobError) -> Updates:
    """The message beside the field that is to blame, with its section opened, and a word near the button."""
    text, settings = service.text, page.settings
    place = page.errors.get(error.field or "")
    if place is None:
        return {page.writing.notice: note(error_words(text, error), "error")}
    where = text("stage.check_field", field=text(FIELD_LABELS[error.field or ""]))
    updates: Updates = {place: note(error.message, "error"), page.writing.notice: note(where, "error")}
    if error.field == "guidance":
        updates[settings.guidance_section] = gr.update(open=True)
    if error.field == "negative_prompt":
        updates[settings.advanced_section] = gr.update(open=True)
    return updates


def error_words(text: Catalogue, error: JobError) -> str:
    return error.message if error.kind == "request" else text(f"error.{error.kind}", message=error.message)


def nothing_wrong(page: Page) -> Updates:
    return {place: note("") for place in [*page.errors.values(), page.writing.notice]}


def note(words: str, kind: str = "error") -> Any:
    return gr.update(value=views.message(words, kind) if words else "", visible=bool(words))
