"""What one panel asks of the rest of the page: a clip on the stage, a recipe in the form, a job to be changed."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gradio as gr

from nava_core.engine.jobs import Job, UnknownJob
from nava_core.ffmpeg import MediaError
from nava_core.request import GenerationRequest, RequestError
from nava_core.speech import parse_speech
from ui import views
from ui.assignments import assignments_of
from ui.library.clips import Clip, UnknownClip
from ui.library.voices import voice_id_of
from ui.panels import Page
from ui.reuse import PARTS, reused_form
from ui.service import Service, Updates, note
from ui.updates import stage_updates, started_job
from ui.variations import unfinished

logger = logging.getLogger(__name__)

# What a person may meet: the clip went in the meantime, its file is broken, or the disk is full.
_EXPECTED = (UnknownClip, OSError, ValueError, MediaError)


def own_job(service: Service, job_id: Any, owner: str) -> Job | None:
    """The job, if it is known and that person's."""
    try:
        job = service.engine.job(str(job_id))
    except UnknownJob:
        return None
    return job if job.owner == owner else None


def show_job(service: Service, page: Page, asked: Any, owner: str) -> Updates:
    """Put a job of the queue on the stage; `watch` then follows it. asked: {"job"}."""
    job = own_job(service, (asked or {}).get("job"), owner)
    if job is None:
        return {page.watched: None}
    now = next(iter(unfinished(service.engine, job)), job) if job.finished else job
    # The form stays as it is: it may hold what is to be made next.
    kept = {part: value for part, value in started_job(page, now, random_seed=True).items() if part is page.job}
    return stage_updates(service, page, now) | kept | {page.watched: now.id, page.examples: gr.update(visible=False)}


def show_clip(service: Service, page: Page, asked: Any, owner: str) -> Updates:
    """Put a clip on the stage, whether or not the engine still knows its job. asked: {"id"}, or the id."""
    clip_id = asked.get("id") if isinstance(asked, dict) else asked
    if not isinstance(clip_id, str):
        return {page.watched: None}
    if service.gallery is None:
        return show_job(service, page, {"job": clip_id}, owner)
    try:
        service.gallery.file_of(owner, clip_id)
        job = job_of(service.gallery.clip(owner, clip_id))
    except _EXPECTED as error:
        return {page.watched: None, page.bar.notice: note(service.text.said(error))}
    shown = stage_updates(service, page, job) | {page.stage.progress: gr.update(value="", visible=False)}
    return shown | {page.watched: None, page.examples: gr.update(visible=False)}


def job_of(clip: Clip) -> Job:
    """A clip as the stage shows jobs."""
    request = GenerationRequest.from_recipe(clip.recipe)
    return Job(
        clip.id,
        request,
        state="done",
        result=clip.path,
        recipe=clip.recipe,
        created=clip.created,
        owner=clip.owner,
        variations=clip.variations,
    )


def reuse(service: Service, page: Page, asked: Any, *values: Any, owner: str) -> Updates:
    """Put parts of a clip's recipe into the form. asked: {"recipe", "parts"}."""
    if not asked:
        return {page.bar.notice: gr.skip()}
    return take_over(service, page, asked["recipe"], asked["parts"], values, owner)


def take_over(
    service: Service, page: Page, recipe: Mapping[str, Any], parts: Iterable[str], values: tuple[Any, ...], owner: str
) -> Updates:
    """Put parts of a recipe into the form. values: the form's, and who speaks which line."""
    spec = service.spec
    if spec is None:
        return {page.bar.notice: gr.skip()}
    *form, _ = values
    wanted = list(PARTS) if "all" in parts else list(parts)
    now = dict(zip(page.form, form, strict=True))
    changed, messages = reused_form(now, recipe, wanted, spec, service.text, service.loras)
    voices = changed.pop("voices", None)
    updates: Updates = {page.form[name]: value for name, value in changed.items() if name in page.form}
    prompt = changed.get("prompt", now["prompt"])
    if voices is not None:
        updates[page.script.assignments] = assignments_of(service.voices, owner, prompt, voices)
    words = " ".join(messages) or service.text("reuse.done")
    return updates | {page.bar.notice: note(words, "warning" if messages else "hint")}


def edit_job(service: Service, page: Page, asked: Any, *values: Any, owner: str) -> Updates:
    """Put a waiting job into the form; the next Generate changes it. asked: {"job": id or None, "recipe"}."""
    if not asked:
        return {page.bar.notice: gr.skip()}
    updates = take_over(service, page, asked["recipe"], PARTS, values, owner)
    job = own_job(service, asked["job"], owner) if asked["job"] else None
    editing = None if job is None else job.id
    return updates | {page.editing: editing, page.bar.editing: gr.update(visible=editing is not None)}


def stop_editing(page: Page) -> Updates:
    """The form stays as it is; what comes of it is a new job again."""
    return {page.editing: None, page.bar.editing: gr.update(visible=False)}


def continue_from(service: Service, page: Page, asked: Any, owner: str) -> Updates:
    """Let the next clip begin with a clip's last frame. asked: {"image"}, or {"job"} for its clip's."""
    if not asked:
        return {page.bar.notice: gr.skip()}
    frame = asked.get("image")
    if frame is None and service.gallery is not None:
        try:
            frame = service.gallery.last_frame(owner, asked["job"])
        except _EXPECTED as error:
            return {page.bar.notice: note(service.text.said(error))}
    if frame is None:
        return {page.bar.notice: gr.skip()}
    return {page.scene.image: str(frame), page.bar.notice: note(service.text("reuse.continued"), "hint")}


def line_colours(service: Service, recipe: Mapping[str, Any]) -> list[int]:
    """The colours of a recipe's lines, as the script has them: their voice's, else by number."""
    spans = parse_speech(str(recipe.get("prompt", ""))).spans
    speakers = [*(recipe.get("speakers") or ()), *[None] * len(spans)]
    colours = []
    for number, speaker in enumerate(speakers[: len(spans)], start=1):
        known = None
        if service.voices is not None and isinstance(speaker, str):
            known = service.voices.colour(voice_id_of(speaker))
        colours.append(known or views.colour(number))
    return colours


def compared(asked: Any) -> list[str]:
    """The clips to stand side by side. asked: {"ids"}."""
    return list((asked or {}).get("ids") or [])


def comparable_clips(service: Service, group: Sequence[str], owner: str) -> list[Job]:
    """The clips of these ids that are there, as the gallery or the engine knows them."""
    found = []
    for clip_id in group:
        job = own_job(service, clip_id, owner)
        if job is None and service.gallery is not None:
            try:
                service.gallery.file_of(owner, clip_id)
                job = job_of(service.gallery.clip(owner, clip_id))
            except (*_EXPECTED, RequestError):
                logger.info("clip %s cannot be compared", clip_id)
        if job is not None and job.state == "done" and job.result is not None and job.result.is_file():
            found.append(job)
    return found
