"""The sound of the nano world: every contact rings a few damped modes of the shape's material."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

REFERENCE_RADIUS = 0.105
# The speed of the highest fall of the world, which is given the loudest sound.
LOUDEST_SPEED = 2.52
ATTACK_SECONDS = 0.001
NOISE_FLOOR = 10 ** (-75 / 20)
PEAK = 0.6


@dataclass(frozen=True)
class Material:
    """Modes of a body of the reference radius, and the noise of the knock.

    `frequencies` in Hz, `decays` in seconds to 1/e, `levels` relative; `knock` is the level of the noise,
    which stays below about `knock_cutoff` Hz and decays in `knock_decay` seconds to 1/e.
    """

    frequencies: tuple[float, ...]
    decays: tuple[float, ...]
    levels: tuple[float, ...]
    knock: float
    knock_cutoff: float
    knock_decay: float


MATERIALS: dict[str, Material] = {
    # rubber
    "ball": Material((165, 290, 480), (0.060, 0.040, 0.022), (1.0, 0.6, 0.3), 0.25, 700, 0.008),
    # wood
    "cube": Material((430, 1090, 1770), (0.036, 0.022, 0.012), (1.0, 0.55, 0.3), 0.25, 3000, 0.005),
    # metal
    "triangle": Material(
        (690, 1035, 1490, 1960, 2610, 3480),
        (0.20, 0.17, 0.14, 0.11, 0.08, 0.05),
        (1.0, 0.8, 0.7, 0.6, 0.4, 0.3),
        0.25,
        5000,
        0.004,
    ),
    # glass
    "star": Material((1980, 3350, 4620, 5900), (0.13, 0.09, 0.06, 0.04), (1.0, 0.6, 0.45, 0.3), 0.2, 6500, 0.003),
}


def render_impacts(
    shape: str, radius: float, x: float, hits: list[tuple[float, float]], seconds: float, rate: int, seed: int
) -> np.ndarray:
    """The sound of `hits`, (time in seconds, speed in frame heights a second), float32 (2, samples), panned by `x`."""
    samples = round(seconds * rate)
    rng = np.random.default_rng(seed)
    mono = np.zeros(samples, dtype=np.float32)
    for time, speed in hits:
        start = int(np.ceil(time * rate))
        struck = _strike(MATERIALS[shape], radius, start / rate - time, rate, rng)[: max(samples - start, 0)]
        mono[start : start + len(struck)] += (speed / LOUDEST_SPEED) ** 0.7 * struck
    angle = np.pi / 2 * np.clip(x, 0, 1)
    stereo = PEAK * np.array([[np.cos(angle)], [np.sin(angle)]], dtype=np.float32) * mono
    return stereo + NOISE_FLOOR * rng.standard_normal((2, samples), dtype=np.float32)


def _strike(material: Material, radius: float, late: float, rate: int, rng: np.random.Generator) -> np.ndarray:
    """One contact at full loudness, its first sample `late` seconds after the contact; peaks stay under 1."""
    pitch = (REFERENCE_RADIUS / radius) ** 0.8
    longest = max(material.decays)
    sound = np.zeros(int(9 * longest * rate), dtype=np.float32)
    time = np.arange(len(sound), dtype=np.float32) / rate + np.float32(late)
    for frequency, decay, level in zip(material.frequencies, material.decays, material.levels, strict=True):
        part = time[: int(9 * decay * rate)]
        sound[: len(part)] += level * np.exp(part / -decay) * np.sin(2 * np.pi * pitch * frequency * part)
    noise_time = time[: int(9 * material.knock_decay * rate)]
    noise = _low_pass(rng.standard_normal(len(noise_time)).astype(np.float32), material.knock_cutoff, rate)
    sound[: len(noise_time)] += material.knock * np.exp(noise_time / -material.knock_decay) * noise
    attack = time < ATTACK_SECONDS
    sound[attack] *= 0.5 - 0.5 * np.cos(np.pi * time[attack] / ATTACK_SECONDS)
    return sound / (sum(material.levels) * 0.8)


def _low_pass(noise: np.ndarray, cutoff: float, rate: int) -> np.ndarray:
    """Noise of unit variance below about `cutoff` Hz (a Gaussian window, so that nothing is left above the band)."""
    width = rate / (2 * np.pi * cutoff)
    reach = int(np.ceil(4 * width))
    window = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    return np.convolve(noise, window / np.sqrt(np.sum(window**2)), mode="same").astype(np.float32)
