"""What is behind the people and things of the nano world: walls, and the pictures of its ambiences."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from training.canvas import Canvas, Colour, Distance, both, box, ellipse
from training.world import BACKGROUNDS, FLOOR, FPS

WALLS: dict[str, tuple[int, int, int]] = {**BACKGROUNDS, "pale blue": (150, 184, 212), "lilac": (176, 158, 208)}
AMBIENCES = ("rain", "waves", "wind", "night")
PANEL_WIDTH = 0.22
# From post to post, which stand still in every ambience: where all else moves by itself, only they tell of a camera.
POST_GAP = 0.32


class Posts(NamedTuple):
    """A row of posts that stand at the same places in every clip of an ambience."""

    colour: Colour
    half_width: float
    top: float
    bottom: float


POSTS = {
    "rain": Posts((34, 38, 46), 0.034, 0.60, 0.90),
    "waves": Posts((84, 60, 44), 0.034, 0.66, 0.95),
    "wind": Posts((242, 240, 232), 0.034, 0.66, 0.92),
    "night": Posts((255, 206, 110), 0.036, 0.85, 0.94),  # the windows of a street below the hill
}


def draw_backdrop(canvas: Canvas, name: str, panels: bool, seed: int) -> None:
    """Draw a wall of WALLS over the floor, with panels or without, or one of AMBIENCES."""
    if name in WALLS:
        _wall(canvas, name, panels)
        return
    painters = {"rain": _rain, "waves": _waves, "wind": _wind, "night": _night}
    if name not in painters:
        raise ValueError(f"the backdrop is {name!r}; it must be one of {', '.join([*WALLS, *AMBIENCES])}")
    times = np.arange(canvas.frames, dtype=np.float32)[:, None, None] / FPS
    painters[name](canvas, times, np.random.default_rng(seed))


def _rows(canvas: Canvas) -> np.ndarray:
    return canvas.y(0, canvas.height)


def _far(canvas: Canvas) -> float:
    """How far from the middle things are drawn: beyond what any camera sees."""
    return canvas.width / canvas.height / 2 + 0.5


def _gradient(canvas: Canvas, top: tuple[int, int, int], bottom: tuple[int, int, int], end: float) -> None:
    """A sky from `top` to `bottom`, which it reaches at the height `end`."""
    share = np.clip(_rows(canvas) / end, 0, 1)[..., None]
    canvas.backdrop(np.asarray(top, np.float32) * (1 - share) + np.asarray(bottom, np.float32) * share)


def _wall(canvas: Canvas, name: str, panels: bool) -> None:
    """Stage 1's wall and floor, seen through the camera."""
    y = _rows(canvas)
    share = np.clip((y - FLOOR) * canvas.scale + 0.5, 0, 1)
    wall = 0.86 + 0.28 * np.clip(y, -0.2, FLOOR) / FLOOR
    floor = 0.58 + 0.10 * (y - FLOOR) / (1 - FLOOR)
    brightness = wall * (1 - share) + floor * share
    if panels:
        x = canvas.x(0, canvas.width)
        away = np.abs((x / PANEL_WIDTH) % 1 - 0.5) * PANEL_WIDTH
        line = np.clip(1.0 - (away - 0.012) * canvas.scale, 0, 1)
        brightness = brightness * (1 - 0.16 * line * (1 - share))
    canvas.backdrop(np.clip(brightness[..., None] * np.asarray(WALLS[name], np.float32), 0, 255))


def _posts(canvas: Canvas, ambience: str) -> None:
    posts, far = POSTS[ambience], _far(canvas)
    post = box(-posts.half_width, posts.top, posts.half_width, posts.bottom)
    bounds = (-far, posts.top, far, posts.bottom)
    canvas.fill(lambda x, y: post(x % POST_GAP - POST_GAP / 2, y), posts.colour, bounds)


def post_boxes(canvas: Canvas, ambience: str) -> list[np.ndarray]:
    """The bounds of each post that the camera may see in an ambience, pixels (frames, 4)."""
    posts = POSTS[ambience]
    count = int(np.ceil(_far(canvas) / POST_GAP))
    middles = (np.arange(-count, count) + 0.5) * POST_GAP
    return [canvas.pixel_box(x - posts.half_width, posts.top, x + posts.half_width, posts.bottom) for x in middles]


def _rain(canvas: Canvas, times: np.ndarray, rng: np.random.Generator) -> None:
    """Grey sky, dark hills, wet ground, and drops that fall through the whole frame."""
    _gradient(canvas, (96, 110, 128), (146, 158, 170), 0.7)
    far = _far(canvas)
    canvas.fill(lambda x, y: 0.66 + 0.05 * np.sin(5 * x + 1) - y, (70, 86, 84), (-far, 0.5, far, 1.5))
    canvas.fill(lambda x, y: FLOOR + 0 * x - y, (58, 66, 74), (-far, FLOOR - 0.02, far, 1.5))
    _posts(canvas, "rain")
    for _ in range(int(16 * far)):
        x, phase = float(rng.uniform(-far, far)), float(rng.uniform(0, 1.3))
        y = (times * 1.5 + phase) % 1.3 - 0.15
        streak = ellipse(x, 0.0, 0.009, 0.085)
        drop = lambda across, down, y=y, streak=streak: streak(across, down - y)  # noqa: E731
        canvas.fill(drop, (208, 222, 236), (x - 0.02, -0.3, x + 0.02, 1.3), 0.75)


def _waves(canvas: Canvas, times: np.ndarray, rng: np.random.Generator) -> None:
    """Bright sky, three bands of water whose crests run sideways, and sand."""
    _gradient(canvas, (126, 190, 238), (214, 234, 244), 0.5)
    far = _far(canvas)
    bands = ((0.50, 0.020, 7.0, 0.10, (40, 104, 168)), (0.60, 0.030, 5.0, 0.16, (52, 134, 190)),
             (0.72, 0.040, 3.6, 0.22, (96, 178, 208)))  # fmt: skip
    for level, height, number, speed, colour in bands:
        phase, swell = rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi)
        water = _crests(level + 0.015 * np.sin(np.pi * times + swell), height, number, speed * times, phase)
        canvas.fill(moved(water, 0.018), (236, 244, 248), (-far, 0.4, far, 1.5))
        canvas.fill(water, colour, (-far, 0.4, far, 1.5))
    canvas.fill(lambda x, y: 0.90 + 0.01 * np.sin(6 * x) - y, (222, 200, 150), (-far, 0.86, far, 1.5))
    _posts(canvas, "waves")


def _crests(level: np.ndarray, height: float, number: float, run: np.ndarray, phase: float) -> Distance:
    """Water below a line of crests; `level` and `run` (how far the crests have come) are (frames, 1, 1)."""
    return lambda x, y: level + height * np.abs(np.sin(number * (x - run) + phase)) - y


def moved(shape: Distance, outwards: float) -> Distance:
    """The shape, larger by `outwards`."""
    return lambda x, y: shape(x, y) - outwards


def _wind(canvas: Canvas, times: np.ndarray, rng: np.random.Generator) -> None:
    """Pale sky, a green hill, a tree whose crown sways, and leaves that blow across."""
    _gradient(canvas, (176, 208, 226), (228, 234, 222), 0.8)
    far = _far(canvas)
    canvas.fill(lambda x, y: 0.74 - 0.05 * np.cos(2.2 * x) - y, (118, 164, 84), (-far, 0.6, far, 1.5))
    _posts(canvas, "wind")
    side, phase = (-1 if rng.random() < 0.5 else 1), rng.uniform(0, 2 * np.pi)
    x = side * (canvas.width / canvas.height / 2 - 0.2)
    sway = 0.05 * np.sin(2 * np.pi * 0.7 * times + phase) + 0.03

    def trunk(across: np.ndarray, down: np.ndarray) -> np.ndarray:
        bent = across - x - sway * np.clip((0.76 - down) / 0.4, 0, 1.5) ** 2
        return np.maximum(np.abs(bent) - 0.018, np.maximum(down - 0.78, 0.3 - down))

    canvas.fill(trunk, (104, 76, 52), (x - 0.2, 0.28, x + 0.2, 0.8))
    crown = lambda across, down: ellipse(x, 0.3, 0.16, 0.17)(across - sway, down)  # noqa: E731
    canvas.fill(crown, (70, 132, 60), (x - 0.3, 0.1, x + 0.3, 0.5))
    reach = 2 * far
    for _ in range(6):
        start, level, speed = rng.uniform(0, reach), rng.uniform(0.1, 0.8), rng.uniform(0.7, 1.0)
        across = (times * speed + start) % reach - far
        down = level + 0.04 * np.sin(2 * np.pi * (times + start))
        leaf = lambda u, v, across=across, down=down: ellipse(0, 0, 0.03, 0.016)(u - across, v - down)  # noqa: E731
        canvas.fill(leaf, (214, 142, 44), (-far, level - 0.07, far, level + 0.07))


def _night(canvas: Canvas, times: np.ndarray, rng: np.random.Generator) -> None:
    """Dark sky, a crescent moon, stars that twinkle, and a black hill."""
    _gradient(canvas, (10, 14, 40), (40, 44, 84), 0.8)
    far = canvas.width / canvas.height / 2 + 0.4
    for _ in range(int(14 * far)):
        x, y, phase = rng.uniform(-far, far), rng.uniform(0.03, 0.6), rng.uniform(0, 2 * np.pi)
        bright = 0.6 + 0.4 * np.sin(2 * np.pi * 0.8 * times + phase)
        canvas.fill(ellipse(x, y, 0.011, 0.011), (246, 240, 206), (x - 0.02, y - 0.02, x + 0.02, y + 0.02), bright)
    side = -1 if rng.random() < 0.5 else 1
    x = side * (canvas.width / canvas.height / 2 - 0.18)
    shadow = ellipse(x + 0.04, 0.14, 0.075, 0.075)
    crescent = both(ellipse(x, 0.16, 0.09, 0.09), lambda across, down: -shadow(across, down))
    canvas.fill(crescent, (250, 238, 190), (x - 0.12, 0.04, x + 0.12, 0.28))
    canvas.fill(lambda u, v: 0.78 + 0.05 * np.sin(3 * u) - v, (18, 22, 34), (-far, 0.7, far, 1.5))
    _posts(canvas, "night")
