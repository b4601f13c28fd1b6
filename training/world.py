"""The nano world, stage 1: one coloured shape hangs at rest, is released, falls, bounces and sounds at each contact.

Lengths are fractions of the frame: `x` of its width, everything else of its height, so that any frame size works.
Time is in seconds. What a scene looks like follows from `Scene` alone, with no hidden state.

    python -m training.world --sheet out.png
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

FPS = 24
NUM_FRAMES = 49
CLIP_SECONDS = NUM_FRAMES / FPS
FLOOR = 0.86
GRAVITY = 6.5
# A rebound lower than this, half a latent of a 128 pixel frame and over within five frames, is hardly drawn by a model
# whose latents hold 16 pixels and four frames: it neither happens nor sounds.
LEAST_REBOUND = 0.05
FIRST_CONTACT = (0.35, 1.6)
# A contact this close to the end could be heard but not seen (or the reverse): such scenes are not drawn.
END_MARGIN = 0.13

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 38, 44),
    "orange": (255, 134, 14),
    "yellow": (252, 226, 40),
    "green": (42, 190, 66),
    "blue": (40, 112, 246),
    "purple": (172, 62, 214),
    "white": (246, 246, 246),
}
# Of shapes in training alone: neighbours on every side of the colours above, so that a form in a colour that it is
# never trained in lies between forms that are. Evaluations ask for the colours above.
SHADES: dict[str, tuple[int, int, int]] = {
    "cyan": (30, 205, 225),
    "navy": (24, 58, 168),
    "indigo": (92, 72, 232),
    "azure": (120, 185, 255),
    "teal": (12, 140, 140),
    "mint": (130, 235, 165),
    "lime": (150, 225, 40),
    "olive": (120, 140, 30),
    "moss": (60, 120, 40),
    "maroon": (140, 24, 40),
    "magenta": (225, 40, 140),
    "pink": (246, 120, 170),
    "coral": (250, 110, 95),
    "amber": (222, 178, 30),
    "brown": (130, 84, 50),
    "cream": (250, 236, 190),
    "silver": (190, 194, 200),
    "lavender": (195, 160, 245),
}
ALL_COLOURS = COLOURS | SHADES
# Of those, what lies around blue: there small stars came out as balls.
FAINT = ("navy", "indigo", "azure", "cyan", "teal")
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "night blue": (26, 32, 62),
    "warm beige": (178, 150, 122),
    "grey-green": (88, 108, 96),
}
RESTITUTION: dict[str, float] = {"ball": 0.68, "cube": 0.48, "triangle": 0.54, "star": 0.46}
SHAPES = tuple(RESTITUTION)
# The points of a star, which are what tells it from a ball, have to be wider than a latent.
RADII = {"small": 0.105, "large": 0.15}
COLUMNS = {"left": 0.25, "centre": 0.5, "right": 0.75}
DROPS = {"low": 0.26, "high": 0.46}
# Up to which release time a release is called by which word.
RELEASES = {"at once": 0.2, "a little later": 0.65, "much later": 9.0}

# How far the colour of a tinted shape lies towards another at most, so that it is still called by its own; and that of
# a shape in a shade, whose neighbours are nearer.
MOST_TINT = 0.5
MOST_SHADE_TINT = 0.15

HELD_OUT_PAIRS = frozenset(
    {("red", "cube"), ("yellow", "ball"), ("green", "triangle"), ("blue", "star"), ("white", "cube")}
)


def split_pairs(
    first: Iterable[str], second: Iterable[str], held_out: frozenset[tuple[str, str]]
) -> dict[str, tuple[tuple[str, str], ...]]:
    """Every pair of two kinds of words, by split: "all", "train" without those held out, and "held_out"."""
    pairs = tuple(product(first, second))
    return {
        "all": pairs,
        "train": tuple(pair for pair in pairs if pair not in held_out),
        "held_out": tuple(pair for pair in pairs if pair in held_out),
    }


PAIRS = split_pairs(COLOURS, SHAPES, HELD_OUT_PAIRS)


@dataclass(frozen=True)
class Scene:
    """One clip: the words a caption may use and the numbers behind them.

    `radius` and `fall` (from the hanging bottom edge to the floor) are fractions of the height, `x` of the width.
    `seed` draws the noise of the sound and nothing else. tint: a colour that `tint_share` of the shape's is mixed with.
    """

    shape: str
    colour: str
    size: str
    column: str
    drop: str
    release: str
    background: str
    radius: float
    x: float
    fall: float
    release_time: float
    seed: int
    tint: str | None = None
    tint_share: float = 0.0

    @property
    def rgb(self) -> tuple[float, float, float]:
        return tinted(self.colour, self.tint, self.tint_share)

    @property
    def fall_seconds(self) -> float:
        return (2 * self.fall / GRAVITY) ** 0.5


@dataclass(frozen=True)
class Contact:
    """The bottom edge touches the floor at `time` seconds, at `speed` frame heights a second."""

    time: float
    speed: float


def tinted(colour: str, tint: str | None, share: float) -> tuple[float, float, float]:
    """The red, green and blue of `colour` with `share` of another mixed in."""
    mixed = zip(ALL_COLOURS[colour], ALL_COLOURS[tint or colour], strict=True)
    red, green, blue = (own + share * (other - own) for own, other in mixed)
    return red, green, blue


def sample_tint(rng: np.random.Generator, colour: str) -> dict[str, Any]:
    """A tint for a shape of `colour`: fields of `Scene` and of `training.rolling.Roll`."""
    others = [name for name in COLOURS if name != colour]
    return {"tint": others[rng.integers(len(others))], "tint_share": float(rng.uniform(0, MOST_TINT))}


def sample_shade(rng: np.random.Generator, shades: tuple[str, ...] = tuple(SHADES)) -> dict[str, Any]:
    """One of `shades` for a shape, a little towards some colour: fields of `Scene` and of `training.rolling.Roll`."""
    shade, other = shades[rng.integers(len(shades))], list(COLOURS)[rng.integers(len(COLOURS))]
    return {"colour": shade, "tint": other, "tint_share": float(rng.uniform(0, MOST_SHADE_TINT))}


def sample_scene(rng: np.random.Generator, pairs: str = "train") -> Scene:
    """Draw a scene whose colour and shape are of `pairs` ("train", "held_out" or "all")."""
    if pairs not in PAIRS:
        raise ValueError(f"pairs is {pairs!r}; it must be one of {', '.join(PAIRS)}")
    colour, shape = PAIRS[pairs][rng.integers(len(PAIRS[pairs]))]
    size, column, drop, background = (
        list(words)[rng.integers(len(words))] for words in (RADII, COLUMNS, DROPS, BACKGROUNDS)
    )
    radius = RADII[size] * rng.uniform(0.94, 1.06)
    x = COLUMNS[column] + rng.uniform(-0.035, 0.035)
    fall = DROPS[drop] + rng.uniform(-0.03, 0.03)
    seed = int(rng.integers(2**31))
    fall_seconds = (2 * fall / GRAVITY) ** 0.5
    while True:
        release_time = rng.uniform(max(FIRST_CONTACT[0], fall_seconds), FIRST_CONTACT[1]) - fall_seconds
        release = next(word for word, limit in RELEASES.items() if release_time < limit)
        scene = Scene(
            shape, colour, size, column, drop, release, background, radius, x, fall, float(release_time), seed
        )
        if all(abs(contact.time - CLIP_SECONDS) > END_MARGIN for contact in contacts(scene, CLIP_SECONDS + END_MARGIN)):
            return scene


def contacts(scene: Scene, seconds: float = CLIP_SECONDS) -> tuple[Contact, ...]:
    """The moments before `seconds` at which the shape hits the floor, in order."""
    speed = (2 * GRAVITY * scene.fall) ** 0.5
    time = scene.release_time + scene.fall_seconds
    found = []
    while time < seconds:
        found.append(Contact(time, speed))
        speed *= RESTITUTION[scene.shape]
        if speed**2 / (2 * GRAVITY) < LEAST_REBOUND:
            break
        time += 2 * speed / GRAVITY
    return tuple(found)


def heights(scene: Scene, times: np.ndarray) -> np.ndarray:
    """How far the bottom edge is above the floor at each of `times`, as a fraction of the frame's height."""
    times = np.asarray(times, dtype=np.float64)
    fallen = np.maximum(times - scene.release_time, 0.0)
    result = scene.fall - GRAVITY / 2 * fallen**2
    hits = contacts(scene, float("inf"))
    for contact, following in zip(hits, [*hits[1:], None], strict=True):
        after = times - contact.time
        rebound = RESTITUTION[scene.shape] * contact.speed if following else 0.0
        flight = rebound * after - (GRAVITY / 2 * after**2 if following else 0.0)
        result = np.where(after >= 0, flight, result)
    return np.maximum(result, 0.0)


def render_frames(
    scene: Scene, width: int = 128, height: int = 128, num_frames: int = NUM_FRAMES, fps: float = FPS
) -> np.ndarray:
    """The clip as uint8 (frames, height, width, 3), each frame at its exact time, edges antialiased."""
    above = heights(scene, np.arange(num_frames) / fps)
    moments, frame_of = np.unique(above, return_inverse=True)
    background = _background(scene.background, width, height)
    stills = np.repeat(background[None], len(moments), axis=0)
    _draw_shadow(stills, scene, moments)
    _draw_shape(stills, scene, moments)
    return np.rint(stills).astype(np.uint8)[frame_of]


@lru_cache(maxsize=64)
def _background(name: str, width: int, height: int) -> np.ndarray:
    y = (np.arange(height, dtype=np.float32) + 0.5) / height
    wall = 0.86 + 0.28 * y / FLOOR
    floor = 0.58 + 0.10 * (y - FLOOR) / (1 - FLOOR)
    share = np.clip((y - FLOOR) * height + 0.5, 0, 1)
    brightness = wall * (1 - share) + floor * share
    rows = brightness[:, None] * np.array(BACKGROUNDS[name], dtype=np.float32)
    return np.repeat(np.clip(rows, 0, 255)[:, None], width, axis=1)


def _draw_shadow(stills: np.ndarray, scene: Scene, moments: np.ndarray) -> None:
    """Darken the floor under the shape: the closer the shape, the narrower and darker."""
    height, width = stills.shape[1:3]
    top = int(FLOOR * height)
    y = ((np.arange(top, height, dtype=np.float32) + 0.5) / height - FLOOR) / 0.035
    x = ((np.arange(width, dtype=np.float32) + 0.5) - scene.x * width) / height
    nearness = np.exp(-moments / 0.12).astype(np.float32)
    reach = scene.radius * (1.5 - 0.6 * nearness)
    across = np.exp(-((x[None] / reach[:, None]) ** 2))
    down = np.where(y > 0, np.exp(-(y**2)), 0).astype(np.float32)
    dark = (0.15 + 0.35 * nearness)[:, None, None] * down[None, :, None] * across[:, None, :]
    stills[:, top:] *= (1 - dark)[..., None]


def _draw_shape(stills: np.ndarray, scene: Scene, moments: np.ndarray) -> None:
    height, width = stills.shape[1:3]
    up, half_width = extent(scene.shape)
    centre_x = scene.x * width
    bottom = (FLOOR - moments) * height
    tall, wide = up * scene.radius * height, half_width * scene.radius * height
    left, right = max(int(centre_x - wide - 1), 0), min(int(centre_x + wide + 2), width)
    first = np.floor(bottom - tall - 1).astype(int)
    rows = first[:, None] + np.arange(int(tall) + 4)
    rows = np.clip(rows, 0, height - 1)
    x = (np.arange(left, right, dtype=np.float32) + 0.5 - centre_x) / height / scene.radius
    y = (bottom[:, None] - rows - 0.5).astype(np.float32) / height / scene.radius
    distance = signed_distance(scene.shape, x[None, None, :], y[:, :, None]) * scene.radius * height
    alpha = np.clip(0.5 - distance, 0, 1)[..., None]
    shade = (1.06 - 0.18 * (1 - y / up))[:, :, None, None]
    colour = np.clip(np.array(scene.rgb, dtype=np.float32) * shade, 0, 255)
    index = np.arange(len(moments))[:, None]
    patch = stills[index, rows, left:right]
    stills[index, rows, left:right] = patch + alpha * (colour - patch)


def extent(shape: str) -> tuple[float, float]:
    """Height of the shape and half its width, in radii."""
    return {"ball": (2.0, 1.0), "cube": (1.76, 0.88), "triangle": (1.9, 1.12), "star": (2.08, 1.1)}[shape]


def signed_distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance to the outline in radii, negative inside; `y` counts up from the shape's bottom edge."""
    if shape == "ball":
        return np.hypot(x, y - 1) - 1
    tall, half = extent(shape)
    if shape == "cube":
        return np.maximum(np.abs(x) - half, np.abs(y - tall / 2) - half)
    if shape == "triangle":
        slant = np.hypot(tall, half)
        return np.maximum(-y, ((np.abs(x) - half) * tall + y * half) / slant)
    # Five-fold symmetry: every point is turned into the half sector between one tip and the next inner corner.
    fifth = np.pi / 5
    tip = tall / (1 + np.cos(fifth))
    inner = 0.46 * tip
    y = y - tip * np.cos(fifth)
    angle = np.abs((np.arctan2(x, y) + fifth) % (2 * fifth) - fifth)
    radius = np.hypot(x, y)
    corner_x, corner_y = inner * np.cos(fifth), inner * np.sin(fifth)
    side = np.hypot(tip - corner_x, corner_y)
    return ((radius * np.cos(angle) - tip) * corner_y + radius * np.sin(angle) * (tip - corner_x)) / side


def shape_coverage(shape: str, radius: float, x: float, bottom: float, width: int, height: int) -> np.ndarray:
    """How much of each pixel a shape covers, (height, width); `radius`, `x` and `bottom` (its lower edge) in pixels."""
    across = (np.arange(width, dtype=np.float32) + 0.5 - x) / radius
    up = (bottom - np.arange(height, dtype=np.float32) - 0.5) / radius
    return np.clip(0.5 - signed_distance(shape, across[None], up[:, None]) * radius, 0, 1)


def render_sound(scene: Scene, seconds: float = CLIP_SECONDS, rate: int = 48_000) -> np.ndarray:
    """The scene's sound, float32 (2, samples): see `training.world_sound`."""
    from training.world_sound import render_impacts

    hits = [(contact.time, contact.speed) for contact in contacts(scene, seconds)]
    return render_impacts(scene.shape, scene.radius, scene.x, hits, seconds, rate, scene.seed)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw a contact sheet of the nano world.")
    parser.add_argument("--sheet", type=Path, required=True, help="PNG to write")
    parser.add_argument("--clips", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    from training.sheet import scene_sheet

    scene_sheet(arguments.clips, arguments.seed).save(arguments.sheet)


if __name__ == "__main__":
    main()
