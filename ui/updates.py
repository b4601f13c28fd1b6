"""What a job, an error or the loaded model makes of the page's components."""

from __future__ import annotations

from typing import Any

import gradio as gr

from nava_core.engine.jobs import Job, JobError
from nava_core.request import GenerationRequest
from ui import stage
from ui.assignments import speakers_of
from ui.catalogue import Catalogue
from ui.panels import Page
from ui.service import Service, Updates, error_words, note
from ui.state import Form

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
    "shortcuts": "faster.title",
    "loras": "loras.label",
}


def asked_request(service: Service, form: Form, owner: str) -> GenerationRequest:
    """What the form asks for, with the voices of its owner's cast. Raises RequestError, EngineError."""
    speakers = speakers_of(service.voices, owner, form.prompt, form.assignments)
    return form.request(service.text, speakers, service.loras)


def stage_updates(service: Service, page: Page, job: Job) -> Updates:
    """Everything on the page that follows from the job alone."""
    updates = {
        **start_buttons(service, page, busy=not job.finished),
        page.bar.cancel: cancel_button(service.text, job),
        **stage.stage_updates(service, page.stage, job),
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
    """The buttons that begin a clip. busy: another one is on the stage, so that it will wait. rewriting: its caption is
    being written.
    """
    state = service.engine.status.state
    key = "generate.busy" if busy else "generate.loading" if state == "loading" else "generate.button"
    usable = not rewriting and state == "ready"
    return {
        page.bar.generate: gr.update(value=service.text(key), interactive=usable),
        page.bar.rewrite_and_generate: gr.update(interactive=usable),
    }


def cancel_button(text: Catalogue, job: Job) -> Any:
    words = text("cancel.asked" if job.cancelling else "cancel.button")
    return gr.update(visible=not job.finished, value=words, interactive=not job.cancelling)


# Messages: the one boundary between errors and people


def failure(service: Service, page: Page, error: JobError) -> Updates:
    """The message beside the field that is to blame, with its section opened, and a word near the button."""
    text = service.text
    place = page.errors.get(error.field or "")
    if place is None:
        return {page.bar.notice: note(error_words(text, error), "error")}
    where = text("stage.check_field", field=text(FIELD_LABELS[error.field or ""]))
    updates: Updates = {place: note(service.text.said(error.message), "error"), page.bar.notice: note(where, "error")}
    if error.field == "guidance":
        updates[page.mixer.section] = gr.update(open=True)
    if error.field in ("negative_prompt", "modality", "num_inference_steps", "shortcuts", "loras"):
        updates[page.advanced.section] = gr.update(open=True)
    return updates


def nothing_wrong(page: Page) -> Updates:
    return {place: note("") for place in [*page.errors.values(), page.bar.notice]}
