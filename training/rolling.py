"""Stage 1's second scene: a ball rolls in along the floor and hits a shape that rests there; both sound, one moves on.

Lengths are fractions of the frame's height; `x` runs from the frame's middle to the right, as in `training.canvas`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from training.canvas import Canvas, ellipse
from training.world import ALL_COLOURS, CLIP_SECONDS, COLOURS, FLOOR, PAIRS, RADII, signed_distance, tinted
from training.world_sound import NOISE_FLOOR, render_impacts

CONTACT = (0.4, 1.5)
SPEEDS = (0.7, 1.15)
# Frame heights a second squared that friction takes from what slides and what rolls.
FRICTION = {"slides": 0.9, "rolls": 0.8}
# Of the ball's speed: what the hit shape gets, by shape, and what the ball keeps, backwards.
PUSHED = {"ball": 0.75, "cube": 0.5, "triangle": 0.55, "star": 0.6}
REBOUND = 0.5
SOUND_SPEED = 1.9
SPOT = 0.72
GAP_POINTS = 241


@dataclass(frozen=True)
class Roll:
    """`side` is where the ball comes from; `x` the shape's middle until the `contact` (seconds); `speed` of the ball.

    shape, colour, size: of what is hit; ball_colour, ball_size: of the ball. `seed` draws the sound's noise.
    tint: a colour that `tint_share` of the resting shape's is mixed with.
    """

    side: str
    shape: str
    colour: str
    size: str
    ball_colour: str
    ball_size: str
    x: float
    radius: float
    ball_radius: float
    contact: float
    speed: float
    seed: int
    tint: str | None = None
    tint_share: float = 0.0

    @property
    def rgb(self) -> tuple[float, float, float]:
        return tinted(self.colour, self.tint, self.tint_share)

    @property
    def direction(self) -> float:
        return 1.0 if self.side == "left" else -1.0


def sample_roll(rng: np.random.Generator, pairs: str = "train") -> Roll:
    """A roll whose resting shape is of `pairs` (a key of `world.PAIRS`) and whose ball has another colour."""
    colour, shape = PAIRS[pairs][rng.integers(len(PAIRS[pairs]))]
    others = [name for name in COLOURS if name != colour and (name, "ball") in PAIRS["train"]]
    side = ("left", "right")[rng.integers(2)]
    size, ball_size = (list(RADII)[rng.integers(len(RADII))] for _ in range(2))
    x = rng.uniform(-0.06, 0.2) * (1 if side == "left" else -1)
    return Roll(
        side, shape, colour, size, others[rng.integers(len(others))], ball_size, float(x),
        float(RADII[size] * rng.uniform(0.94, 1.06)), float(RADII[ball_size] * rng.uniform(0.94, 1.06)),
        float(rng.uniform(*CONTACT)), float(rng.uniform(*SPEEDS)), int(rng.integers(2**31)),
    )  # fmt: skip


def places(roll: Roll, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the middles of the ball and of the shape are at `times`, world x."""
    times = np.asarray(times, np.float64)
    after = np.maximum(times - roll.contact, 0)
    ball = roll.speed * np.minimum(times - roll.contact, 0) - _glide(REBOUND * roll.speed, FRICTION["rolls"], after)
    pushed = _glide(PUSHED[roll.shape] * roll.speed, FRICTION["rolls" if roll.shape == "ball" else "slides"], after)
    return roll.x + roll.direction * (ball - _gap(roll)), roll.x + roll.direction * pushed


def distances(roll: Roll, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far the ball and the shape are at `times` from where they are when they touch, in heights of the frame."""
    ball, shape = places(roll, times)
    return np.abs(ball - roll.x + roll.direction * _gap(roll)), np.abs(shape - roll.x)


@lru_cache(maxsize=256)
def _gap(roll: Roll) -> float:
    """How far the middles are apart where the ball touches the shape, which slants or bulges."""
    across, up = np.meshgrid(np.linspace(-1.3, 1.3, GAP_POINTS), np.linspace(0, 2.4, GAP_POINTS))
    inside = signed_distance(roll.shape, across, up) <= 0
    x, above = roll.radius * across[inside], roll.radius * up[inside] - roll.ball_radius
    low = np.abs(above) <= roll.ball_radius
    # Where the ball is as wide as it gets, rounding may make the square negative.
    reach = np.sqrt(np.maximum(roll.ball_radius**2 - above[low] ** 2, 0))
    return float((reach - x[low]).max())


def _glide(speed: float, friction: float, after: np.ndarray) -> np.ndarray:
    """The way of something that starts at `speed` and is slowed down to rest."""
    time = np.minimum(after, speed / friction)
    return speed * time - friction / 2 * time**2


def draw_roll(canvas: Canvas, roll: Roll, times: np.ndarray) -> None:
    """Draw both with their shadows; the ball carries a spot, so that one sees it roll."""
    ball_x, shape_x = (x.astype(np.float32)[:, None, None] for x in places(roll, times))
    far = canvas.width / canvas.height / 2 + 1
    for x, radius in ((ball_x, roll.ball_radius), (shape_x, roll.radius)):
        shadow = ellipse(0, FLOOR + 0.012, 0.9 * radius, 0.022)
        canvas.fill(lambda u, v, x=x, s=shadow: s(u - x, v), (20, 20, 24), (-far, FLOOR, far, 1), 0.4)  # type: ignore[misc]
    r = roll.radius
    canvas.fill(
        lambda u, v: r * signed_distance(roll.shape, (u - shape_x) / r, (FLOOR - v) / r),
        roll.rgb,
        (float(shape_x.min()) - 1.3 * r, FLOOR - 2.2 * r, float(shape_x.max()) + 1.3 * r, FLOOR + 0.01),
    )
    r = roll.ball_radius
    bounds = (float(ball_x.min()) - r, FLOOR - 2 * r, float(ball_x.max()) + r, FLOOR + 0.01)
    colour = ALL_COLOURS[roll.ball_colour]
    ball = ellipse(0, FLOOR - r, r, r)
    canvas.fill(lambda u, v: ball(u - ball_x, v), colour, bounds)
    turn = (ball_x - roll.x) / r
    spot_x, spot_y = ball_x + 0.5 * r * np.sin(turn), FLOOR - r - 0.5 * r * np.cos(turn)
    spot = ellipse(0, 0, 0.3 * r, 0.3 * r)
    canvas.fill(lambda u, v: spot(u - spot_x, v - spot_y), tuple(SPOT * part for part in colour), bounds)  # type: ignore[arg-type]


def roll_boxes(canvas: Canvas, roll: Roll, times: np.ndarray) -> list[np.ndarray]:
    """The bounds of the ball and of the shape in each frame, pixels (frames, 4); of a still camera."""
    boxes = []
    for x, radius in zip(places(roll, times), (roll.ball_radius, roll.radius), strict=True):
        box = canvas.pixel_box(-1.25 * radius, FLOOR - 2.2 * radius, 1.25 * radius, FLOOR + 0.02).copy()
        shift = np.rint(x * canvas.height).astype(np.int64)
        box[:, 0], box[:, 2] = (np.clip(box[:, side] + shift, 0, canvas.width) for side in (0, 2))
        boxes.append(box)
    return boxes


def render_roll_sound(roll: Roll, aspect: float, seconds: float = CLIP_SECONDS, rate: int = 48_000) -> np.ndarray:
    """Both materials at the moment of contact, float32 (2, samples), from where it is on the screen."""
    pan = 0.5 + roll.x / aspect
    hit = [(roll.contact, SOUND_SPEED * roll.speed)]
    ball = render_impacts("ball", roll.ball_radius, pan, hit, seconds, rate, roll.seed)
    struck = render_impacts(roll.shape, roll.radius, pan, hit, seconds, rate, roll.seed + 1)
    rng = np.random.default_rng(roll.seed)
    noise = NOISE_FLOOR * rng.standard_normal(ball.shape, dtype=np.float32)
    return (0.45 * ball + 0.75 * struck + 0.5 * noise).astype(np.float32)
