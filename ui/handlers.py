"""What happens on the page's events. Plain functions of the service, the page's components and the event's values.

They return updates by component. Generation itself runs in the engine: a handler only starts it and watches, so that a
closed tab ends the watching and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import gradio as gr

from nava_core.engine.jobs import EngineError, Job, JobError, UnknownJob
from nava_core.media import read_recipe
from nava_core.request import GenerationRequest, ModelSpec, RequestError
from nava_core.speech import parse_speech, read_jsonl_prompt
from ui import captions, handover, views
from ui.assignments import colours_of
from ui.examples import examples_for, examples_view
from ui.faster import shown_loras
from ui.footer import SHARES, quality_of, steps_of
from ui.hints import outside_hint
from ui.library.voices import Voice
from ui.panels import Page, settings_of
from ui.service import STAGE_INTERVAL, WATCH_INTERVAL, Service, Updates, note
from ui.state import Draft, Form, form_values, kept_settings, kept_words
from ui.updates import (
    asked_request,
    cancel_button,
    failure,
    nothing_wrong,
    stage_updates,
    start_buttons,
    started_job,
)
from ui.variations import finished_variations, submit_variations, unfinished

logger = logging.getLogger(__name__)


# Writing


def write(service: Service, page: Page, prompt: str, stored: Any = None, owner: str = "") -> Updates:
    """Follow the prompt as it is typed: its spans in their speakers' colours, its tokens, a hint."""
    text, spec = service.text, service.spec
    voices = _cast(service, owner)
    suggestion = read_jsonl_prompt(prompt, len(voices))[1]
    hint = outside_hint(text, spec, prompt) if spec else ""
    return {
        page.scene.speech: views.speech(text, parse_speech(prompt), colours_of(voices, prompt, stored)),
        page.scene.tokens: gr.update(value=_tokens(service, prompt), visible=bool(prompt)),
        page.scene.suggestion: gr.update(visible=suggestion is not None),
        page.scene.hint: note(hint, "hint"),
        page.scene.prompt_error: note(""),
    }


def _cast(service: Service, owner: str) -> list[Voice]:
    try:
        return [] if service.voices is None else service.voices.list(owner)
    except EngineError:
        return []  # the cast says so


def _tokens(service: Service, prompt: str) -> str:
    try:
        return views.tokens(service.text, service.engine.count_tokens(prompt))
    except RequestError as error:
        return views.message(service.text.said(error), "error")


def follow_suggestion(service: Service, prompt: str, owner: str = "") -> str:
    """The prompt with every ~~ read as the start of a spoken line, and the closing marks written out."""
    return read_jsonl_prompt(prompt, len(_cast(service, owner)))[0]


def show_example(service: Service, page: Page, stored: dict[str, Any] | None, index: Any) -> Updates:
    """Put an example's recipe into the form, and its clip onto the stage where no job of the page is at work."""
    spec = service.spec
    examples = examples_for(spec.name) if spec is not None else ()
    if spec is None or not isinstance(index, int) or not 0 <= index < len(examples):
        return {page.scene.prompt: gr.skip()}
    example = examples[index]
    updates: Updates = {
        page.scene.prompt: example.prompt,
        page.scene.image: str(example.image) if example.image else None,
    }
    if example.clip is None:
        return updates
    recipe = read_recipe(example.clip)
    request = replace(GenerationRequest.from_recipe(recipe), image=None, speakers=())
    values = kept_settings(_written_values(request, spec), spec)
    updates |= {page.form[name]: value for name, value in values.items()}
    updates |= {page.bar.seed: str(request.seed), page.bar.random_seed: False}
    last = _last_job(service, stored, "")
    if last is None or last.finished:
        shown = Job("example", request, state="done", result=example.clip, recipe=recipe)
        updates |= stage_updates(service, page, shown) | {page.stage.progress: gr.update(value="", visible=False)}
    return updates


def _written_values(request: GenerationRequest, spec: ModelSpec) -> dict[str, Any]:
    """The form that makes `request`; nothing where the model could not make it."""
    try:
        return form_values(request, spec)
    except RequestError as error:
        logger.info("an example does not suit %s: %s", spec.name, error)
        return {}


def choose_quality(service: Service, quality: Any) -> Any:
    """The steps that a quality means."""
    spec = service.spec
    return gr.skip() if spec is None or quality not in SHARES else steps_of(quality, spec)


def follow_steps(service: Service, steps: float | None) -> Any:
    """The quality that so many steps are, if they are one."""
    spec = service.spec
    return gr.skip() if spec is None else quality_of(steps, spec)


def choose_modality(service: Service, modality: str, negative_prompt: str) -> Any:
    """The model's own negative prompt follows the modality; a person's stays as it is."""
    spec = service.spec
    if spec is None or negative_prompt not in (spec.negative_prompt, spec.negative_prompt_audio):
        return gr.skip()
    return spec.negative_prompt_audio if modality == "audio" else spec.negative_prompt


# Generating


def estimate(service: Service, page: Page, *values: Any, owner: str = "") -> Updates:
    """What the form would take here, once there were clips to learn from; nothing while it cannot be read."""
    try:
        form = Form.from_values(values)
        request = asked_request(service, form, owner)
        once = service.engine.estimate(request if form.prompt.strip() else replace(request, prompt="…"))
        seconds = None if once is None else once * form.number
    except (RequestError, EngineError):
        seconds = None
    words = "" if seconds is None else service.text("generate.estimate", time=views.duration(service.text, seconds))
    return {page.bar.estimate: gr.update(value=views.quiet(words), visible=bool(words))}


def generate(
    service: Service,
    page: Page,
    draft: Any,
    stored: dict[str, Any] | None,
    editing: str | None,
    *values: Any,
    owner: str = "",
) -> Updates:
    """Start a job from the form, or change the one that is being edited; `watch` then follows it.

    stored: what the browser keeps of the job on the stage; while that runs, the new one waits in the queue and the
    stage stays as it is.
    """
    updates = nothing_wrong(page) | {page.watched: None}
    try:
        form = Form.from_values(values)
        original = Draft.read(draft).original_of(form.prompt)
        request = replace(asked_request(service, form, owner), original_prompt=original)
        if editing is not None:
            return updates | _edit(service, page, editing, request, owner)
        job_id = submit_variations(service.engine, request, form.number, owner)
    except RequestError as error:
        return updates | failure(service, page, JobError(str(error), error.field, "request"))
    except EngineError as error:
        return updates | failure(service, page, JobError(str(error), kind=error.kind))
    job = service.engine.job(job_id)
    last = _last_job(service, stored, owner)
    if last is not None and unfinished(service.engine, last):
        return updates | {page.bar.notice: note(service.text("generate.queued", ahead=job.ahead), "hint")}
    updates |= stage_updates(service, page, job) | started_job(page, job, form.random_seed)
    return updates | {page.watched: job_id}


def _edit(service: Service, page: Page, job_id: str, request: GenerationRequest, owner: str) -> Updates:
    """Raises RequestError; EngineError where the job has begun in the meantime."""
    if handover.own_job(service, job_id, owner) is None:
        return handover.stop_editing(page) | {page.bar.notice: note(service.text("editing.gone"))}
    service.engine.edit(job_id, request)
    return handover.stop_editing(page) | {page.bar.notice: note(service.text("editing.done"), "hint")}


def make_caption(
    service: Service,
    page: Page,
    stored: Any,
    caption: str,
    last: dict[str, Any] | None,
    editing: str | None,
    *values: Any,
    owner: str = "",
) -> Updates:
    """Put the caption in the prompt's place, because somebody asked for it, and make it."""
    prompt, *others = values
    if not caption.strip():
        return {page.watched: None}
    draft = Draft.read(stored).with_used(caption, prompt)
    used = captions.use(service, page, stored, prompt, caption)
    return used | generate(service, page, draft.to_json(), last, editing, caption, *others, owner=owner)


async def watch(service: Service, page: Page, job_id: str | None, session: str = "") -> AsyncIterator[Updates]:
    """The stage, again and again, until the job and its variations end. Asleep in between: a thousand open pages hold
    no thread.

    Each time all of it: a browser that lags behind may show only the last of several states, so none may rely on an
    earlier one. Where nothing differs, Gradio sends nothing. A tab follows one job at a time: the one asked for last.
    """
    if job_id is None:
        yield {page.stage.progress: gr.skip()}
        return
    asked = service.watching[session] = f"{job_id} {secrets.token_hex(4)}"
    try:
        async for updates in _watched(service, page, job_id):
            if service.watching.get(session) != asked:
                return
            yield updates
    finally:
        if service.watching.get(session) == asked:
            del service.watching[session]


async def _watched(service: Service, page: Page, job_id: str) -> AsyncIterator[Updates]:
    seen: tuple[Any, ...] | None = None
    while True:
        job = service.engine.job(job_id)
        if _moment(job) != seen:
            seen = _moment(job)
            yield stage_updates(service, page, job)
        if job.finished:
            following = unfinished(service.engine, job)
            if not following:
                break
            job_id = following[0].id
        await asyncio.sleep(STAGE_INTERVAL)
    if len(made := finished_variations(service.engine, job)) > 1:
        yield stage_updates(service, page, job) | {page.compare.group: made}


def cancel(service: Service, page: Page, stored: dict[str, Any] | None, owner: str = "") -> Updates:
    """Ask the job and its variations to end; the stage says how far that is."""
    job = _last_job(service, stored, owner)
    if job is None:
        return {page.bar.notice: gr.skip()}
    group = unfinished(service.engine, job)
    try:
        for one in reversed(group):  # those that wait first: none of them should begin meanwhile
            service.engine.cancel(one.id)
    except (EngineError, UnknownJob) as error:
        return {page.bar.notice: note(service.text.said(error), "error")}
    shown = group[0] if group else job
    return {page.bar.cancel: cancel_button(service.text, service.engine.job(shown.id))}


def go_on(service: Service, page: Page, stored: dict[str, Any] | None, owner: str = "") -> Updates:
    """Make the job again from its seed, or take up the queue again; `watch` then follows it."""
    updates = nothing_wrong(page) | {page.watched: None}
    job = _last_job(service, stored, owner)
    if job is None:
        return updates
    try:
        if any(one.state == "queued" for one in unfinished(service.engine, job)):
            service.engine.resume()
            return updates  # it is being watched already
        service.engine.retry(job.id)
        job = service.engine.job(job.id)
    except (EngineError, UnknownJob) as error:
        return updates | {page.bar.notice: note(service.text.said(error), "error")}
    return updates | stage_updates(service, page, job) | {page.watched: job.id}


def _moment(job: Job) -> tuple[Any, ...]:
    # For one that waits, how long it still will changes by itself.
    clock = time.monotonic() if job.state == "queued" else job.seconds
    return (job.state, job.phase, job.step, job.ahead, job.cancelling, int(clock))


# Opening


def restore_words(page: Page, saved: Any) -> Updates:
    """What a person had written, at once: whoever goes on writing while the model loads loses nothing by it."""
    return {page.form[name]: value for name, value in kept_words(saved).items()} or {page.scene.prompt: gr.skip()}


async def open_page(
    service: Service, page: Page, stored: dict[str, Any] | None, draft: Any, saved: Any = None, owner: str = ""
) -> Updates:
    """A new or reloaded page: wait for the model, show what it can do, and take up again what the browser began.

    saved: the form as the browser kept it; `restore_words` has shown its words. Without one, the form is the job's.
    """
    engine = service.engine
    while engine.status.state == "loading":
        await asyncio.sleep(WATCH_INTERVAL)
    spec = service.spec
    if spec is None:
        error = JobError(engine.status.message, kind="model")
        return {page.header: views.header(service.text, engine.status, links=page.links)} | failure(
            service, page, error
        )
    updates = _model_ready(service, page, spec) | {page.watched: None, page.followed: None}
    job = _last_job(service, stored, owner)
    if stored is not None and job is None:
        logger.info("a browser asked for job %s, which is not known any more", stored["id"])
        updates[page.job] = None
    words = kept_words(saved).get("prompt")
    caption = captions.restored_caption(service, page, Draft.read(draft), job, words, owner)
    if caption.job is not None:
        job, stored = caption.job, {"random_seed": Draft.read(draft).random_seed}
        updates |= started_job(page, job, stored["random_seed"])
    values = {} if job is None or stored is None else _form_of(service, page, job.request, stored)
    if caption.prompt is not None:
        values[page.scene.prompt] = caption.prompt
    if words is not None:
        values = {}
        values |= {page.form[name]: value for name, value in kept_settings(saved, spec, service.loras).items()}
    for component, value in values.items():
        updates[component] = _with_value(updates.get(component), value)
    if job is not None:
        now = next(iter(unfinished(engine, job)), job)
        updates |= stage_updates(service, page, now) | {page.watched: now.id, page.examples: gr.update(visible=False)}
    return updates | caption.updates


def _last_job(service: Service, stored: dict[str, Any] | None, owner: str) -> Job | None:
    """The job that a browser remembers, if it is known and that person's."""
    return None if stored is None else handover.own_job(service, stored["id"], owner)


def _with_value(update: Any, value: Any) -> Any:
    return (update if isinstance(update, dict) else {}) | gr.update(value=value)


def _model_ready(service: Service, page: Page, spec: ModelSpec) -> Updates:
    text = service.text
    updates: Updates = {
        page.header: views.header(text, service.engine.status, spec.name, page.links),
        **start_buttons(service, page),
    }
    updates |= {page.form[name]: gr.update(**changes) for name, changes in settings_of(text, spec).items()}
    updates |= {page.form[name]: gr.update(**changes) for name, changes in shown_loras(service.loras).items()}
    examples = examples_for(spec.name)
    if examples:
        updates[page.scene.prompt] = gr.update(placeholder=examples[0].prompt)
    updates[page.examples] = gr.update(value=examples_view(text, examples), visible=bool(examples))
    return updates


def _form_of(service: Service, page: Page, request: GenerationRequest, stored: dict[str, Any]) -> Updates:
    """The form that made `request`; its prompt alone where today's model could not make it."""
    try:
        values = form_values(request, service.engine.spec, service.loras)
    except RequestError as error:
        logger.info("a browser's last request does not suit %s: %s", service.engine.spec.name, error)
        return {page.scene.prompt: request.prompt}
    return {page.form[name]: value for name, value in values.items()} | {page.bar.random_seed: stored["random_seed"]}
