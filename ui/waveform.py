"""A clip's sound as a picture: its outline, coloured by who speaks, and the lines below it. Read once for each file."""

from __future__ import annotations

import base64
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from pathlib import Path

import numpy as np

from nava_core.media import probe, read_audio
from nava_core.speech import SpeechSpan
from nava_core.subtitles import energy_envelope, line_times, to_srt, to_vtt
from ui.catalogue import Catalogue

logger = logging.getLogger(__name__)

BARS = 180
QUIETEST_FULL_SCALE = 0.05
# What is quieter is drawn as a dot, so that silence can be seen as such.
SHORTEST_BAR = 1.5


@dataclass(frozen=True)
class Sound:
    """What is drawn of a sound. seconds: its length; peaks: BARS values in [0, 1]; envelope: as line_times takes it."""

    seconds: float
    peaks: tuple[float, ...]
    envelope: tuple[float, ...]


@dataclass(frozen=True)
class Cue:
    """One line as it stands below the sound. start, end: in seconds; colour: of its speaker."""

    text: str
    start: float
    end: float
    colour: int


def read_sound(path: Path) -> Sound | None:
    """The sound of a clip; None where it has none, or the file is gone."""
    try:
        state = path.stat()
    except OSError:
        return None
    return _read_sound(path, state.st_mtime_ns)


@lru_cache(maxsize=64)
def _read_sound(path: Path, _changed: int) -> Sound | None:
    try:
        if path.suffix != ".wav" and probe(path).audio_seconds is None:
            return None
        samples, rate = read_audio(path)
    except ValueError as error:
        logger.warning("the sound cannot be drawn: %s", error)
        return None
    if not len(samples):
        return None
    envelope = tuple(round(float(value), 5) for value in energy_envelope(samples, rate))
    return Sound(len(samples) / rate, peaks(samples), envelope)


def peaks(samples: np.ndarray, bars: int = BARS) -> tuple[float, ...]:
    """The loudest moment of each of `bars` equal parts, the loudest of all being 1, except in a sound of silence."""
    loud = np.abs(np.nan_to_num(samples)).reshape(len(samples), -1).max(axis=1)
    bounds = np.linspace(0, len(loud), min(bars, len(loud)) + 1).astype(int)[:-1]
    found = np.maximum.reduceat(loud, bounds)
    return tuple(np.round(found / max(float(found.max()), QUIETEST_FULL_SCALE), 3).tolist())


def cues(spans: Sequence[SpeechSpan], sound: Sound, colours: Sequence[int]) -> list[Cue]:
    """The spoken lines with their estimated times; colours: one for each span."""
    times = line_times(spans, sound.seconds, sound.envelope)
    return [
        Cue(" ".join(span.text.split()), start, end, colour)
        for span, (start, end), colour in zip(spans, times, colours, strict=True)
        if end > start and span.text.strip()
    ]


def outline(sound: Sound, lines: Sequence[Cue]) -> str:
    """The sound as an SVG that takes any width: one path for each colour, and one for what nobody says."""
    paths: dict[int, list[str]] = {}
    count = len(sound.peaks)
    for index, peak in enumerate(sound.peaks):
        moment = (index + 0.5) * sound.seconds / count
        colour = next((line.colour for line in lines if line.start <= moment < line.end), 0)
        half = max(peak * 46, SHORTEST_BAR)
        paths.setdefault(colour, []).append(f"M{index + 0.5:g} {50 - half:.1f}V{50 + half:.1f}")
    drawn = "".join(f'<path data-colour="{colour}" d="{"".join(bars)}"/>' for colour, bars in sorted(paths.items()))
    return (
        f'<svg viewBox="0 0 {count} 100" preserveAspectRatio="none" aria-hidden="true" focusable="false">{drawn}</svg>'
    )


def timeline(
    text: Catalogue, sound: Sound | None, lines: Sequence[Cue], *, seconds: float, fps: float, name: str
) -> str:
    """Everything below the player: the sound with a place to seek, the lines, and buttons that scripts/stage.js serves.

    sound: None where the clip has none. seconds, fps: of the clip. name: of the file, without its ending.
    """
    wave = _wave(text, sound, lines, seconds) if sound is not None else ""
    note = f'<p class="nava-timeline-note">{escape(text("stage.estimated"))}</p>' if lines else ""
    track = f' data-vtt="{_data_address("text/vtt", _vtt(lines))}"' if lines else ""
    return (
        f'<div class="nava-timeline" data-seconds="{seconds:.3f}" data-fps="{fps:g}"{track}>'
        f"{wave}{_tools(text, lines, name)}{note}</div>"
    )


def _wave(text: Catalogue, sound: Sound, lines: Sequence[Cue], seconds: float) -> str:
    row = f'<div class="nava-cues">{"".join(_cue(text, line, seconds) for line in lines)}</div>' if lines else ""
    return (
        f'<div class="nava-wave" role="slider" tabindex="0" aria-label="{escape(text("stage.position"))}" '
        f'aria-valuemin="0" aria-valuemax="{seconds:.2f}" aria-valuenow="0" aria-valuetext="0.0 s">'
        f'{outline(sound, lines)}<i class="nava-playhead"></i></div>{row}'
    )


def _cue(text: Catalogue, line: Cue, seconds: float) -> str:
    place = f"left:{line.start / seconds:.2%};width:{(line.end - line.start) / seconds:.2%}"
    return (
        f'<button type="button" class="nava-cue" data-colour="{line.colour}" data-start="{line.start:.3f}" '
        f'data-end="{line.end:.3f}" style="{place}" title="{escape(line.text)}" '
        f'aria-label="{escape(text("stage.play_line", line=line.text))}"><span>{escape(line.text)}</span></button>'
    )


def _tools(text: Catalogue, lines: Sequence[Cue], name: str) -> str:
    loop = _toggle("loop", text("stage.loop"), "L")
    if not lines:
        subtitles = ""
    else:
        srt = to_srt([line.text for line in lines], [(line.start, line.end) for line in lines])
        link = f'href="{_data_address("application/x-subrip", srt)}" download="{escape(name)}.srt"'
        subtitles = _toggle("subtitles", text("stage.subtitles"), "C")
        subtitles += f'<a class="nava-tool" id="srt" {link}>{escape(text("stage.srt"))}</a>'
    return f'<div class="nava-tools">{loop}{subtitles}<output class="nava-clock" aria-hidden="true"></output></div>'


def _toggle(kind: str, words: str, key: str) -> str:
    return (
        f'<button type="button" class="nava-tool" data-toggle="{kind}" aria-pressed="false" aria-keyshortcuts="{key}" '
        f'title="{escape(words)} ({key})">{escape(words)}</button>'
    )


def _vtt(lines: Sequence[Cue]) -> str:
    return to_vtt([line.text for line in lines], [(line.start, line.end) for line in lines])


def _data_address(kind: str, content: str) -> str:
    return f"data:{kind};charset=utf-8;base64,{base64.b64encode(content.encode()).decode()}"
