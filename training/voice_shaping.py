"""A spoken word with another pitch, vocal tract and tempo: what makes many voices of a few."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import numpy as np
import soxr

from nava_core.mel import SAMPLING_RATE

FRAME_MS = 5.0
LOWEST_PITCH, HIGHEST_PITCH = 60.0, 450.0
# A frame of a word counts as spoken if its level is at most this far under the loudest one, in dB.
SPOKEN_DECIBELS = 32.0
LEVEL_MS, PAD_MS, FADE_MS = 10, 15, 8
# Root mean square while speaking, and the highest peak.
LOUDNESS = 10 ** (-23 / 20)
PEAK = 0.6


@dataclass(frozen=True)
class AnalysedWord:
    """WORLD's parameters, one row every 5 ms: pitch in Hz (0: unvoiced), spectral envelope, aperiodicity."""

    pitch: np.ndarray
    envelope: np.ndarray
    aperiodicity: np.ndarray

    @property
    def seconds(self) -> float:
        return len(self.pitch) * FRAME_MS / 1000


def analyse(samples: np.ndarray, rate: int) -> AnalysedWord:
    """Trim a word `(samples,)` to where it is spoken and take it apart (WORLD: Morise et al., 2016)."""
    world = _world()
    low = soxr.resample(np.asarray(samples, dtype=np.float64), rate, SAMPLING_RATE, quality="HQ")
    trimmed = np.ascontiguousarray(trim(low / max(np.abs(low).max(), 1e-6)))
    # Quiet noise: WORLD's logarithms dislike digital silence.
    trimmed += 1e-5 * np.random.default_rng(0).standard_normal(len(trimmed))
    pitch, times = world.harvest(trimmed, SAMPLING_RATE, LOWEST_PITCH, HIGHEST_PITCH, FRAME_MS)
    envelope = world.cheaptrick(trimmed, pitch, times, SAMPLING_RATE)
    return AnalysedWord(pitch, envelope, world.d4c(trimmed, pitch, times, SAMPLING_RATE))


def shape(word: AnalysedWord, pitch: float = 1.0, tract: float = 1.0, tempo: float = 1.0) -> np.ndarray:
    """The word at 16 kHz, float32 (samples,), at LOUDNESS.

    pitch: factor on the pitch. tract: the vocal tract's length over the speaker's own; the formants' frequencies go
    down by it. tempo: factor on the speed.
    """
    bins = np.arange(word.envelope.shape[1], dtype=np.float64)
    source = np.minimum(bins * tract, bins[-1])
    below = np.minimum(source.astype(int), len(bins) - 2)
    share = source - below
    warped = []
    for table in (np.log(word.envelope), word.aperiodicity):
        warped.append(np.ascontiguousarray(table[:, below] * (1 - share) + table[:, below + 1] * share))
    sound = _world().synthesize(word.pitch * pitch, np.exp(warped[0]), warped[1], SAMPLING_RATE, FRAME_MS / tempo)
    return level(trim(sound))


def trim(samples: np.ndarray) -> np.ndarray:
    """The spoken part with a short margin, faded in and out."""
    spoken = np.flatnonzero(_spoken(samples))
    step = SAMPLING_RATE * LEVEL_MS // 1000
    pad, fade = SAMPLING_RATE * PAD_MS // 1000, SAMPLING_RATE * FADE_MS // 1000
    start, end = max(spoken[0] * step - pad, 0), (spoken[-1] + 1) * step + pad
    part = np.array(samples[start:end])
    ramp = 0.5 - 0.5 * np.cos(np.pi * np.arange(fade) / fade)
    part[:fade] *= ramp
    part[-fade:] *= ramp[::-1]
    return part


def level(samples: np.ndarray) -> np.ndarray:
    """`samples` as float32 at LOUDNESS while speaking, peaks pressed softly under PEAK."""
    step = SAMPLING_RATE * LEVEL_MS // 1000
    frames = samples[: len(samples) // step * step].reshape(-1, step)
    power = np.mean(frames[_spoken(samples)[: len(frames)]] ** 2)
    loud = samples * (LOUDNESS / max(np.sqrt(power), 1e-6))
    return (PEAK * np.tanh(loud / PEAK)).astype(np.float32)


def _spoken(samples: np.ndarray) -> np.ndarray:
    """For each 10 ms whether it is within SPOKEN_DECIBELS of the loudest."""
    step = SAMPLING_RATE * LEVEL_MS // 1000
    padded = np.pad(samples, (0, -len(samples) % step)).reshape(-1, step)
    power = np.mean(padded**2, axis=1)
    return power >= max(power.max(), 1e-12) * 10 ** (-SPOKEN_DECIBELS / 10)


def _world() -> ModuleType:
    try:
        import pyworld
    except ImportError as error:
        raise RuntimeError("the voices are shaped with pyworld, which is not installed; pip install pyworld") from error
    return pyworld
