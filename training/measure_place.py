"""Which of the nano world's places a clip shows, and which it sounds like, from pixels and samples alone.

Both are the nearest of the world's own: a picture by the colours of its height, a sound by its spectrum and by how that
spectrum moves. A clip of something else is called by the least unlike.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import soxr

from training.ambience import ambience
from training.backdrops import AMBIENCES, draw_backdrop
from training.canvas import Canvas, camera_path

BANDS, EXAMPLES = 8, 12
# Of the sound: how long a window is, in samples, and the edges of its bands in Hz.
RATE, WINDOW = 16_000, 512
EDGES = np.geomspace(60, 7600, 17)
SECONDS = 2.0


def shown_place(frames: np.ndarray) -> str:
    """The one of AMBIENCES whose colours, from top to bottom, are nearest to those of uint8 `frames`."""
    seen = _colours(frames)
    return min(AMBIENCES, key=lambda name: float(np.abs(seen - _pictures()[name]).mean()))


def heard_place(sound: np.ndarray, rate: int) -> str:
    """The one of AMBIENCES that a sound (channels, samples) at `rate` is nearest to, however loud it is."""
    means, spread = _sounds()
    heard = _spectrum(soxr.resample(sound.mean(0), rate, RATE))
    return min(AMBIENCES, key=lambda name: float(np.square((heard - means[name]) / spread).mean()))


def _colours(frames: np.ndarray) -> np.ndarray:
    """The median colour of each of BANDS bands of the height, (BANDS, 3)."""
    bands = np.array_split(frames, BANDS, axis=1)
    return np.stack([np.median(band.reshape(-1, 3), axis=0) for band in bands])


def _spectrum(sound: np.ndarray) -> np.ndarray:
    """The mean decibels of each band, less their own mean, and how much each moves in time, (2 * bands,)."""
    windows = np.lib.stride_tricks.sliding_window_view(sound, WINDOW)[:: WINDOW // 2] * np.hanning(WINDOW)
    power = np.abs(np.fft.rfft(windows, axis=1)) ** 2
    places = np.digitize(np.fft.rfftfreq(WINDOW, 1 / RATE), EDGES)
    bands = [power[:, places == band].sum(1) for band in range(1, len(EDGES)) if (places == band).any()]
    decibels = 10 * np.log10(np.stack(bands) + 1e-9)
    level = decibels.mean(1)
    return np.concatenate([level - level.mean(), decibels.std(1)])


@lru_cache
def _pictures() -> dict[str, np.ndarray]:
    """The colours of each place, the median of those of a few clips of it."""
    found = {}
    for name in AMBIENCES:
        drawn = []
        for seed in range(EXAMPLES):
            canvas = Canvas(64, 64, 9, camera_path("still", 9))
            draw_backdrop(canvas, name, False, seed)
            drawn.append(_colours(canvas.picture()))
        found[name] = np.median(drawn, axis=0)
    return found


@lru_cache
def _sounds() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The spectrum of each place, and how much each number of it varies among clips of one place."""
    made = {}
    for name in AMBIENCES:
        sounds = (ambience(name, SECONDS, np.random.default_rng(seed), RATE) for seed in range(EXAMPLES))
        made[name] = np.stack([_spectrum(sound.mean(0)) for sound in sounds])
    spread = np.sqrt(np.mean([spectra.var(0) for spectra in made.values()], axis=0))
    return {name: spectra.mean(0) for name, spectra in made.items()}, spread + 1.0
