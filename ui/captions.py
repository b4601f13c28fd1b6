"""What happens around rewriting: a caption is written into its box, used or not, and made into a clip.

The desk does the work and keeps it; a handler only starts it and watches, as with clips. Generate makes what stands in
the prompt's place: a caption gets there when a person presses "Use this caption", and in no other way.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

import gradio as gr

from nava_core.engine.jobs import Job, JobError, UnknownJob
from nava_core.request import RequestError
from rewriter import RewriteResult
from ui import views
from ui.differences import differences_view
from ui.panels import Page
from ui.rewriting import Rewriting, UnknownRewriting
from ui.service import WATCH_INTERVAL, Service, Updates, note
from ui.state import Draft, Form
from ui.updates import (
    asked_request,
    failure,
    nothing_wrong,
    stage_updates,
    start_buttons,
    started_job,
)
from ui.variations import submit_variations


def rewrite(service: Service, page: Page, stored: Any, prompt: str, owner: str = "") -> Updates:
    """Begin to rewrite the prompt; `follow` then shows how it goes."""
    draft = Draft.read(stored)
    updates = nothing_wrong(page) | {page.followed: None}
    try:
        rewriting_id = service.desk.start(prompt, replaces=draft.id, owner=owner)
    except RequestError as error:
        return updates | failure(service, page, JobError(str(error), error.field, "request"))
    return updates | _begun(service, page, draft.begun(rewriting_id, prompt))


def rewrite_and_generate(service: Service, page: Page, stored: Any, *values: Any, owner: str = "") -> Updates:
    """Begin to rewrite the prompt for a clip, which starts when the caption is there, whoever still watches."""
    draft = Draft.read(stored)
    updates = nothing_wrong(page) | {page.followed: None}
    try:
        form = Form.from_values(values)
        request = asked_request(service, form, owner)
        request = replace(request, original_prompt=draft.original_of(form.prompt) or form.prompt)
        if service.spec is not None:
            request.resolve(service.spec)  # what is wrong is better said now than after the writing

        number = form.number

        def make_clip(result: RewriteResult) -> str:
            return submit_variations(service.engine, replace(request, prompt=result.caption), number, owner)

        rewriting_id = service.desk.start(form.prompt, make_clip, draft.id, owner)
    except RequestError as error:
        return updates | failure(service, page, JobError(str(error), error.field, "request"))
    return updates | _begun(service, page, draft.begun(rewriting_id, form.prompt, form.random_seed))


def review_or_generate(
    service: Service, page: Page, stored: Any, review: bool, *values: Any, owner: str = ""
) -> Updates:
    """Rewrite & Generate; with `review` the caption waits beside the prompt until somebody asks for its clip."""
    if review:
        return rewrite(service, page, stored, values[0])
    return rewrite_and_generate(service, page, stored, *values, owner=owner)


async def follow(
    service: Service, page: Page, rewriting_id: str | None, stored: Any, owner: str = ""
) -> AsyncIterator[Updates]:
    """The caption's box, again and again, until it is written; then, where one was wanted, the clip's job."""
    if rewriting_id is None:
        yield {page.handed: None}
        return
    seen: Rewriting | None = None
    while True:
        try:
            now = service.desk.rewriting(rewriting_id, owner)
        except UnknownRewriting:
            return
        if now.replaced:
            return  # whoever watches its successor shows the box
        if now != seen:
            seen = now
            yield _shown(service, page, now) | _clip_of(service, page, now, Draft.read(stored))
        if now.finished:
            return
        await asyncio.sleep(WATCH_INTERVAL)


def stop(service: Service, page: Page, stored: Any, owner: str = "") -> Updates:
    """Stop the writing; the box says so when it has."""
    draft = Draft.read(stored)
    if draft.id is not None:
        service.desk.cancel(draft.id, owner)
    return {page.caption.stop: gr.update(interactive=False)}


def use(service: Service, page: Page, stored: Any, prompt: str, caption: str) -> Updates:
    """Put the caption, as it stands in its box, in the prompt's place."""
    if not caption.strip():
        return {page.caption.section: gr.skip()}
    draft = Draft.read(stored).with_used(caption, prompt)
    return {page.scene.prompt: caption, page.draft: draft.to_json(), **_places(page, draft)}


def undo(service: Service, page: Page, stored: Any, prompt: str) -> Updates:
    """Put back what stood in the prompt's place; what stands there now goes into the caption's box."""
    draft = Draft.read(stored)
    if draft.before is None:
        return {page.caption.used: gr.update(visible=False)}
    back = draft.without_used()
    return {
        page.scene.prompt: draft.before,
        page.caption.text: gr.update(value=prompt, visible=True, interactive=True),
        page.caption.use: gr.update(visible=True),
        page.caption.make: gr.update(visible=True),
        page.draft: back.to_json(),
        **_places(page, back),
    }


def mark_stale(service: Service, page: Page, stored: Any, prompt: str) -> Updates:
    """Say that the caption in the box was written for another prompt, where it was."""
    draft = Draft.read(stored)
    stale = draft.id is not None and not draft.belongs_to(prompt)
    return {page.caption.stale: note(service.text("caption.stale") if stale else "", "warning")}


@dataclass(frozen=True)
class Restored:
    """What a page that was opened again shows of the last rewriting. prompt, job: those that count instead."""

    updates: Updates = field(default_factory=dict)
    prompt: str | None = None
    job: Job | None = None


def restored_caption(
    service: Service, page: Page, draft: Draft, job: Job | None, words: str | None = None, owner: str = ""
) -> Restored:
    """The box and the prompt as they were.

    job: the browser's last that was begun from the form. words: the prompt, where the browser kept it.
    """
    try:
        now = None if draft.id is None else service.desk.rewriting(draft.id, owner)
    except UnknownRewriting:
        now = None
    newer = now is not None and (job is None or now.created > job.created)
    made = _job_of(service, now) if newer else None
    prompt = job.request.original_prompt if job is not None and job.request.prompt != draft.used else None
    if newer or (job is None and draft.id is not None):
        prompt = draft.source if draft.used is None else draft.used
    if words is not None:
        prompt = None
    in_place = (
        words if words is not None else prompt if prompt is not None else "" if job is None else job.request.prompt
    )
    if draft.original_of(in_place) is not None:
        updates = _places(page, draft)
    elif now is not None:
        updates = _shown(service, page, now) | {page.followed: None if now.finished else now.id}
    else:
        updates = {}
    return Restored(updates, prompt, made)


def _begun(service: Service, page: Page, draft: Draft) -> Updates:
    assert draft.id is not None
    now = service.desk.rewriting(draft.id)
    return {
        **_places(page, draft.without_used()),
        **_shown(service, page, now),
        page.caption.stale: note(""),
        page.followed: draft.id,
        page.draft: draft.to_json(),
    }


def _shown(service: Service, page: Page, now: Rewriting) -> Updates:
    """The box: all that follows from the rewriting alone."""
    text, caption, written = service.text, page.caption, now.result is not None
    words = now.text if written or not now.finished else ""
    return {
        caption.section: gr.update(visible=True),
        caption.status: views.rewriting(text, now),
        caption.changes: gr.update(
            value=differences_view(text, now.prompt, now.text) if written else "", visible=written
        ),
        caption.text: gr.update(value=words, visible=written or not now.finished, interactive=written),
        caption.use: gr.update(visible=written),
        caption.make: gr.update(visible=written),
        caption.stop: gr.update(visible=not now.finished and not written, interactive=True),
        page.scene.rewrite: gr.update(
            value=text("rewrite.button" if now.finished else "rewrite.busy"), interactive=now.finished
        ),
        page.handed: None,
        **(start_buttons(service, page, rewriting=not now.finished) if now.for_clip and now.job_id is None else {}),
    }


def _clip_of(service: Service, page: Page, now: Rewriting, draft: Draft) -> Updates:
    """The clip that follows from a caption, or why there is none."""
    job = _job_of(service, now)
    if job is not None:
        return {
            **stage_updates(service, page, job),
            **started_job(page, job, draft.random_seed),
            page.handed: job.id,
        }
    if now.result is not None and now.error is not None:
        return failure(service, page, now.error)
    return {}


def _job_of(service: Service, now: Rewriting | None) -> Job | None:
    try:
        return None if now is None or now.job_id is None else service.engine.job(now.job_id)
    except UnknownJob:
        return None


def _places(page: Page, draft: Draft) -> Updates:
    """Of the box and the way back, one is in sight."""
    in_use = draft.used is not None
    return {page.caption.section: gr.update(visible=not in_use), page.caption.used: gr.update(visible=in_use)}
