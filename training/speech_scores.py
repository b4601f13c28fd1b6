"""Speech in a clip, measured from its samples: which side it comes from and whether a mouth moves with it."""

from __future__ import annotations

import numpy as np

from training.voices import OPENING_STEP, mouth_levels

# Where speech alone is looked for, so that rumble and hiss do not count, in Hz.
SPEECH_BAND = (150.0, 4500.0)


def speech_opening(audio: np.ndarray, rate: int, times: np.ndarray) -> np.ndarray:
    """How open a mouth would be at `times` (s) that says `audio` (channels, samples): float in [0, 1]."""
    mono = speech_band(np.atleast_2d(audio), rate).mean(axis=0)
    levels = mouth_levels(mono, rate)
    return np.interp(times, np.arange(len(levels)) * OPENING_STEP, levels, left=0.0, right=0.0)


def mouth_correlation(openings: np.ndarray, audio: np.ndarray, rate: int, fps: float, reach: int = 0) -> float:
    """Pearson correlation of a mouth seen in each frame, (frames,), with the speech heard, (channels, samples).

    reach: how many frames either may be late; the best counts. 0 where nothing moves or nothing is heard.
    """
    seen = np.asarray(openings, dtype=np.float64)
    best = -1.0
    for shift in range(-reach, reach + 1):
        heard = speech_opening(audio, rate, (np.arange(len(seen)) + shift) / fps)
        if seen.std() < 1e-6 or heard.std() < 1e-6:
            return 0.0
        best = max(best, float(np.corrcoef(seen, heard)[0, 1]))
    return best


def speech_balance(audio: np.ndarray, rate: int, start: float = 0.0, end: float | None = None) -> float:
    """Left over right in dB, of the speech band of `audio` (2, samples) from `start` to `end` seconds."""
    if np.ndim(audio) != 2 or len(audio) != 2:
        raise ValueError(f"the sound has the shape {np.shape(audio)}; the side is measured in (2, samples)")
    part = speech_band(audio, rate)[:, round(start * rate) : None if end is None else round(end * rate)]
    left, right = np.mean(part.astype(np.float64) ** 2, axis=1) + 1e-12
    return float(10 * np.log10(left / right))


def speech_band(audio: np.ndarray, rate: int) -> np.ndarray:
    """`audio` (channels, samples) without what is outside of SPEECH_BAND."""
    low, high = SPEECH_BAND
    spectrum = np.fft.rfft(audio, axis=-1)
    frequency = np.fft.rfftfreq(audio.shape[-1], 1 / rate)
    gain = 1 / ((1 + (low / np.maximum(frequency, 1)) ** 8) * (1 + (frequency / high) ** 8))
    return np.fft.irfft(spectrum * gain, audio.shape[-1], axis=-1)
