"""What happens on the page's events. Plain functions of the service, the page's components and the event's values.

They return updates by component. Generation itself runs in the engine: a handler only starts it and watches, so that a
closed tab ends the watching and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import gradio as gr

from nava_core.engine.jobs import EngineError, Job, JobError, UnknownJob
from nava_core.request import GenerationRequest, ModelSpec, RequestError
from nava_core.speech import SpeechPrompt, parse_speech, read_jsonl_prompt
from ui import views
from ui.captions import restored_caption
from ui.catalogue import Catalogue
from ui.examples import Example, examples_for
from ui.hints import outside_hint
from ui.panels import Page, settings_of
from ui.state import VOICE_SLOTS, Draft, Form, form_values
from ui.updates import (
    WATCH_INTERVAL,
    Service,
    Updates,
    cancel_button,
    failure,
    note,
    nothing_wrong,
    stage_updates,
    start_buttons,
    started_job,
)

logger = logging.getLogger(__name__)

VOICE_LABEL_LETTERS = 16


# Writing


def write(service: Service, page: Page, prompt: str, *voices: str | None) -> Updates:
    """Follow the prompt as it is typed: its spans, its tokens, a slot for each voice, a hint."""
    text, spec = service.text, service.spec
    speech = parse_speech(prompt)
    suggestion = read_jsonl_prompt(prompt, _last_filled(voices))[1]
    hint = outside_hint(text, spec, prompt) if spec else ""
    return {
        page.writing.speech: gr.update(value=views.speech(text, speech), visible=bool(prompt)),
        page.writing.tokens: gr.update(value=_tokens(service, prompt), visible=bool(prompt)),
        page.writing.suggestion: gr.update(visible=suggestion is not None),
        page.writing.hint: note(hint, "hint"),
        page.writing.prompt_error: note(""),
        page.material.voices_note: _voicesnote(service, len(speech.spans)),
        **_voice_slots(text, page, speech, voices),
    }


def _tokens(service: Service, prompt: str) -> str:
    try:
        return views.tokens(service.text, service.engine.count_tokens(prompt))
    except RequestError as error:
        return views.message(str(error), "error")


def _voice_slots(text: Catalogue, page: Page, speech: SpeechPrompt, voices: tuple[str | None, ...]) -> Updates:
    """A slot for each span and never fewer than two; one that holds a recording stays in sight."""
    shown = max(2, len(speech.spans), _last_filled(voices))
    updates: Updates = {}
    for index, slot in enumerate(page.material.voices):
        if index < len(speech.spans):
            label = text("voice.line", number=index + 1, line=_shorten(speech.spans[index].text))
        else:
            label = text("voice.slot", number=index + 1)
        updates[slot] = gr.update(visible=index < shown, label=label)
    return updates


def _voicesnote(service: Service, spans: int = 0) -> str:
    text, spec = service.text, service.spec
    if spec is not None and not spec.accepts_speakers:
        return views.message(text("voices.unsupported", model=spec.name), "hint")
    if spans > VOICE_SLOTS:
        return views.message(text("voices.more", count=VOICE_SLOTS), "warning")
    return views.quiet(text("voices.info"))


def _last_filled(voices: tuple[str | None, ...]) -> int:
    return max((number for number, voice in enumerate(voices, start=1) if voice), default=0)


def _shorten(line: str) -> str:
    return line if len(line) <= VOICE_LABEL_LETTERS else f"{line[:VOICE_LABEL_LETTERS]}…"


def follow_suggestion(prompt: str, *voices: str | None) -> str:
    """The prompt with every ~~ read as the start of a spoken line, and the closing marks written out."""
    return read_jsonl_prompt(prompt, _last_filled(voices))[0]


def show_example(service: Service, page: Page, index: int) -> Updates:
    spec = service.spec
    if spec is None:
        return {page.writing.prompt: gr.skip()}
    example: Example = examples_for(spec.name)[index]
    image = str(example.image) if example.image else None
    return {page.writing.prompt: example.prompt, page.material.image: image}


def choose_modality(service: Service, modality: str, negative_prompt: str) -> Any:
    """The model's own negative prompt follows the modality; a person's stays as it is."""
    spec = service.spec
    if spec is None or negative_prompt not in (spec.negative_prompt, spec.negative_prompt_audio):
        return gr.skip()
    return spec.negative_prompt_audio if modality == "audio" else spec.negative_prompt


# Generating


def estimate(service: Service, page: Page, *values: Any) -> Updates:
    """What the form would take here, once there were clips to learn from; nothing while it cannot be read."""
    try:
        form = Form.from_values(values)
        request = form.request(service.text)
        seconds = service.engine.estimate(request if form.prompt.strip() else replace(request, prompt="…"))
    except (RequestError, EngineError):
        seconds = None
    words = "" if seconds is None else service.text("generate.estimate", time=views.duration(service.text, seconds))
    return {page.writing.estimate: gr.update(value=views.quiet(words), visible=bool(words))}


def generate(service: Service, page: Page, draft: Any, *values: Any) -> Updates:
    """Start a job from the form; `watch` then follows it."""
    updates = nothing_wrong(page) | {page.watched: None}
    try:
        form = Form.from_values(values)
        request = replace(form.request(service.text), original_prompt=Draft.read(draft).original_of(form.prompt))
        job_id = service.engine.submit(request)
    except RequestError as error:
        return updates | failure(service, page, JobError(str(error), error.field, "request"))
    except EngineError as error:
        return updates | failure(service, page, JobError(str(error), kind=error.kind))
    job = service.engine.job(job_id)
    updates |= stage_updates(service, page, job) | started_job(page, job, form.random_seed)
    return updates | {page.watched: job_id}


async def watch(service: Service, page: Page, job_id: str | None) -> AsyncIterator[Updates]:
    """The stage, again and again, until the job ends. Asleep in between, so a thousand open pages hold no thread.

    Each time all of it: a browser that lags behind may show only the last of several states, so none may rely on an
    earlier one. Where nothing differs, Gradio sends nothing.
    """
    if job_id is None:
        yield {page.stage.progress: gr.skip()}
        return
    seen: tuple[Any, ...] | None = None
    while True:
        job = service.engine.job(job_id)
        if _moment(job) != seen:
            seen = _moment(job)
            yield stage_updates(service, page, job)
        if job.finished:
            return
        await asyncio.sleep(WATCH_INTERVAL)


def cancel(service: Service, page: Page, stored: dict[str, Any] | None) -> Updates:
    """Ask the job to end; the stage says how far that is."""
    if stored is None:
        return {page.writing.notice: gr.skip()}
    try:
        service.engine.cancel(stored["id"])
    except (EngineError, UnknownJob) as error:
        return {page.writing.notice: note(str(error), "error")}
    return {page.writing.cancel: cancel_button(service.text, service.engine.job(stored["id"]))}


def go_on(service: Service, page: Page, stored: dict[str, Any] | None) -> Updates:
    """Make the job again from its seed, or take up the queue again; `watch` then follows it."""
    updates = nothing_wrong(page) | {page.watched: None}
    if stored is None:
        return updates
    try:
        if service.engine.job(stored["id"]).state == "queued":
            service.engine.resume()
            return updates  # it is being watched already
        service.engine.retry(stored["id"])
        job = service.engine.job(stored["id"])
    except (EngineError, UnknownJob) as error:
        return updates | {page.writing.notice: note(str(error), "error")}
    return updates | stage_updates(service, page, job) | {page.watched: job.id}


def _moment(job: Job) -> tuple[Any, ...]:
    # For one that waits, how long it still will changes by itself.
    clock = time.monotonic() if job.state == "queued" else job.seconds
    return (job.state, job.phase, job.step, job.ahead, job.cancelling, int(clock))


# Opening


async def open_page(service: Service, page: Page, stored: dict[str, Any] | None, draft: Any) -> Updates:
    """A new or reloaded page: wait for the model, show what it can do, and take up again what the browser began."""
    engine = service.engine
    while engine.status.state == "loading":
        await asyncio.sleep(WATCH_INTERVAL)
    spec = service.spec
    if spec is None:
        error = JobError(engine.status.message, kind="model")
        return {page.header: views.header(service.text, engine.status)} | failure(service, page, error)
    updates = _model_ready(service, page, spec) | {page.watched: None, page.followed: None}
    job = _last_job(service, stored)
    if stored is not None and job is None:
        logger.info("a browser asked for job %s, which is not known any more", stored["id"])
        updates[page.job] = None
    caption = restored_caption(service, page, Draft.read(draft), job)
    if caption.job is not None:
        job, stored = caption.job, {"random_seed": Draft.read(draft).random_seed}
        updates |= started_job(page, job, stored["random_seed"])
    values = {} if job is None or stored is None else _form_of(page, job.request, spec, stored)
    if caption.prompt is not None:
        values[page.writing.prompt] = caption.prompt
    for component, value in values.items():
        updates[component] = _with_value(updates.get(component), value)
    if job is not None:
        updates |= stage_updates(service, page, job) | {page.watched: job.id}
    return updates | caption.updates


def _last_job(service: Service, stored: dict[str, Any] | None) -> Job | None:
    try:
        return None if stored is None else service.engine.job(stored["id"])
    except UnknownJob:
        return None


def _with_value(update: Any, value: Any) -> Any:
    return (update if isinstance(update, dict) else {}) | gr.update(value=value)


def _model_ready(service: Service, page: Page, spec: ModelSpec) -> Updates:
    text = service.text
    updates: Updates = {
        page.header: views.header(text, service.engine.status, spec.name),
        **start_buttons(service, page),
    }
    updates |= {page.form[name]: gr.update(**changes) for name, changes in settings_of(text, spec).items()}
    examples = examples_for(spec.name)
    if examples:
        updates[page.writing.prompt] = gr.update(placeholder=examples[0].prompt)
    for index, button in enumerate(page.writing.examples):
        shown = index < len(examples)
        updates[button] = gr.update(value=examples[index].title(text.language) if shown else "", visible=shown)
    updates[page.material.voices_note] = _voicesnote(service)
    if not spec.accepts_speakers:
        updates |= {slot: gr.update(interactive=False) for slot in page.material.voices}
    return updates


def _form_of(page: Page, request: GenerationRequest, spec: ModelSpec, stored: dict[str, Any]) -> Updates:
    """The form that made `request`; its prompt alone where today's model could not make it."""
    try:
        values = form_values(request, spec)
    except RequestError as error:
        logger.info("a browser's last request does not suit %s: %s", spec.name, error)
        return {page.writing.prompt: request.prompt}
    voices = dict(zip(page.material.voices, values.pop("voices"), strict=True))
    return {page.form[name]: value for name, value in values.items()} | {
        page.settings.random_seed: stored["random_seed"],
        **voices,
    }
