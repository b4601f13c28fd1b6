"""Fragments of HTML for the stage. Pure functions of a job; every word a person wrote passes through `escape`."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from nava_core.engine.jobs import Job, JobPhase
from ui import views
from ui.catalogue import Catalogue

# The phases as the rail shows them, with the share of its width.
RAIL: tuple[tuple[JobPhase, float], ...] = (("encode", 1.0), ("denoise", 5.0), ("decode", 1.4), ("mux", 1.0))
# Of a clip whose size nobody has said yet.
WIDE = (16, 9)


def empty(text: Catalogue) -> str:
    return _note(text("stage.empty"), text("stage.empty_hint"), WIDE)


def picture(text: Catalogue, job: Job, paused: bool = False) -> str:
    """What stands in the player's place while there is no clip; it has the clip's own size, so that nothing jumps."""
    size = size_of(job)
    if job.state == "failed":
        return _note(text("stage.failed"), "", size, kind="failed")
    if job.state == "interrupted":
        return _note(text("stage.interrupted"), "", size, kind="cancelled")
    if job.state == "cancelled":
        hint = text("stage.cancelled_hint", step=job.step, steps=job.steps)
        return _note(text("stage.cancelled"), hint, size, kind="cancelled")
    if job.preview is None:
        return _note(views.progress_words(text, job, paused), "", size, kind="busy")
    alt = escape(text("stage.preview_alt"))
    return screen(f'<img src="{picture_address(job.preview)}" alt="{alt}">', size, "preview")


def film(text: Catalogue, path: Path, size: tuple[int, int] | None) -> str:
    """The clip with the browser's own controls. Its first frame is its poster."""
    label = escape(text("stage.clip"))
    player = f'<video src="{film_address(path)}" aria-label="{label}" {PLAYER} playsinline></video>'
    return screen(player, size, "film")


def sound(text: Catalogue, path: Path) -> str:
    """A clip of sound alone: the line that is being said stands where others have their picture."""
    label = escape(text("stage.sound"))
    line = '<p class="nava-said" aria-live="off"></p>'
    return screen(
        f'{line}<audio src="{views.file_address(path)}" aria-label="{label}" {PLAYER}></audio>', None, "sound"
    )


# The button beside it downloads, with or without the recipe.
PLAYER = 'controls controlslist="nodownload" preload="auto"'


def size_of(job: Job) -> tuple[int, int] | None:
    """Width and height of the clip, or None for one without a picture."""
    if job.request.modality == "audio":
        return None
    return (job.request.width, job.request.height) if job.request.width and job.request.height else WIDE


def screen(content: str, size: tuple[int, int] | None, kind: str) -> str:
    """A dark box for `content` with the proportions of the clip."""
    shape = "sound" if size is None else "wide" if size[0] >= size[1] else "tall"
    ratio = f' style="--ratio:{size[0]}/{size[1]}"' if size else ""
    return f'<div class="nava-stage" data-kind="{kind}" data-shape="{shape}"{ratio}>{content}</div>'


def _note(title: str, hint: str, size: tuple[int, int] | None, kind: str = "empty") -> str:
    small = f"<small>{escape(hint)}</small>" if hint else ""
    return screen(f"<p>{escape(title)}</p>{small}", size, kind)


def film_address(path: Path) -> str:
    """A clip that shows its first frame before it plays: some browsers show nothing unless the address asks for it."""
    return f"{views.file_address(path)}#t=0.001"


def picture_address(picture: np.ndarray) -> str:
    """A small picture as an address of its own. picture: uint8 (height, width, 3)."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def progress(text: Catalogue, job: Job, left: float | None = None, paused: str | None = None) -> str:
    """How far the job is: words, times, and a rail of the phases.

    For the browser its value is the denoising steps: they are what a person can count, and nearly all of the time.
    left: seconds until the job is done, if that is known. paused: why the queue has paused itself, or "" where somebody
    paused it; None while it goes on.
    """
    if job.state == "done":
        words = text("progress.done", seconds=f"{job.seconds:.1f}")
        return f'<div class="nava-progress" data-state="done"><span>{escape(words)}</span></div>'
    if job.finished:
        return ""
    state = "paused" if paused is not None else job.state
    words = views.progress_words(text, job, paused is not None)
    return (
        f'<div class="nava-progress" data-state="{state}"><span>{escape(words)}</span>'
        f"<span>{escape(_times(text, job, None if paused is not None else left))}</span>{_rail(text, job, words)}</div>"
        + _why_again(text, job)
        + (views.message(paused, "warning") if paused else "")
    )


def _rail(text: Catalogue, job: Job, words: str) -> str:
    names = [phase for phase, _ in RAIL]
    # A job that has not begun is before the first phase.
    now = names.index(job.phase) if job.state == "running" and job.phase else -1 if job.state == "queued" else 0
    segments = []
    for index, (phase, share) in enumerate(RAIL):
        state = "done" if index < now else "now" if index == now else "todo"
        filled = job.step / job.steps if phase == "denoise" and job.steps else 1.0
        width = filled if state == "now" else 1.0 if state == "done" else 0.0
        measured = " data-measured" if phase == "denoise" else ""
        segments.append(
            f'<span class="nava-phase" data-state="{state}" style="flex-grow:{share:g}"{measured}>'
            f'<i><b style="width:{width:.1%}"></b></i><small>{escape(text(f"phase.{phase}"))}</small></span>'
        )
    return (
        f'<div class="nava-rail" role="progressbar" aria-label="{escape(text("progress.label"))}" aria-valuemin="0" '
        f'aria-valuemax="{job.steps}" aria-valuenow="{job.step}" aria-valuetext="{escape(words)}">'
        f"{''.join(segments)}</div>"
    )


def _times(text: Catalogue, job: Job, left: float | None) -> str:
    elapsed = text("progress.elapsed", seconds=f"{job.seconds:.0f}") if job.state == "running" else ""
    if left is None:
        return elapsed
    key = "progress.left" if job.state == "running" else "progress.until"
    return " · ".join(part for part in (elapsed, text(key, time=views.duration(text, left))) if part)


def _why_again(text: Catalogue, job: Job) -> str:
    """A job that began before, and begins anew."""
    before = job.attempts - (1 if job.state == "running" else 0)
    return views.quiet(text("progress.again")) if before > 0 else ""
