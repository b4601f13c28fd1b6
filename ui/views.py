"""Fragments of HTML for the page. Pure functions; every word a person wrote passes through `escape`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from nava_core.engine.jobs import EngineStatus, Job
from nava_core.speech import SpeechPrompt
from ui.catalogue import LANGUAGES, Catalogue

if TYPE_CHECKING:
    from nava_core.conditioning.text import TokenCount
    from ui.rewriting import Rewriting

# As many as styles/studio.css has colours; the next span starts again with the first.
SPAN_COLOURS = 8
# Parts of the page that a screen reader can jump to, by their elements' ids.
REGIONS = {"header": "banner", "studio": "main", "scene": "region", "stage": "region", "bar": "region"}


def heading(words: str) -> str:
    return f"<h2>{escape(words)}</h2>"


def disclosure(words: str, controls: str) -> str:
    """A button that shows and hides the element with the id `controls`; scripts/page.js makes it work."""
    return (
        f'<button type="button" class="nava-disclosure" data-nava-discloses="{controls}" aria-expanded="false" '
        f'aria-controls="{controls}">{escape(words)}</button>'
    )


def header(text: Catalogue, status: EngineStatus, model: str = "", links: Mapping[str, str] | None = None) -> str:
    """The brand, how the model is, and the switches. links: each other language's name and where its page is."""
    label = text(f"status.{status.state}", **({"model": model} if status.state == "ready" else {}))
    languages = "".join(
        f'<a class="nava-switch" href="{escape(address)}" hreflang="{language}" lang="{language}">'
        f"{escape(LANGUAGES[language])}</a>"
        for language, address in (links or {}).items()
    )
    theme = (
        f'<button type="button" class="nava-switch nava-theme" data-nava-theme aria-pressed="false" '
        f'aria-label="{escape(text("theme.dark"))}" title="{escape(text("theme.dark"))}"></button>'
    )
    regions = "".join(
        f'<i hidden data-nava-region="{place}" data-role="{role}" data-label="{escape(text(f"region.{place}"))}"></i>'
        for place, role in REGIONS.items()
    )
    return (
        f'<a class="nava-skip" href="#scene" data-nava-skip>{escape(text("app.skip"))}</a>'
        f'<div class="nava-brand"><h1>{escape(text("app.title"))}</h1><p>{escape(text("app.tagline"))}</p></div>'
        f'<div class="nava-status" data-state="{status.state}" role="status">{escape(label)}</div>'
        f'<nav class="nava-switches" aria-label="{escape(text("app.switches"))}">{languages}{theme}</nav>'
        f'<span hidden data-nava-language="{text.language}"></span>{regions}'
    )


def speech(text: Catalogue, prompt: SpeechPrompt | None, colours: Sequence[int] = ()) -> str:
    """How many spoken lines there are, and whether one is unclosed.

    colours: one for each span, where they are not counted through; scripts/scene.js draws the spans in them.
    """
    spans = prompt.spans if prompt else ()
    count = text("speech.count", count=len(spans)) if spans else text("speech.none")
    shown = ",".join(str(number) for number in colours)
    unclosed = "" if all(span.closed for span in spans) else message(text("speech.unclosed"), "hint")
    return f'<p class="nava-quiet" data-colours="{shown}">{escape(count)}</p>{unclosed}'


def file_address(path: Path) -> str:
    """Where the app serves a file of one of its folders; relative, so that it holds behind a proxy too."""
    return f"gradio_api/file={quote(path.resolve().as_posix())}"


def colour(number: int) -> int:
    """The colour that belongs to span or voice `number`, counted from 1."""
    return (number - 1) % SPAN_COLOURS + 1


def tokens(text: Catalogue, count: TokenCount | None) -> str:
    if count is None:
        return ""
    share = min(count.used / count.limit, 1.0)
    problem = "tokens.spans_cut" if count.spans_cut else "tokens.cut" if count.cut else None
    warning = message(text(problem, limit=count.limit), "error" if count.spans_cut else "warning") if problem else ""
    return (
        f'<div class="nava-tokens"><span>{escape(text("tokens.count", used=count.used, limit=count.limit))}</span>'
        f'<span class="nava-track" aria-hidden="true"><i style="width:{share:.1%}"></i></span></div>{warning}'
    )


def quiet(words: str) -> str:
    """A line of explanation."""
    return f'<p class="nava-quiet">{escape(words)}</p>'


def message(words: str, kind: str) -> str:
    """A note beside what it is about; kind: "error", "warning" or "hint"."""
    role = "alert" if kind == "error" else "note"
    return f'<p class="nava-message" data-kind="{kind}" role="{role}">{escape(words)}</p>'


def duration(text: Catalogue, seconds: float) -> str:
    """A length of time as people say it: in seconds, and from two minutes on in minutes."""
    if seconds < 120:
        return text("time.seconds", seconds=max(1, round(seconds)))
    return text("time.minutes", minutes=round(seconds / 60))


def rewriting(text: Catalogue, now: Rewriting) -> str:
    """How a rewriting gets on; when it is done, who wrote the caption and how that went."""
    if now.result is not None:
        outcome = text(f"outcome.{now.result.outcome.replace(' ', '_')}", replies=now.result.attempts)
        notes = "".join(f"<li>{escape(words)}</li>" for words in now.result.notes)
        counts = now.counts
        return (
            f'<div class="nava-rewriting" data-state="done" data-outcome="{escape(now.result.outcome)}" role="status">'
            f"<span>{escape(text('caption.written', backend=now.label))}</span><b>{escape(outcome)}</b></div>"
            + (f'<ul class="nava-notes">{notes}</ul>' if notes else "")
            + (quiet(text("caption.counts", **asdict(counts), total=counts.total)) if counts is not None else "")
        )
    if now.error is not None:
        said = text.said(now.error.message)
        return message(said if now.error.kind != "internal" else text("error.internal", message=said), "error")
    words = text(f"rewriting.{now.state}")
    if now.asked and not now.finished:
        words += f" · {text('rewriting.again', number=now.asked + 1)}"
    backend = f"<span>{escape(now.label)}</span>" if now.label and not now.finished else ""
    return f'<div class="nava-rewriting" data-state="{now.state}" role="status"><b>{escape(words)}</b>{backend}</div>'


def progress_words(text: Catalogue, job: Job, paused: bool = False) -> str:
    if paused:
        return text("progress.paused")
    if job.state == "queued":
        return text("progress.queued", ahead=job.ahead) if job.ahead else text("progress.starting")
    if job.phase == "denoise":
        return text("progress.denoise", step=job.step, steps=job.steps)
    return text("progress.decode" if job.phase in ("decode", "mux") else "progress.encode")


def recipe(text: Catalogue, recipe: Mapping[str, Any]) -> str:
    """The few lines of the recipe that people ask for; the JSON beside it has all of them."""
    frames, seconds = recipe.get("num_frames"), recipe.get("seconds")
    sized = recipe.get("modality") != "audio"
    rows = {
        "seed": recipe.get("seed"),
        "size": f"{recipe.get('width')} × {recipe.get('height')}" if sized else None,
        "length": text("recipe.length_value", seconds=f"{seconds:.2f}", frames=frames) if seconds else None,
        "steps": recipe.get("num_inference_steps"),
        "model": recipe.get("model"),
        "prompt": recipe.get("prompt"),
        "original_prompt": recipe.get("original_prompt"),
    }
    cells = "".join(
        f"<dt>{escape(text(f'recipe.{key}'))}</dt><dd>{escape(str(value))}</dd>"
        for key, value in rows.items()
        if value is not None
    )
    return f'<dl class="nava-recipe">{cells}</dl>{quiet(text("recipe.note"))}'
