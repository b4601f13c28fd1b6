"""The people of the nano world: flat faces with hair, eyes and a mouth that follows the voice.

Lengths within a person are in head radii (`Person.radius`, half the height of the head), from the middle of the head.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.canvas import Canvas, Distance, both, box, either, ellipse
from training.world import COLOURS, FPS, split_pairs

HAIR: dict[str, tuple[int, int, int]] = {
    "black": (34, 28, 34),
    "brown": (92, 52, 26),
    "blond": (240, 204, 96),
    "grey": (172, 174, 180),
    "ginger": (204, 92, 30),
}
SKINS: dict[str, tuple[int, int, int]] = {"light": (250, 212, 180), "tan": (216, 154, 106), "dark": (146, 94, 64)}
HAIR_STYLES = ("short", "long", "curly")
SEXES = ("f", "m")
SINGLE_PLACES = {"left": 0.32, "centre": 0.5, "right": 0.68}
PAIR_PLACES = {"left": 0.27, "right": 0.73}
INSIDE_OF_MOUTH = (84, 10, 22)
EYE = (24, 22, 30)
MOUTH_Y = 0.48
HEAD_WIDTH = 0.82
BLINK_FRAMES = (0.6, 0.12, 0.12, 0.6)

# Left out of the training: pairs of hair and clothes.
HELD_OUT_LOOKS = frozenset(
    {("black", "yellow"), ("brown", "blue"), ("blond", "red"), ("grey", "green"), ("ginger", "purple")}
)
LOOKS = split_pairs(HAIR, COLOURS, HELD_OUT_LOOKS)


@dataclass(frozen=True)
class Person:
    """`x` is a fraction of the frame's width, `y` (middle of the head) and `radius` of its height; `blink` in seconds.

    `voice` names a voice of the bank and `words` what it says from second `start` on; silent people have no words.
    `speech_seed` draws how the words are said.
    """

    sex: str
    hair: str
    hair_style: str
    skin: str
    clothes: str
    column: str
    x: float
    y: float
    radius: float
    blink: float
    voice: str = ""
    words: tuple[str, ...] = ()
    start: float = 0.0
    speech_seed: int = 0


def sample_person(rng: np.random.Generator, column: str, x: float, radius: float, looks: str = "train") -> Person:
    """A silent person at `x` (a fraction of the width); `looks` is a key of LOOKS."""
    hair, clothes = LOOKS[looks][rng.integers(len(LOOKS[looks]))]
    skin = list(SKINS)[rng.integers(len(SKINS))]
    style, sex = HAIR_STYLES[rng.integers(len(HAIR_STYLES))], SEXES[rng.integers(2)]
    y = 0.44 + rng.uniform(-0.015, 0.015)
    return Person(sex, hair, style, skin, clothes, column, x, y, radius, float(rng.uniform(0.1, 2.5)))


@dataclass(frozen=True)
class _Frame:
    """World coordinates of a person: the middle of the head and its radius."""

    x: float
    y: float
    r: float

    def bounds(self, left: float, top: float, right: float, bottom: float) -> tuple[float, float, float, float]:
        return self.x + left * self.r, self.y + top * self.r, self.x + right * self.r, self.y + bottom * self.r

    def oval(self, x: float, y: float, half_width: float, half_height: float | np.ndarray) -> Distance:
        return ellipse(self.x + x * self.r, self.y + y * self.r, half_width * self.r, half_height * self.r)


def draw_person(canvas: Canvas, person: Person, opening: np.ndarray) -> None:
    """Draw `person` with the mouth as open as `opening` (frames,) in [0, 1] says."""
    frame = _Frame(*_middle(canvas, person), person.radius)
    x, y, r, oval, bounds = frame.x, frame.y, frame.r, frame.oval, frame.bounds
    hair, skin, clothes = HAIR[person.hair], SKINS[person.skin], COLOURS[person.clothes]
    if person.hair_style == "long":
        back = both(oval(0, 0.35, 1.16, 1.6), box(x - 2 * r, y - 2 * r, x + 2 * r, y + 1.35 * r))
        canvas.fill(back, _shade(hair, 0.86), bounds(-1.2, -1.3, 1.2, 1.4))
    neck = box(x - 0.3 * r, y + 0.7 * r, x + 0.3 * r, y + 1.4 * r, 0.1 * r)
    canvas.fill(neck, _shade(skin, 0.82), bounds(-0.35, 0.7, 0.35, 1.4))
    body = either(oval(0, 2.5, 1.5, 1.32), box(x - 1.5 * r, y + 2.5 * r, x + 1.5 * r, y + 9 * r))
    canvas.fill(body, clothes, bounds(-1.55, 1.1, 1.55, 9))
    if person.hair_style == "curly":
        turns = np.linspace(-0.15, 1.15, 9) * np.pi
        curls = [oval(-0.92 * np.cos(turn), -0.12 - 0.9 * np.sin(turn), 0.36, 0.36) for turn in turns]
        canvas.fill(either(*curls), hair, bounds(-1.4, -1.4, 1.4, 0.7))
    canvas.fill(oval(0, 0, HEAD_WIDTH, 1.0), skin, bounds(-0.85, -1.05, 0.85, 1.05))
    cap = both(oval(0, -0.12, 0.95, 1.05), lambda across, down: -_fringe(across - x, down - y, r))
    canvas.fill(cap, hair, bounds(-1, -1.2, 1, 0.5))
    _draw_eyes(canvas, person, frame)
    _draw_mouth(canvas, person, opening, frame)


def mouth_box(canvas: Canvas, person: Person) -> np.ndarray:
    """The bounds of the mouth at its widest in each frame, pixels (frames, 4), a margin included."""
    x, y = _middle(canvas, person)
    r = person.radius
    return canvas.pixel_box(x - 0.5 * r, y + 0.1 * r, x + 0.5 * r, y + 0.98 * r)


def head_box(canvas: Canvas, person: Person) -> np.ndarray:
    """The bounds of head and hair in each frame, pixels (frames, 4)."""
    x, y = _middle(canvas, person)
    r = person.radius
    return canvas.pixel_box(x - 1.2 * r, y - 1.3 * r, x + 1.2 * r, y + 1.1 * r)


def _middle(canvas: Canvas, person: Person) -> tuple[float, float]:
    return (person.x - 0.5) * canvas.width / canvas.height, person.y


def _fringe(across: np.ndarray, down: np.ndarray, r: float) -> np.ndarray:
    """Distance to the face below the hair line: an oval that lies deeper than the head."""
    return ellipse(0.0, 0.42 * r, 0.78 * r, 0.98 * r)(across, down)


def _draw_eyes(canvas: Canvas, person: Person, frame: _Frame) -> None:
    number = np.arange(canvas.frames) - round(person.blink * FPS)
    lid = np.ones(canvas.frames, np.float32)
    for offset, share in enumerate(BLINK_FRAMES):
        lid[number == offset] = share
    blinks = bool((lid < 1).any())
    tall = 0.15 * (lid[:, None, None] if blinks else 1.0)
    for side in (-1, 1):
        x = side * 0.34
        canvas.fill(frame.oval(x, -0.02, 0.105, tall), EYE, frame.bounds(x - 0.2, -0.2, x + 0.2, 0.2))


def _draw_mouth(canvas: Canvas, person: Person, opening: np.ndarray, frame: _Frame) -> None:
    x, y, r = frame.x, frame.y, frame.r
    wide = opening.astype(np.float32)[:, None, None]
    half_width, half_height = (0.37 - 0.07 * wide) * r, (0.035 + 0.30 * wide) * r
    lips = ellipse(x, y + MOUTH_Y * r, half_width + 0.06 * r, half_height + 0.06 * r)
    canvas.fill(lips, _shade(SKINS[person.skin], 0.72), frame.bounds(-0.5, 0.1, 0.5, 0.95))
    inside = ellipse(x, y + MOUTH_Y * r, half_width, half_height)
    canvas.fill(inside, INSIDE_OF_MOUTH, frame.bounds(-0.5, 0.1, 0.5, 0.95))


def _shade(colour: tuple[int, int, int], share: float) -> tuple[float, float, float]:
    return colour[0] * share, colour[1] * share, colour[2] * share
