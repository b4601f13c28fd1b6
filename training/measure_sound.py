"""When a clip's sound sets in, on which side it is and which material it is, from the samples alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from training.world_sound import MATERIALS, REFERENCE_RADIUS, render_impacts

HOP_SECONDS = 0.0025
WINDOW_SECONDS = 0.016
# Edges of the bands in which a rise is looked for, Hz.
BANDS = (60, 240, 420, 800, 1300, 2000, 3000, 4500, 7600)
# Levels are in dB below the loudest moment of the clip, which must itself be above SILENCE dB of full scale.
SILENCE = -50.0
QUIET = -34.0
LEAST_PEAK = -21.0
LEAST_RISE = 4.5
RISE_SECONDS = 0.03
# None of the world's contacts follows another within 0.24 s. After an autoencoder rings tremble, also of the world's
# own clips: with 0.09 s such a rise was taken for an impact.
LEAST_GAP = 0.18
SIDE_DECIBELS = 3.5


@dataclass(frozen=True)
class SoundMeasure:
    """`onsets` in seconds; `balance` is left over right in dB; `material` is the shape that sounds like it."""

    onsets: tuple[float, ...]
    balance: float
    column: str | None
    material: str | None


def measure_sound(audio: np.ndarray, rate: int = 48_000) -> SoundMeasure:
    """Measure `audio` (channels, samples), mono or stereo."""
    audio = np.atleast_2d(np.asarray(audio, dtype=np.float32))
    onsets = find_onsets(audio, rate)
    if not onsets:
        return SoundMeasure((), 0.0, None, None)
    powers = np.zeros(2)
    for onset in onsets:
        part = audio[:, int(onset * rate) : int((onset + 0.08) * rate)]
        powers += (part[[0, -1]].astype(np.float64) ** 2).sum(axis=1)
    balance = float(10 * np.log10((powers[0] + 1e-12) / (powers[1] + 1e-12)))
    column = "left" if balance > SIDE_DECIBELS else "right" if balance < -SIDE_DECIBELS else "centre"
    return SoundMeasure(onsets, balance, column, _name_material(audio, onsets[0], rate))


def find_onsets(audio: np.ndarray, rate: int = 48_000) -> tuple[float, ...]:
    """The moments, in seconds, at which a new sound sets in."""
    levels = _band_levels(audio, rate)
    total = _to_decibels(levels.sum(axis=1))
    if len(total) == 0 or total.max() < SILENCE:
        return ()
    decibels = _to_decibels(levels)
    decibels = np.maximum(decibels - total.max(), QUIET)
    reach = round(RISE_SECONDS / HOP_SECONDS / 2)
    padded = np.pad(decibels, ((reach, reach), (0, 0)), mode="edge")
    rises = np.maximum(padded[2 * reach :] - padded[: -2 * reach], 0)
    # A band counts by how loud it is after the rise, so that what is not heard does not vote.
    later = padded[2 * reach :]
    weights = 10 ** (later / 20)
    novelty = (rises * weights).sum(axis=1) / weights.sum(axis=1)
    loud = np.array([later_total.max() for later_total in _following(total - total.max(), 2 * reach)])
    novelty[loud < LEAST_PEAK] = 0
    found = []
    gap = round(LEAST_GAP / HOP_SECONDS)
    while novelty.max() >= LEAST_RISE:
        peak = int(novelty.argmax())
        found.append(_steepest(decibels, weights[peak], peak, reach))
        novelty[max(peak - gap, 0) : peak + gap] = 0
    return tuple(sorted(max(moment, 0) * HOP_SECONDS for moment in found))


def _following(values: np.ndarray, count: int) -> np.ndarray:
    padded = np.pad(values, (0, count), mode="edge")
    return np.lib.stride_tricks.sliding_window_view(padded, count + 1)[: len(values)]


def _steepest(decibels: np.ndarray, weights: np.ndarray, peak: int, reach: int) -> float:
    """Where around `peak` the weighted level passes half of its rise, as a hop with its fraction."""
    start, end = max(peak - 2 * reach, 0), min(peak + 2 * reach + 1, len(decibels))
    level = decibels[start:end] @ weights / weights.sum()
    middle = peak - start
    top = middle + int(np.argmax(level[middle : middle + 2 * reach + 1]))
    bottom = int(np.argmin(level[: top + 1]))
    half = (level[top] + level[bottom]) / 2
    after = bottom + int(np.argmax(level[bottom : top + 1] >= half))
    if after == 0:
        return float(start)
    share = (half - level[after - 1]) / max(level[after] - level[after - 1], 1e-6)
    return start + after - 1 + float(np.clip(share, 0, 1))


def _band_levels(audio: np.ndarray, rate: int) -> np.ndarray:
    """Power in each of BANDS, summed over channels, (moments, bands); moment i is at i * HOP_SECONDS."""
    spectra, frequencies = _spectra(audio, rate)
    return np.stack(
        [spectra[:, (frequencies >= low) & (frequencies < high)].sum(axis=1) for low, high in pairwise(BANDS)],
        axis=1,
    )


def _spectra(audio: np.ndarray, rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Power spectra (moments, bins) summed over channels, scaled to the mean square, and the bins' frequencies."""
    hop, window = round(HOP_SECONDS * rate), round(WINDOW_SECONDS * rate)
    padded = np.pad(audio, ((0, 0), (window // 2, window)))
    pieces = np.lib.stride_tricks.sliding_window_view(padded, window, axis=1)[:, : audio.shape[1] : hop]
    shape = np.hanning(window).astype(np.float32)
    power = (np.abs(np.fft.rfft(pieces * shape, axis=-1)) ** 2).sum(axis=0)
    return power * 2 / (window * np.sum(shape**2)), np.fft.rfftfreq(window, 1 / rate)


def _to_decibels(power: np.ndarray) -> np.ndarray:
    return 10 * np.log10(power + 1e-10)


def _name_material(audio: np.ndarray, onset: float, rate: int) -> str:
    """The shape whose own sound, over its sizes, is nearest to the first 0.16 s after `onset`."""
    heard = _portrait(audio, onset, rate)
    return min(MATERIALS, key=lambda shape: min(np.abs(heard - known).mean() for known in _known_portraits(shape)))


def _portrait(audio: np.ndarray, onset: float, rate: int) -> np.ndarray:
    """Band levels in dB under the loudest at 5, 20, 45, 80 and 130 ms after the onset."""
    start = int(max(onset, 0) * rate)
    levels = _band_levels(audio[:, start : start + round(0.17 * rate)], rate)
    moments = [min(round(seconds / HOP_SECONDS), len(levels) - 1) for seconds in (0.005, 0.02, 0.045, 0.08, 0.13)]
    portrait = _to_decibels(levels[moments])
    return np.maximum(portrait - portrait.max(), -30)


@lru_cache(maxsize=8)
def _known_portraits(shape: str) -> tuple[np.ndarray, ...]:
    rate = 48_000
    radii = REFERENCE_RADIUS * np.array([0.78, 0.84, 1.16, 1.24, 1.30])
    sounds = (render_impacts(shape, radius, 0.5, [(0.0, 2.0)], 0.3, rate, 0) for radius in radii)
    return tuple(_portrait(sound, 0.0, rate) for sound in sounds)
