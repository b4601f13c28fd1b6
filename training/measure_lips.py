"""How speech and mouths fit, and from which side a voice comes, from samples and measured mouths alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.measure_people import PersonMeasure, correlation
from training.speech_scores import speech_band, speech_opening
from training.voices import OPENING_STEP

# How far a mouth may run before or behind its voice and still be found, in seconds.
REACH = 0.25
# A moment belongs to a speaker whose mouth is more open than this (of its own widest) and than everybody else's.
SPEAKING = 0.45
# Sound this loud (of the loudest moment's level) is somebody's voice.
AUDIBLE = 0.35
# dB of left over right beyond which a voice is at a side: half of what a place between centre and side gives.
SIDE_DECIBELS = 2.6


@dataclass(frozen=True)
class SpeechMeasure:
    """correlation: of how open the mouths are with how loud the sound is, frame by frame. lag: of the mouths behind the
    sound in seconds, where they fit best. start: when the first sound sets in, None in silence. balances: for each
    person, left over right in dB while that person's mouth is open, None where it never is."""

    correlation: float
    lag: float
    start: float | None
    balances: tuple[float | None, ...]
    first: int | None
    """The number of the person whose mouth opens first, from the left; None where none does, or two at once."""

    def column(self, person: int) -> str | None:
        """Where the voice of a person comes from."""
        balance = self.balances[person]
        if balance is None:
            return None
        return "left" if balance > SIDE_DECIBELS else "right" if balance < -SIDE_DECIBELS else "centre"


def measure_lips(people: Sequence[PersonMeasure], audio: np.ndarray, fps: float, rate: int) -> SpeechMeasure:
    """Measure the mouths of `people` against `audio` (channels, samples)."""
    audio = np.atleast_2d(np.asarray(audio, np.float64))
    moments = np.arange(0, audio.shape[1] / rate, OPENING_STEP)
    levels = speech_opening(audio, rate, moments)
    quiet = np.abs(audio).max() < 1e-3
    start = None if quiet else float(moments[np.argmax(levels > AUDIBLE)])
    if not people or quiet:
        return SpeechMeasure(0.0, REACH, start, (None,) * len(people), None)
    openings = np.stack([_relative(person.opening) for person in people])
    times = np.arange(openings.shape[1]) / fps
    widest = openings.max(axis=0)
    lags = np.arange(-REACH, REACH + 1e-9, OPENING_STEP)
    fits = [correlation(widest, np.interp(times - lag, moments, levels)) for lag in lags]
    here = correlation(widest, np.interp(times, moments, levels))
    band = speech_band(audio, rate)
    balances = tuple(_balance(openings, number, band, fps, rate) for number in range(len(people)))
    return SpeechMeasure(here, float(lags[int(np.argmax(fits))]), start, balances, _first(openings > SPEAKING))


def _first(opened: np.ndarray) -> int | None:
    """Whose row of `opened` (people, frames) is true before all others'."""
    rows = np.flatnonzero(opened[:, opened.any(axis=0).argmax()])
    return int(rows[0]) if len(rows) == 1 else None


def _relative(opening: np.ndarray) -> np.ndarray:
    """From 0 (shut) to 1 (as open as it gets in the clip); a mouth that hardly moves stays shut."""
    low, high = np.percentile(opening, 10), np.percentile(opening, 98)
    return np.clip((opening - low) / max(high - low, 0.06), 0, 1)


def _balance(openings: np.ndarray, number: int, audio: np.ndarray, fps: float, rate: int) -> float | None:
    own = openings[number]
    others = np.delete(openings, number, axis=0).max(axis=0, initial=0.0)
    powers = np.zeros(2)
    for frame in np.flatnonzero((own > SPEAKING) & (own > others)):
        part = audio[:, int(max(frame - 0.5, 0) / fps * rate) : int((frame + 0.5) / fps * rate)]
        powers += np.square(part[[0, -1]]).sum(axis=1)
    if powers.sum() < 1e-9:
        return None
    return float(10 * np.log10((powers[0] + 1e-12) / (powers[1] + 1e-12)))
