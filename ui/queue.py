"""The queue on the page: what waits and runs, and what its owner may do with it.

The list is one component that asks for what has changed (queue_feed.py, ui/scripts/queue.js); its buttons are Gradio
events that do one thing and end. What comes of them is seen by every tab with its next question.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache

from nava_core.engine.jobs import Engine, EngineError, Job, UnknownJob
from ui import queue_export, queue_file, queue_view
from ui.catalogue import Catalogue
from ui.owners import caller, owner_of
from ui.queue_feed import QueueFeed
from ui.service import QUIET, Service, Updates, note
from ui.views import quiet

SCRIPT = Path(__file__).with_name("scripts") / f"{Path(__file__).stem}.js"
# Straight to the server and not through Gradio's queue, where every running event holds a place.
DIRECT: dict[str, Any] = QUIET | {"queue": False, "trigger_mode": "multiple"}
SAVE = """file => {
    if (!file?.url) return;
    const link = document.createElement("a");
    link.href = file.url;
    link.download = file.orig_name ?? "";
    link.click();
}"""


@dataclass
class _Link:
    """Between a panel that is built and the service that it is connected to later."""

    feed: QueueFeed | None = None


@dataclass(frozen=True)
class QueuePanel:
    """The panel's components.

    watched_job: {"job": id, "at": time} of the job that a person clicked, to be shown on the stage.
    edited: {"job": id or None, "recipe": its request as a recipe, "at": time}: to be put into the form. With a job, it
    waits, and `Engine.edit(job, request)` is to follow; with None it has ended, and what follows is a new one.
    (`at` makes the same choice a change again.)
    """

    rows: gr.HTML
    notice: gr.HTML
    plan: gr.HTML
    accept: gr.Button
    discard: gr.Button
    upload: gr.UploadButton
    export: gr.Button
    export_all: gr.Button
    watched_job: gr.State
    edited: gr.State
    planned: gr.State
    saved: gr.File
    link: _Link = field(repr=False)


def build_queue(text: Catalogue) -> QueuePanel:
    """Build the panel, elem_id "queue", in the Blocks at hand."""
    link = _Link()

    async def queue_feed(asked: Any, request: gr.Request) -> dict[str, Any]:
        return _answer(link.feed, asked, await caller(request))

    with gr.Column(elem_id="queue", elem_classes="nava-card"):
        rows = gr.HTML(
            queue_view.skeleton(text),
            elem_id="queue-rows",
            js_on_load=SCRIPT.read_text(encoding="utf-8"),
            apply_default_css=False,
            server_functions=[queue_feed],
        )
        notice = gr.HTML(visible=False, elem_id="queue-notice", elem_classes="nava-message-place")
        with gr.Row(elem_id="queue-file"):
            upload = gr.UploadButton(
                text("queue_file.import"), file_count="multiple", size="sm", elem_id="queue-import", type="filepath"
            )
            export = gr.Button(text("queue_file.export"), size="sm", elem_id="queue-export")
            export_all = gr.Button(text("queue_file.export_all"), size="sm", elem_id="queue-export-all")
            gr.HTML(quiet(text("queue_file.info")), elem_id="queue-file-info")
        plan = gr.HTML(visible=False, elem_id="queue-plan", apply_default_css=False)
        with gr.Row(elem_id="queue-plan-actions"):
            accept = gr.Button(visible=False, variant="primary", elem_id="queue-accept")
            discard = gr.Button(text("queue_file.discard"), visible=False, elem_id="queue-discard")
        saved = gr.File(visible=False)
    return QueuePanel(
        rows=rows,
        notice=notice,
        plan=plan,
        accept=accept,
        discard=discard,
        upload=upload,
        export=export,
        export_all=export_all,
        watched_job=gr.State(None),
        edited=gr.State(None),
        planned=gr.State(None),
        saved=saved,
        link=link,
    )


def connect_queue(service: Service, panel: QueuePanel) -> None:
    """Attach the panel's events; nothing else on the page needs to be told."""
    feed = panel.link.feed = QueueFeed(service)
    desk = QueueDesk(service, feed)

    def act(event: gr.EventData, request: gr.Request) -> Updates:
        return _acted(panel, desk, owner_of(request), event._data)

    def choose(event: gr.EventData, request: gr.Request) -> Updates:
        return _chosen(panel, desk, owner_of(request), event._data)

    panel.rows.act(act, None, [panel.notice], **DIRECT)
    panel.rows.choose(choose, None, [panel.notice, panel.watched_job, panel.edited], **QUIET)
    _connect_import(service, panel)
    _connect_export(service, panel)


def _answer(feed: QueueFeed | None, asked: Any, owner: str) -> dict[str, Any]:
    if feed is None:
        raise RuntimeError("connect_queue was not called for this panel")
    known = asked if isinstance(asked, dict) else {}
    return feed.answer(owner, known.get("epoch"), known.get("seen"))


# Actions


def _acted(panel: QueuePanel, desk: QueueDesk, owner: str, data: Any) -> Updates:
    """Do something with a job or the queue; the list itself follows by asking."""
    asked = data if isinstance(data, dict) else {}
    try:
        desk.do(owner, str(asked.get("act")), str(asked.get("job") or ""), str(asked.get("before") or ""))
    except (EngineError, UnknownJob, ValueError) as error:
        return {panel.notice: note(queue_view.clean(desk.text.said(error)), "error")}
    return {panel.notice: note("")}


def _chosen(panel: QueuePanel, desk: QueueDesk, owner: str, data: Any) -> Updates:
    """Hand a job over to the rest of the page."""
    asked = data if isinstance(data, dict) else {}
    job_id = str(asked.get("job") or "")
    try:
        if asked.get("act") == "edit":
            return {panel.notice: note(""), panel.edited: desk.edited(owner, job_id)}
        return {panel.notice: note(""), panel.watched_job: {"job": desk.own(owner, job_id).id, "at": time.time()}}
    except UnknownJob as error:
        return {panel.notice: note(queue_view.clean(desk.text.said(error)), "error")}


class QueueDesk:
    """What an owner may do with the own jobs, and with the queue as a whole. Others' jobs are unknown here."""

    def __init__(self, service: Service, feed: QueueFeed):
        self._service, self._feed = service, feed
        self._moving = threading.Lock()  # two presses read the order and write it, one after the other
        self._acts: dict[str, Callable[[Job], Any]] = {
            "cancel": lambda job: self._engine.cancel(job.id),
            "duplicate": lambda job: self._engine.duplicate(job.id),
            "retry": lambda job: self._engine.retry(job.id),
            "dismiss": self._dismiss,
        }

    @property
    def text(self) -> Catalogue:
        return self._service.text

    @property
    def _engine(self) -> Engine:
        return self._service.engine

    def own(self, owner: str, job_id: str) -> Job:
        """Raises UnknownJob for a job of somebody else, as for one that never was."""
        job = self._engine.job(job_id)
        if job.owner != owner:
            raise UnknownJob(job_id)
        return job

    def do(self, owner: str, act: str, job_id: str = "", before: str = "") -> None:
        """Raises UnknownJob, EngineError (JobStateError), ValueError for what is no action.

        before: with "place", the own waiting job that this one shall precede; "" for the end.
        """
        if act == "resume":
            self._engine.resume()
        elif act == "pause":
            self._pause(owner)
        elif act == "clear":
            for job in self._feed.own(owner):
                if job.finished:
                    self._dismiss(job)
        elif act in ("first", "up", "down", "last", "place"):
            self._move(owner, act, job_id, before)
        elif act in self._acts:
            self._acts[act](self.own(owner, job_id))
        else:
            raise ValueError(self.text("queue.unknown_action", action=act[:40]))

    def edited(self, owner: str, job_id: str) -> dict[str, Any]:
        job = self.own(owner, job_id)
        waits = job.state in ("queued", "interrupted")
        return {"job": job.id if waits else None, "recipe": job.request.to_recipe(), "at": time.time()}

    def _pause(self, owner: str) -> None:
        """For everybody: so only while nobody else waits. To resume is anybody's."""
        if any(job.state == "queued" and job.owner != owner for job in self._engine.jobs()):
            raise ValueError(self.text("queue.pause_refused"))
        self._engine.pause()

    def _dismiss(self, job: Job) -> None:
        if job.state == "interrupted":
            self._engine.cancel(job.id)  # it is given up, also after the server's next start
        elif job.finished:
            self._feed.dismiss(job.id)

    def _move(self, owner: str, act: str, job_id: str, before: str) -> None:
        """Change places among the own jobs; nobody else's clip is made earlier or later by that."""
        with self._moving:
            self.own(owner, job_id)
            order = [job.id for job in self._engine.jobs() if job.state == "queued" and job.owner == owner]
            at = order.index(job_id) if job_id in order else 0
            others = [other for other in order if other != job_id]
            if act == "place":
                if before and before not in others:
                    return  # it has begun in the meantime, so that there is no such place any more
                place = others.index(before) if before else len(others)
            else:
                place = {"first": 0, "up": max(0, at - 1), "down": at + 1, "last": len(others)}[act]
            self._engine.reorder([*others[:place], job_id, *others[place:]])


# Import and export


def _connect_import(service: Service, panel: QueuePanel) -> None:
    text = service.text
    shown = [panel.notice, panel.plan, panel.accept, panel.discard, panel.planned]

    def closed(words: str = "", kind: str = "error") -> Updates:
        hidden = gr.update(visible=False)
        return {
            panel.notice: note(queue_view.clean(words), kind),
            panel.plan: gr.update(value="", visible=False),
            panel.accept: hidden,
            panel.discard: hidden,
            panel.planned: None,
        }

    def keep(data: bytes, name: str) -> Path:
        path = save_bytes_to_cache(data, name, panel.upload.GRADIO_CACHE)
        panel.upload.temp_files.add(path)
        return Path(path)

    def look(payload: Any) -> Updates:
        try:
            plan = queue_file.read_uploads(service, payload, keep)
        except ValueError as error:
            return closed(service.text.said(error))
        count = len(plan.clips)
        label = text("queue_file.queue_one") if count == 1 else text("queue_file.queue", count=count)
        return {
            panel.notice: note(""),
            panel.plan: gr.update(value=queue_file.plan_view(service, plan), visible=True),
            panel.accept: gr.update(value=label, visible=count > 0),
            panel.discard: gr.update(visible=True),
            panel.planned: plan,
        }

    def accept(plan: queue_file.ImportPlan | None, request: gr.Request) -> Updates:
        if plan is None:
            return closed(text("queue_file.gone"))
        return closed(*queue_file.queue_plan(service, plan, owner_of(request)))

    panel.upload.upload(look, panel.upload, shown, **QUIET)
    panel.accept.click(accept, panel.planned, shown, **QUIET)
    panel.discard.click(lambda: closed(), None, shown, **QUIET)


def _connect_export(service: Service, panel: QueuePanel) -> None:
    text = service.text

    def save(owner: str, everything: bool) -> Updates:
        jobs = [job for job in service.engine.jobs() if job.owner == owner]
        chosen = jobs if everything else [job for job in jobs if job.state == "queued"]
        if not chosen:
            return {panel.saved: None, panel.notice: note(text("queue_file.nothing"), "hint")}
        path, left_out = queue_export.write_export(chosen, _new_folder(panel))
        words = text("queue_file.left_out", words=", ".join(queue_view.words(job.request, 40) for job in left_out))
        return {
            panel.saved: None if path is None else str(path),
            panel.notice: note(words if left_out else "", "warning"),
        }

    def save_waiting(request: gr.Request) -> Updates:
        return save(owner_of(request), everything=False)

    def save_all(request: gr.Request) -> Updates:
        return save(owner_of(request), everything=True)

    for button, fn in ((panel.export, save_waiting), (panel.export_all, save_all)):
        saved = button.click(fn, None, [panel.saved, panel.notice], **QUIET)
        saved.then(None, panel.saved, None, js=SAVE, **QUIET)


def _new_folder(panel: QueuePanel) -> Path:
    """In Gradio's own cache, which empties itself."""
    folder = Path(panel.saved.GRADIO_CACHE) / secrets.token_hex(32)
    folder.mkdir(parents=True)
    return folder
