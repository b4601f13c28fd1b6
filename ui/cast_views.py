"""The voice library as HTML. Pure functions; every word a person wrote passes through `escape`."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from ui import views
from ui.catalogue import Catalogue
from ui.library.recordings import BEST_FROM, BEST_TO, Finding
from ui.library.voices import NAME_LETTERS, Voice

COLOUR_NAMES = ("teal", "amber", "violet", "rose", "blue", "olive", "rust", "slate")
# Cosines of embeddings. Speaker verification draws its line between the same person and another one somewhere between
# these two; the words are as careful as that.
ALIKE, CLOSE = 0.7, 0.45
_PLAY = '<svg viewBox="0 0 16 16" aria-hidden="true"><path d="M4.5 2.5v11l9-5.5z"/></svg>'
_STOP = '<svg viewBox="0 0 16 16" aria-hidden="true"><path d="M4 4h8v8H4z"/></svg>'
_MORE = (
    '<svg viewBox="0 0 16 16" aria-hidden="true"><path d="M2 7h2.5v2H2zM6.75 7h2.5v2h-2.5zM11.5 7H14v2h-2.5z"/></svg>'
)


def cards(
    text: Catalogue, voices: Sequence[Voice], model: str = "", hears: bool = True, undo: Voice | None = None
) -> str:
    """Every voice as a card. hears: whether `model` follows voices. undo: the one that was just deleted."""
    parts = []
    if undo is not None:
        parts.append(
            f'<div class="nava-undo" role="status"><span>{escape(text("cast.deleted", name=undo.name))}</span>'
            f'<button type="button" data-action="undelete" data-voice="{escape(undo.id)}" data-key="undo">'
            f"{escape(text('cast.undo'))}</button></div>"
        )
    if not hears:
        parts.append(views.quiet(text("cast.deaf", model=model)))
    if voices:
        items = "".join(_card(text, voice, voices, model, hears) for voice in voices)
        parts.append(f'<ul class="nava-voices" aria-label="{escape(text("cast.list"))}">{items}</ul>')
    elif undo is None:
        parts.append(
            f'<div class="nava-empty"><b>{escape(text("cast.empty"))}</b><p>{escape(text("cast.empty_hint"))}</p></div>'
        )
    return "".join(parts)


def sound(voice: Voice) -> str:
    """A voice to be played. As data, because a file that is served is there for everybody who knows its name."""
    data = base64.b64encode(voice.path.read_bytes()).decode()
    return f'<audio data-file="{escape(voice.path.name)}" src="data:audio/wav;base64,{data}"></audio>'


def _card(text: Catalogue, voice: Voice, voices: Sequence[Voice], model: str, hears: bool) -> str:
    name, key = escape(voice.name), escape(voice.id)
    play, stop = (escape(text(f"cast.{what}", name=voice.name)) for what in ("play", "stop"))
    likeness = _likeness(text, voice, voices, model) if hears else ""
    return (
        f'<li class="nava-voice-card" data-voice="{key}" data-file="{escape(voice.path.name)}" '
        f'data-colour="{voice.colour}">'
        f'<button type="button" class="nava-play" data-action="play" data-key="{key}:play" aria-label="{play}" '
        f'data-play="{play}" data-stop="{stop}">{_PLAY}{_STOP}</button>'
        f'<div class="nava-voice-head"><input data-action="rename" data-key="{key}:name" value="{name}" '
        f'maxlength="{NAME_LETTERS}" aria-label="{escape(text("cast.name", name=voice.name))}" autocomplete="off" '
        f'spellcheck="false"><span>{escape(text("cast.seconds", seconds=f"{voice.seconds:.1f}"))}</span></div>'
        f"{_waveform(text, voice)}"
        f'<div class="nava-voice-notes">{_notes(text, voice.notes)}{likeness}</div>'
        f'<details data-key="{key}:more"><summary data-key="{key}:summary" '
        f'aria-label="{escape(text("cast.more", name=voice.name))}">{_MORE}</summary>'
        f"{_trim(text, voice)}{_colours(text, voice)}"
        f'<button type="button" class="nava-delete" data-action="delete">{escape(text("cast.delete"))}</button>'
        "</details></li>"
    )


def _waveform(text: Catalogue, voice: Voice) -> str:
    """Bars of the whole recording; the part that is used is in the voice's colour."""
    loudest = max([*voice.peaks, 0.05])
    bars, count = [], len(voice.peaks)
    for index, peak in enumerate(voice.peaks):
        middle = (index + 0.5) / count * voice.length
        height = max(peak / loudest * 30, 1.5)
        used = "" if voice.start <= middle <= voice.end else ' class="nava-unused"'
        bars.append(
            f'<rect{used} x="{index * 4}" y="{16 - height / 2:.1f}" width="2.4" height="{height:.1f}" rx="1.2"/>'
        )
    return (
        f'<svg class="nava-wave" viewBox="0 0 {max(count * 4, 4)} 32" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(text("cast.wave", name=voice.name))}">{"".join(bars)}</svg>'
    )


def _notes(text: Catalogue, notes: Sequence[Finding]) -> str:
    if not notes:
        return f'<span class="nava-note" data-kind="good">{escape(text("cast.good"))}</span>'
    return "".join(
        f'<span class="nava-note" data-kind="warning">{escape(finding(text, note))}</span>' for note in notes
    )


def finding(text: Catalogue, note: Finding) -> str:
    """What a check found, in words."""
    value, limit = note.value, note.limit
    if note.code in ("clipped", "pauses"):
        value, limit = 100 * value, 100 * limit
    elif note.code == "narrow":
        value, limit = value / 1000, limit / 1000
    whole = note.code in ("pauses", "quiet", "noisy")
    return text(f"cast.{note.code}", value=f"{value:.0f}" if whole else f"{value:.1f}", limit=f"{limit:g}")


def _likeness(text: Catalogue, voice: Voice, voices: Sequence[Voice], model: str) -> str:
    """Which of the others is most like this one, to the ears of the model that is loaded."""
    if voice.embedding is None or voice.encoder != model:
        return f'<span class="nava-note" data-kind="quiet">{escape(text("cast.unheard"))}</span>' if voices[1:] else ""
    found = [(voice.likeness(other), other.name) for other in voices if other.id != voice.id]
    heard = [(cosine, name) for cosine, name in found if cosine is not None]
    if not heard:
        return ""
    cosine, name = max(heard)
    key = "alike" if cosine >= ALIKE else "close" if cosine >= CLOSE else "apart"
    words = text(f"cast.{key}", name=name, cosine=f"{cosine:.2f}")
    return f'<span class="nava-note" data-kind="quiet">{escape(words)}</span>'


def _trim(text: Catalogue, voice: Voice) -> str:
    rows = "".join(
        f'<label><span>{escape(text(f"cast.{edge}"))}</span><input type="range" data-edge="{edge}" '
        f'data-key="{escape(voice.id)}:{edge}" min="0" max="{voice.length:.2f}" step="0.05" value="{at:.2f}">'
        f"<output>{at:.2f}</output></label>"
        for edge, at in (("start", voice.start), ("end", voice.end))
    )
    return (
        f'<fieldset class="nava-trim"><legend>{escape(text("cast.trim"))}</legend>{rows}'
        f'<button type="button" data-action="trim" data-key="{escape(voice.id)}:trim" disabled>'
        f"{escape(text('cast.apply'))}</button></fieldset>"
    )


def _colours(text: Catalogue, voice: Voice) -> str:
    swatches = "".join(
        f'<button type="button" data-action="recolour" data-colour="{number}" data-key="{escape(voice.id)}:{number}" '
        f'aria-pressed="{"true" if number == voice.colour else "false"}" '
        f'aria-label="{escape(text(f"cast.{name}"))}" title="{escape(text(f"cast.{name}"))}"></button>'
        for number, name in enumerate(COLOUR_NAMES, start=1)
    )
    return f'<fieldset class="nava-swatches"><legend>{escape(text("cast.colour"))}</legend>{swatches}</fieldset>'


def recording_label(text: Catalogue) -> str:
    return text("cast.recording", least=f"{BEST_FROM:g}", most=f"{BEST_TO:g}")
