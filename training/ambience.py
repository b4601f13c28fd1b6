"""The sound of places: rain, waves, wind and night, made of filtered noise and small events."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# Root mean square of a clip of each kind, so that speech and impacts stand out of it.
LEVELS = {"rain": 10 ** (-31 / 20), "waves": 10 ** (-30 / 20), "wind": 10 ** (-30 / 20), "night": 10 ** (-34 / 20)}


def ambience(kind: str, seconds: float, rng: np.random.Generator, rate: int = 48_000) -> np.ndarray:
    """The sound of a place, float32 (2, seconds * rate), at about -30 dB of full scale, everywhere around.

    kind: "rain", "waves", "wind" or "night"; raises ValueError for another one.
    """
    if kind not in AMBIENCES:
        raise ValueError(f"the ambience is {kind!r}; it may be {', '.join(AMBIENCES)}")
    sound = AMBIENCES[kind](round(seconds * rate), rng, rate)
    return (sound * (LEVELS[kind] / np.sqrt(np.mean(sound**2)))).astype(np.float32)


def _noise(samples: int, rng: np.random.Generator, rate: int, gain: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Noise (2, samples) whose spectrum follows `gain`, a function of frequency in Hz; the sides share a part of it."""
    spectrum = np.fft.rfft(rng.standard_normal((3, samples)), axis=1)
    spectrum *= gain(np.fft.rfftfreq(samples, 1 / rate))
    left, right, shared = np.fft.irfft(spectrum, samples, axis=1)
    sound = np.stack([left, right]) + 0.7 * shared
    return sound / max(np.sqrt(np.mean(sound**2)), 1e-9)


def _slow(samples: int, rng: np.random.Generator, rate: int, hertz: float) -> np.ndarray:
    """A curve in [0, 1] that wanders at about `hertz`."""
    count = max(int(samples / rate * hertz * 2) + 4, 5)
    points = rng.random(count)
    place = np.linspace(0.5, count - 2.5, samples)
    below = place.astype(int)
    share = 0.5 - 0.5 * np.cos(np.pi * (place - below))
    return points[below] * (1 - share) + points[below + 1] * share


def _band(low: float, high: float, slope: float = 1.0) -> Callable[[np.ndarray], np.ndarray]:
    def gain(frequency: np.ndarray) -> np.ndarray:
        return 1 / ((1 + (low / np.maximum(frequency, 1)) ** 4) * (1 + (frequency / high) ** 2) ** slope)

    return gain


def _rain(samples: int, rng: np.random.Generator, rate: int) -> np.ndarray:
    """A steady hiss and single drops, each a short falling chirp or click."""
    sound = _noise(samples, rng, rate, _band(500, rng.uniform(5000, 8000)))
    time = np.arange(int(0.02 * rate)) / rate
    for _ in range(int(samples / rate * rng.uniform(25, 60))):
        start = int(rng.integers(0, max(samples - len(time), 1)))
        frequency = rng.uniform(1500, 6000)
        drop = np.exp(-time / rng.uniform(0.002, 0.005)) * np.sin(2 * np.pi * (frequency - 20000 * time) * time)
        angle = np.pi / 2 * rng.random()
        sides = np.array([[np.cos(angle)], [np.sin(angle)]])
        sound[:, start : start + len(time)] += rng.uniform(1, 5) * (sides * drop)[:, : samples - start]
    return sound


def _waves(samples: int, rng: np.random.Generator, rate: int) -> np.ndarray:
    """Surf that swells and draws back every 2 to 4 s, brighter as it breaks, over a low rumble."""
    time = np.arange(samples) / rate
    phase = (time / rng.uniform(2, 4) + rng.random()) % 1
    swell = np.where(phase < 0.35, (phase / 0.35) ** 2, np.exp(-(phase - 0.35) / 0.22))
    foam = _noise(samples, rng, rate, _band(400, 3500))
    body = _noise(samples, rng, rate, _band(60, 500))
    return foam * (0.05 + swell) + body * (0.35 + 0.5 * swell)


def _wind(samples: int, rng: np.random.Generator, rate: int) -> np.ndarray:
    """Low noise in gusts, with a whistle that rises and falls with them."""
    gust = _slow(samples, rng, rate, rng.uniform(0.4, 1.0))
    low = _noise(samples, rng, rate, _band(60, 350, 1.5))
    high = _noise(samples, rng, rate, _band(300, 1200, 1.5))
    pitch = rng.uniform(350, 600) * (1 + 0.5 * gust)
    whistle = np.sin(2 * np.pi * np.cumsum(pitch) / rate + 3 * _slow(samples, rng, rate, 12))
    return low * (0.3 + gust) + high * gust**2 + 0.15 * gust**2 * whistle


def _night(samples: int, rng: np.random.Generator, rate: int) -> np.ndarray:
    """Crickets, each in its own place with its own pulse, over a faint low noise."""
    time = np.arange(samples) / rate
    sound = 0.25 * _noise(samples, rng, rate, _band(80, 500))
    for _ in range(rng.integers(2, 4)):
        pulse = 0.5 + 0.5 * np.sin(2 * np.pi * (rng.uniform(25, 40) * time + rng.random()))
        chirping = ((time * rng.uniform(1.5, 2.8) + rng.random()) % 1) < rng.uniform(0.35, 0.6)
        window = np.hanning(int(0.02 * rate))
        chirping = np.convolve(chirping.astype(float), window / window.sum(), mode="same")
        tone = np.sin(2 * np.pi * rng.uniform(3200, 4800) * time) * pulse**2 * chirping
        angle = np.pi / 2 * rng.random()
        sound += rng.uniform(0.4, 1.0) * np.array([[np.cos(angle)], [np.sin(angle)]]) * tone
    return sound


AMBIENCES: dict[str, Callable[[int, np.random.Generator, int], np.ndarray]] = {
    "rain": _rain,
    "waves": _waves,
    "wind": _wind,
    "night": _night,
}
