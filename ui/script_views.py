"""The script as HTML: each spoken line, its voice, and whether there is time for it. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from nava_core.speech import SpeechPrompt, SpeechSpan, parse_speech
from nava_core.speech_timing import spoken_seconds
from ui import views
from ui.assignments import Assignments, colours_of
from ui.catalogue import Catalogue
from ui.library.voices import Voice

# With less than this share of the clip left, nothing but speech can happen in it.
TIGHT = 0.85


def script(
    text: Catalogue,
    prompt: str,
    assignments: Assignments,
    voices: Sequence[Voice],
    clip_seconds: float | None = None,
    hears: bool = True,
    places: bool = True,
) -> str:
    """A row for each line. assignments: of this prompt. hears: whether the model follows voices. places: and knows
    whose line each belongs to.
    """
    speech = parse_speech(prompt)
    if not speech.spans:
        return (
            f'<div class="nava-empty"><b>{escape(text("script.empty"))}</b>'
            f"<p>{escape(text('script.empty_hint'))}</p></div>" + (_receives(text, speech) if prompt.strip() else "")
        )
    times = [spoken_seconds(span.text) for span in speech.spans]
    colours = colours_of(voices, prompt, assignments.to_json())
    rows = "".join(
        _row(
            text, index, span, seconds, colours[index], _choices(text, index, assignments.voices[index], voices, hears)
        )
        for index, (span, seconds) in enumerate(zip(speech.spans, times, strict=True))
    )
    several = len({voice for voice in assignments.voices if voice is not None}) > 1
    limit = "script.deaf" if not hears else "script.unplaced" if several and not places else ""
    below = (views.quiet(text(limit)) if limit else "") + _receives(text, speech)
    return (
        f"{_sum(text, sum(times), clip_seconds)}"
        f'<ol class="nava-lines" aria-label="{escape(text("script.list"))}">{rows}</ol>{below}'
    )


def _row(text: Catalogue, index: int, span: SpeechSpan, seconds: float, colour: int, choices: str) -> str:
    line = escape(span.text.strip()) or f"<i>{escape(text('script.blank'))}</i>"
    unclosed = "" if span.closed else f"<small>{escape(text('script.open'))}</small>"
    return (
        f'<li data-colour="{colour}"><span class="nava-number" aria-hidden="true">{index + 1}</span>'
        f'<p class="nava-line">{line}{unclosed}</p>{choices}'
        f'<span class="nava-takes">{escape(text("script.takes", seconds=f"{seconds:.1f}"))}</span></li>'
    )


def _choices(text: Catalogue, index: int, chosen: str | None, voices: Sequence[Voice], hears: bool) -> str:
    options = [("", text("script.nobody")), *((voice.id, voice.name) for voice in voices)]
    if chosen is not None and chosen not in [voice_id for voice_id, _ in options]:
        options.append((chosen, text("script.gone")))
    inner = "".join(
        f'<option value="{escape(voice_id)}"{" selected" if voice_id == (chosen or "") else ""}>{escape(name)}</option>'
        for voice_id, name in options
    )
    off = "" if hears or chosen is not None else " disabled"
    return (
        f'<select data-action="assign" data-line="{index}" data-key="line:{index}" '
        f'aria-label="{escape(text("script.voice", number=index + 1))}"{off}>{inner}</select>'
    )


def _sum(text: Catalogue, seconds: float, clip_seconds: float | None) -> str:
    if not clip_seconds:
        words = text("script.sum_alone", seconds=f"{seconds:.1f}")
        return f'<div class="nava-speech-sum"><span>{escape(words)}</span></div>'
    share, clip = seconds / clip_seconds, f"{clip_seconds:g}"
    state = "over" if share > 1 else "tight" if share > TIGHT else "fits"
    words = text("script.sum", seconds=f"{seconds:.1f}", clip=clip)
    note = ""
    if state == "over":
        note = views.message(text("script.over", seconds=f"{seconds:.1f}", clip=clip), "warning")
    elif state == "tight":
        note = views.quiet(text("script.tight"))
    return (
        f'<div class="nava-speech-sum" data-state="{state}"><span>{escape(words)}</span>'
        f'<span class="nava-track" aria-hidden="true"><i style="width:{min(share, 1.0):.1%}"></i></span></div>{note}'
    )


def _receives(text: Catalogue, speech: SpeechPrompt) -> str:
    """The prompt as the text encoder is given it, its marks set apart."""
    return (
        f'<details class="nava-receives" data-key="receives"><summary data-key="receives:summary">'
        f'{escape(text("script.receives"))}</summary><pre tabindex="0">{escape(speech.model_text)}</pre></details>'
    )
