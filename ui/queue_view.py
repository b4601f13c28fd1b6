"""The queue as HTML. Pure functions of jobs and words; what a person wrote passes through `clean` and `escape`."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from nava_core.engine.jobs import EngineStatus, Job
from nava_core.request import GenerationRequest
from nava_core.speech import parse_speech
from ui.catalogue import Catalogue
from ui.service import error_words
from ui.stage import WORTH_ANOTHER_TRY
from ui.views import duration, progress_words

WORDS_LETTERS, NAME_LETTERS = 140, 28
THUMB = (160, 120)


@dataclass(frozen=True)
class Row:
    """What the queue says of one job, beside the job itself.

    estimate: seconds that its run takes; left: seconds until a running one is done; None where there is nothing to go
    by. held: it waits and the queue is paused. variation: which one of how many. thumb: a picture as a data URI, or "".
    """

    job: Job
    estimate: float | None = None
    left: float | None = None
    held: bool = False
    variation: tuple[int, int] | None = None
    thumb: str = ""


def skeleton(text: Catalogue) -> str:
    """What stands on the page before the first answer; ui/scripts/queue.js fills it."""
    return (
        f'<section class="nava-queue" aria-label="{escape(text("queue.title"))}" data-language="{text.language}"'
        f' data-moved="{escape(text("queue.moved", place="{place}", count="{count}"))}"'
        f' data-more="{escape(text("queue.more", count="{count}"))}" data-fewer="{escape(text("queue.fewer"))}">'
        f'<div class="nava-queue-head"><h2>{escape(text("queue.title"))}</h2>'
        f'<p class="nava-quiet">{escape(text("queue.loading"))}</p></div>'
        f'<p class="nava-queue-offline" role="alert" hidden>{escape(text("queue.offline"))}</p>'
        f'<ol class="nava-queue-list" aria-label="{escape(text("queue.title"))}"></ol>'
        '<button type="button" class="nava-queue-more" aria-expanded="false" hidden></button>'
        '<p class="nava-queue-foot nava-quiet" hidden></p>'
        '<p class="nava-unseen" role="status"></p></section>'
    )


# The head: how many, when all is done, pause, what is wrong


def head(
    text: Catalogue, status: EngineStatus, *, mine: int, others: int, before: int, paused: bool, notices: bool
) -> str:
    """mine: own jobs that run or wait. others: those of other owners, of which `before` come before the first own."""
    facts = []
    if mine:
        facts.append(f"<span>{escape(text('queue.count', count=mine))}</span>")
        facts.append(_clock("all", text("queue.all_done")))
    if others:
        facts.append(f"<span>{escape(_others(text, mine, others, before))}</span>" if before or not mine else "")
    buttons = ""
    if notices:
        buttons += _button(text("queue.clear"), "clear")
    if (mine or others) and not paused:
        buttons += _button(text("queue.pause"), "pause")
    return (
        f'<h2>{escape(text("queue.title"))}</h2><p class="nava-queue-facts">{"".join(facts)}</p>'
        f'<div class="nava-queue-buttons">{buttons}</div>{_bar(text, status, paused, mine + others)}'
        f"{'' if mine or others or notices or paused else _empty(text)}"
    )


def _others(text: Catalogue, mine: int, others: int, before: int) -> str:
    key, count = ("queue.others_before", before) if mine else ("queue.others", others)
    return text(f"{key}_one") if count == 1 else text(key, count=count)


def _empty(text: Catalogue) -> str:
    return f'<p class="nava-queue-empty"><b>{escape(text("queue.empty"))}</b> {escape(text("queue.empty_hint"))}</p>'


def _bar(text: Catalogue, status: EngineStatus, paused: bool, count: int) -> str:
    """What keeps the queue from going on, and the way out."""
    if status.state in ("failed", "closed"):
        return _bar_of("error", text("queue.model_failed", message=status.message))
    if paused:
        resume = _button(text("queue.resume"), "resume", "nava-queue-resume")
        if status.message:
            return _bar_of("error", text("queue.paused_itself", message=status.message), resume)
        return _bar_of("warning", text("queue.paused"), resume)
    if status.state == "loading" and count:
        return _bar_of("hint", text("queue.model_loading"))
    return ""


def _bar_of(kind: str, words: str, button: str = "") -> str:
    role = "alert" if kind == "error" else "status"
    said = f"<span>{escape(clean(words))}</span>"
    return f'<div class="nava-queue-bar" data-kind="{kind}" role="{role}">{said}{button}</div>'


# A row


def row(text: Catalogue, now: Row) -> dict[str, str]:
    """Its parts: `info` changes as the job gets on, `acts` seldom, so that a focused button stays where it is."""
    return {"state": now.job.state, "info": _info(text, now), "acts": _acts(text, now.job)}


def _info(text: Catalogue, now: Row) -> str:
    job = now.job
    picture = f'<img src="{now.thumb}" alt="{escape(text("queue.preview"))}">' if now.thumb else ""
    kind = "audio" if job.request.modality == "audio" else "picture"
    return (
        f'<span class="nava-queue-thumb" data-kind="{kind}">{picture}</span>'
        f'<button type="button" class="nava-queue-words" data-act="watch" title="{escape(text("queue.watch"))}">'
        f"<b>{escape(words(job.request))}</b><small>{escape(facts(text, job.request, now.variation))}</small></button>"
        f"{_when(text, now)}{_trouble(text, job)}{_track(text, job)}"
    )


def words(request: GenerationRequest, letters: int = WORDS_LETTERS) -> str:
    """The first words that a person wrote, spoken lines in quotes."""
    prompt = parse_speech(request.original_prompt or request.prompt)
    line = " ".join(clean(prompt.marked("“", "”")).split())
    return line if len(line) <= letters else f"{line[: letters - 1].rstrip()}…"


def facts(text: Catalogue, request: GenerationRequest, variation: tuple[int, int] | None = None) -> str:
    """How many spoken lines, how long, how large, with what material."""
    lines, voices = len(parse_speech(request.prompt).spans), sum(voice is not None for voice in request.speakers)
    parts = [_counted(text, "queue.lines", lines) if lines else text("queue.lines_none")]
    if request.num_frames and request.fps:
        parts.append(text("queue.seconds", seconds=f"{round((request.num_frames - 1) / request.fps, 2):g}"))
    elif request.seconds:
        parts.append(text("queue.seconds", seconds=f"{round(request.seconds, 2):g}"))
    if request.modality == "audio":
        parts.append(text("queue.sound_only"))
    elif request.width and request.height:
        parts.append(f"{request.width}×{request.height}")
    if request.modality == "video":
        parts.append(text("queue.picture_only"))
    if voices:
        parts.append(_counted(text, "queue.voices", voices))
    if request.image is not None:
        parts.append(text("queue.first_frame"))
    if variation is not None:
        parts.append(text("queue.variation", number=variation[0], count=variation[1]))
    return " · ".join(parts)


def _counted(text: Catalogue, key: str, count: int) -> str:
    return text(f"{key}_one") if count == 1 else text(key, count=count)


def _when(text: Catalogue, now: Row) -> str:
    job = now.job
    if job.finished:
        label = text("queue.interrupted" if job.state == "interrupted" else "queue.failed")
        return f'<span class="nava-queue-when"><b>{escape(label)}</b></span>'
    if job.state == "running":
        title = text("queue.ending") if job.cancelling else progress_words(text, job)
    elif now.held:
        title = text("queue.held")
    else:
        title = text("queue.place", ahead=job.ahead) if job.ahead else text("queue.next")
    known = {"queue.left": now.left, "queue.takes": now.estimate}
    if job.state == "running" and now.left is None:
        known = {"queue.elapsed": job.seconds}
    small = "".join(
        f"<small>{escape(text(key, time=duration(text, seconds)))}</small>"
        for key, seconds in known.items()
        if seconds is not None
    )
    clock = _clock(job.id, text("queue.done_about"))
    return f'<span class="nava-queue-when"><b>{escape(title)}</b>{small}{clock}</span>'


def _clock(name: str, label: str) -> str:
    """A time of day that the browser fills in, in the person's own time zone; hidden until it is known."""
    return f'<small data-clock="{escape(name)}" hidden>{escape(label)} <time></time></small>'


def _trouble(text: Catalogue, job: Job) -> str:
    if job.error is None:
        return ""
    todo = text(f"queue.todo_{job.error.kind}")
    reason = clean(error_words(text, job.error))
    return f'<span class="nava-queue-trouble"><span>{escape(reason)}</span> <b>{escape(todo)}</b></span>'


def _track(text: Catalogue, job: Job) -> str:
    if job.state != "running" or not job.steps:
        return ""
    label = escape(text("progress.label"))
    return (
        f'<span class="nava-track" role="progressbar" aria-label="{label}" aria-valuemin="0" '
        f'aria-valuemax="{job.steps}" aria-valuenow="{job.step}">'
        f'<i style="width:{job.step / job.steps:.1%}"></i></span>'
    )


def _acts(text: Catalogue, job: Job) -> str:
    name = words(job.request, NAME_LETTERS)
    if job.state == "queued":
        grip = escape(text("queue.grip", words=name))
        icons = "".join(_icon(text, act, name) for act in ("first", "up", "down", "edit", "duplicate", "cancel"))
        return f'<button type="button" class="nava-queue-grip" data-act="grip" aria-label="{grip}"></button>{icons}'
    if job.state == "running":
        return _icon(text, "duplicate", name) + ("" if job.cancelling else _icon(text, "cancel", name))
    again = ""
    if job.state == "interrupted":
        again = _button(text("queue.go_on"), "retry")
    elif job.error is not None and job.error.kind != "request":
        again = _button(text("queue.retry"), "retry")
    worth_it = job.error is not None and job.error.kind in WORTH_ANOTHER_TRY
    change = "" if worth_it else _button(text("queue.change"), "edit")
    return f"{again}{change}{_icon(text, 'dismiss', name)}"


def _icon(text: Catalogue, act: str, name: str) -> str:
    label = text(f"queue.{act}")
    named = escape(text("queue.named", action=label, words=name))
    return f'<button type="button" data-act="{act}" aria-label="{named}" title="{escape(label)}"></button>'


def _button(label: str, act: str, kind: str = "") -> str:
    return f'<button type="button" class="nava-queue-button {kind}" data-act="{act}">{escape(label)}</button>'


def unlisted(text: Catalogue, count: int) -> str:
    return escape(text("queue.unlisted", count=count)) if count else ""


# Pictures and letters


def thumb(picture: np.ndarray | Image.Image) -> str:
    """A small JPEG as a data URI; one of 160 x 90 pixels has about 3 kB."""
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    image = image.convert("RGB")
    image.thumbnail(THUMB)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=70)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def clean(words: str) -> str:
    """Without half surrogate pairs, which no answer can carry."""
    return words.encode("utf-8", "replace").decode("utf-8")


# The dry run of an import


def plan(text: Catalogue, title: str, summary: Iterable[str], rows: Iterable[dict[str, Any]], more: int) -> str:
    """rows: line (counted from 1), words, facts, time, notes, problem; see `queue_file`."""
    body = "".join(_plan_row(text, row) for row in rows)
    columns = "".join(f"<th scope='col'>{escape(text(f'queue_file.column_{name}'))}</th>" for name in _COLUMNS)
    rest = f'<p class="nava-quiet">{escape(text("queue_file.more_lines", count=more))}</p>' if more else ""
    return (
        f'<div class="nava-plan"><h3>{escape(clean(title))}</h3><p>{escape(" · ".join(summary))}</p>'
        f'<div class="nava-plan-scroll" tabindex="0"><table><thead><tr>{columns}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{rest}</div>"
    )


_COLUMNS = ("line", "clip", "time")


def _plan_row(text: Catalogue, row: dict[str, Any]) -> str:
    if row.get("problem"):
        problem = escape(clean(text("queue_file.bad_line", message=row["problem"])))
        return f'<tr data-bad><td>{row["line"]}</td><td colspan="2">{problem}</td></tr>'
    notes = "".join(f"<small>{escape(clean(note))}</small>" for note in row["notes"])
    return (
        f"<tr><td>{row['line']}</td><td><b>{escape(row['words'])}</b><small>{escape(row['facts'])}</small>{notes}</td>"
        f"<td>{escape(row['time'])}</td></tr>"
    )
