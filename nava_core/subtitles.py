"""When each spoken line of a clip is heard, by estimate, and subtitles made of it. Numpy only.

The model is told which lines to speak and in which order, never when. So times are estimated: from how long a line
takes to say, and where there is sound, from its voiced stretches. Lines are given to stretches in order, by the
assignment that fits their lengths best and cuts where the voice pauses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nava_core.speech import SpeechSpan
from nava_core.speech_timing import spoken_seconds

Times = list[tuple[float, float]]

# Seconds. Pauses shorter than SHORTEST_PAUSE belong to a stretch, sounds shorter than SHORTEST_STRETCH are noises.
SHORTEST_PAUSE, SHORTEST_STRETCH = 0.12, 0.08
ENVELOPE_HOP = 0.02
MOST_PIECES = 240
# The voice stands out from what is behind it by this factor at least; else the envelope tells nothing.
LEAST_CONTRAST = 2.0
# Costs, in units of "a line lasts twice as long as it should": a cut within a stretch, a second of pause within a
# line, and a second of voice that belongs to no line.
CUT_COST, PAUSE_COST, SKIP_COST = 0.15, 0.8, 0.6
# People speak slower or faster than the estimate by no more than this.
FASTEST, SLOWEST = 0.5, 1.8


def line_times(spans: Sequence[SpeechSpan], seconds: float, envelope: Any = None) -> Times:
    """The start and end of each span's line in seconds, one after another and within the clip; empty lines take none.

    seconds: the clip's length. envelope: the loudness of its sound over time, evenly spread over the whole clip
    (`energy_envelope`); None, or one that tells no voice from its background, gives times by the estimate alone.
    """
    spoken = [spoken_seconds(span.text) for span in spans]
    heard = [index for index, length in enumerate(spoken) if length > 0]
    if seconds <= 0 or not heard:
        return [(0.0, 0.0)] * len(spans)
    lengths = np.array([spoken[index] for index in heard])
    stretches = voiced_stretches(envelope, seconds) if envelope is not None else []
    found = (_fitted(lengths, stretches) if stretches else None) or _spread(lengths, seconds)
    times: Times = []
    position, following = 0.0, iter(found)
    for length in spoken:
        if length > 0:
            start, end = next(following)
            start = min(max(start, position), seconds)
            position = min(max(end, start), seconds)
            times.append((start, position))
        else:
            times.append((position, position))
    return times


def energy_envelope(sound: Any, sampling_rate: int) -> np.ndarray:
    """Loudness of `(samples,)` or `(samples, channels)`: one value (root mean square) for each ENVELOPE_HOP seconds."""
    samples = np.asarray(sound, dtype=np.float32)
    power = samples**2 if samples.ndim == 1 else (samples**2).mean(axis=1)
    if not power.size:
        return np.zeros(0, np.float32)
    starts = np.arange(0, power.size, max(round(ENVELOPE_HOP * sampling_rate), 1))
    sizes = np.diff([*starts, power.size])
    return np.sqrt(np.add.reduceat(power, starts) / sizes)


def voiced_stretches(envelope: Any, seconds: float) -> Times:
    """Where the sound stands out from its background: starts and ends in seconds. Empty where that cannot be told."""
    loud = np.nan_to_num(np.asarray(envelope, dtype=np.float64).ravel())
    if loud.size < 2 or seconds <= 0:
        return []
    hop = seconds / loud.size
    width = max(round(0.06 / hop), 1)
    smooth = np.convolve(loud, np.ones(width) / width, mode="same")
    floor, top = np.quantile(smooth, 0.1), np.quantile(smooth, 0.98)
    if top <= 1e-4 or top < LEAST_CONTRAST * floor:
        return []
    voiced = smooth > floor + 0.14 * (top - floor)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], voiced, [False]]).astype(int)))
    runs: Times = []
    for start, end in (edges.reshape(-1, 2) * hop).tolist():
        if runs and start - runs[-1][1] < SHORTEST_PAUSE:
            runs[-1] = (runs[-1][0], end)
        else:
            runs.append((start, end))
    return [(start, min(end, seconds)) for start, end in runs if end - start >= SHORTEST_STRETCH]


def to_srt(lines: Sequence[str], times: Sequence[tuple[float, float]]) -> str:
    """SubRip text. Empty lines are left out."""
    cues = _cues(lines, times)
    return "\n".join(
        f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{line.replace('-->', '→')}\n"
        for number, (line, start, end) in enumerate(cues, start=1)
    )


def to_vtt(lines: Sequence[str], times: Sequence[tuple[float, float]]) -> str:
    """WebVTT text, which says that its times are estimated. Empty lines are left out."""
    cues = "".join(
        f"\n{_clock(start, '.')} --> {_clock(end, '.')}\n{_vtt_text(line)}\n"
        for line, start, end in _cues(lines, times)
    )
    return f"WEBVTT\n\nNOTE Times are estimated.\n{cues}"


def _vtt_text(line: str) -> str:
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _cues(lines: Sequence[str], times: Sequence[tuple[float, float]]) -> list[tuple[str, float, float]]:
    """What is shown: each line on one line, as a file of subtitles needs it."""
    shown = [(" ".join(line.split()), start, end) for line, (start, end) in zip(lines, times, strict=True)]
    return [cue for cue in shown if cue[0] and cue[2] > cue[1]]


def _clock(seconds: float, point: str) -> str:
    milliseconds = max(round(seconds * 1000), 0)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}{point}{rest % 1000:03}"


def _spread(lengths: np.ndarray, seconds: float) -> Times:
    """Lines one after another with equal pauses around them; shortened where they do not fit."""
    lengths = lengths * min(1.0, seconds / lengths.sum())
    pause = max(seconds - lengths.sum(), 0.0) / (len(lengths) + 1)
    starts = np.cumsum([pause, *(lengths[:-1] + pause)])
    return list(zip(starts.tolist(), (starts + lengths).tolist(), strict=True))


@dataclass(frozen=True)
class _Pieces:
    """Voiced stretches, cut small: bounds in seconds, and which of them begin or end a stretch."""

    starts: np.ndarray
    ends: np.ndarray
    begins: np.ndarray
    closes: np.ndarray

    @classmethod
    def of(cls, stretches: Times) -> _Pieces:
        size = max(sum(end - start for start, end in stretches) / MOST_PIECES, 0.04)
        bounds = [np.linspace(start, end, max(round((end - start) / size), 1) + 1) for start, end in stretches]
        counts = np.array([len(bound) - 1 for bound in bounds])
        last = np.cumsum(counts) - 1
        begins, closes = np.zeros(counts.sum(), bool), np.zeros(counts.sum(), bool)
        begins[last - counts + 1] = closes[last] = True
        starts, ends = (np.concatenate([bound[part] for bound in bounds]) for part in (slice(0, -1), slice(1, None)))
        return cls(starts, ends, begins, closes)


def _fitted(lengths: np.ndarray, stretches: Times) -> Times | None:
    """Lines given to stretches in order: the cheapest way to give each line a run of pieces. None where too few.

    `best[p]` is the least cost with the lines so far within the first p pieces.
    """
    pieces = _Pieces.of(stretches)
    count = len(pieces.starts)
    if len(lengths) > count:
        return None
    voice = np.concatenate([[0.0], np.cumsum(pieces.ends - pieces.starts)])
    expected = lengths * np.clip(voice[-1] / lengths.sum(), FASTEST, SLOWEST)
    first, end = np.meshgrid(np.arange(count), np.arange(1, count + 1), indexing="ij")
    spoken = voice[end] - voice[first]
    pauses = pieces.ends[end - 1] - pieces.starts[first] - spoken
    fixed = CUT_COST * (~pieces.begins)[first] + CUT_COST * (~pieces.closes)[end - 1] + PAUSE_COST * pauses
    fixed[end <= first] = np.inf
    best, chosen = SKIP_COST * voice, []
    for length in expected:
        cost = best[:-1, None] + fixed + ((spoken - length) / (length + 0.1)) ** 2
        before = cost.argmin(axis=0)
        ended = np.concatenate([[np.inf], cost[before, np.arange(count)]])
        # Pieces behind the line may belong to nobody.
        reach = np.minimum.accumulate(ended - SKIP_COST * voice)
        came_from = np.maximum.accumulate(np.where(ended - SKIP_COST * voice <= reach, np.arange(count + 1), 0))
        chosen.append((came_from, before))
        best = reach + SKIP_COST * voice
    position, times = count, []
    for came_from, before in reversed(chosen):
        last = int(came_from[position])
        position = int(before[last - 1])
        times.append((float(pieces.starts[position]), float(pieces.ends[last - 1])))
    return times[::-1]
