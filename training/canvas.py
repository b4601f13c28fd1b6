"""A camera and flat, antialiased drawing through it: what all pictures of the nano world beyond stage 1 are made with.

World lengths are fractions of the frame's height at zoom 1: `x` from the middle of the frame to the right, `y` from its
top edge down.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

CAMERAS = ("still", "pan left", "pan right", "push in", "pull out")
# How far a pan goes, in lengths of the frame's shorter side, and how much a push magnifies, over the whole clip.
PAN = 0.40
PUSH = 1.45

Colour = tuple[float, float, float]
# World coordinates (frames or 1, 1, width) and (frames or 1, height, 1) to a distance, negative inside.
Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Camera:
    """Where the camera is in each frame: its `x` in frame heights and its `zoom`, (frames,) or (1,) if still."""

    x: np.ndarray
    zoom: np.ndarray


def camera_path(move: str, frames: int, aspect: float = 1.0) -> Camera:
    """The path of one of CAMERAS: even over the clip, a pan from one side of the middle to the other.

    aspect: of the frame, width over height.
    """
    if move not in CAMERAS:
        raise ValueError(f"the camera move is {move!r}; it must be one of {', '.join(CAMERAS)}")
    done = np.linspace(0, 1, frames, dtype=np.float32)
    if move == "still":
        return Camera(np.zeros(1, np.float32), np.ones(1, np.float32))
    if move in ("pan left", "pan right"):
        sign = 1 if move == "pan right" else -1
        return Camera(sign * PAN * min(aspect, 1.0) * (done - 0.5), np.ones(frames, np.float32))
    share = done if move == "push in" else 1 - done
    return Camera(np.zeros(frames, np.float32), np.exp(np.log(PUSH) * share).astype(np.float32))


class Canvas:
    """Frames under construction, float32 (frames or 1, height, width, 3) in 0..255.

    What does not move is drawn into one frame, which is repeated when the first moving thing comes.
    """

    def __init__(self, width: int, height: int, frames: int, camera: Camera) -> None:
        self.width, self.height, self.frames = width, height, frames
        self.scale = camera.zoom[:, None, None] * height
        self.camera_x = camera.x[:, None, None]
        count = max(len(camera.x), len(camera.zoom))
        self.pixels = np.zeros((count, height, width, 3), np.float32)

    def x(self, start: int, stop: int) -> np.ndarray:
        """World x of the pixel columns, (frames or 1, 1, columns)."""
        columns = np.arange(start, stop, dtype=np.float32)[None, None]
        return (columns + 0.5 - self.width / 2) / self.scale + self.camera_x

    def y(self, start: int, stop: int) -> np.ndarray:
        """World y of the pixel rows, (frames or 1, rows, 1). The camera zooms into the frame's middle."""
        rows = np.arange(start, stop, dtype=np.float32)[None, :, None]
        return (rows + 0.5 - self.height / 2) / self.scale + 0.5

    def pixel_box(self, left: float, top: float, right: float, bottom: float) -> np.ndarray:
        """The bounds of a world box in each frame, (frames, 4): left, top, right, bottom in pixels, cut to it."""
        scale, camera_x = self.scale[:, 0, 0], self.camera_x[:, 0, 0]
        columns = [(edge - camera_x) * scale + self.width / 2 for edge in (left, right)]
        rows = [(edge - 0.5) * scale + self.height / 2 for edge in (top, bottom)]
        box = np.stack(np.broadcast_arrays(columns[0], rows[0], columns[1], rows[1]), axis=-1)
        box = np.broadcast_to(box, (self.frames, 4))
        limits = np.array([self.width, self.height, self.width, self.height])
        return np.clip(np.rint(box), 0, limits).astype(np.int64)

    def backdrop(self, colours: np.ndarray) -> None:
        """Fill everything with `colours`, which broadcasts to (frames or 1, height, width, 3)."""
        self._make_room(colours.shape[0])
        self.pixels[:] = colours

    def fill(
        self,
        distance: Distance,
        colour: Colour,
        bounds: tuple[float, float, float, float],
        opacity: float | np.ndarray = 1.0,
    ) -> None:
        """Paint what lies inside of `distance` (world units); `bounds` is a world box that holds it at all times."""
        boxes = self.pixel_box(*bounds)
        left, top = np.maximum(boxes[:, :2].min(axis=0) - 1, 0)
        right, bottom = boxes[:, 2:].max(axis=0) + 1
        right, bottom = min(int(right), self.width), min(int(bottom), self.height)
        if left >= right or top >= bottom:
            return
        inside = distance(self.x(left, right), self.y(top, bottom))
        alpha = (np.clip(0.5 - inside * self.scale, 0, 1) * opacity)[..., None].astype(np.float32)
        self._make_room(alpha.shape[0])
        area = self.pixels[:, top:bottom, left:right]
        area += alpha * (np.asarray(colour, np.float32) - area)

    def picture(self) -> np.ndarray:
        """uint8 (frames, height, width, 3)."""
        pixels = np.clip(self.pixels + 0.5, 0, 255).astype(np.uint8)
        return np.repeat(pixels, self.frames, axis=0) if len(pixels) == 1 else pixels

    def _make_room(self, count: int) -> None:
        if count > 1 and len(self.pixels) == 1:
            self.pixels = np.repeat(self.pixels, count, axis=0)


def ellipse(x: float, y: float, half_width: float | np.ndarray, half_height: float | np.ndarray) -> Distance:
    """Near enough to the distance for antialiasing; the half axes may be (frames, 1, 1)."""

    def distance(across: np.ndarray, down: np.ndarray) -> np.ndarray:
        u, v = (across - x) / half_width, (down - y) / half_height
        radius = np.sqrt(u * u + v * v) + 1e-6
        slope = np.sqrt((u / half_width) ** 2 + (v / half_height) ** 2) / radius + 1e-6
        return (radius - 1) / slope

    return distance


def box(left: float, top: float, right: float, bottom: float, corner: float = 0.0) -> Distance:
    """A rectangle with rounded corners."""

    def distance(across: np.ndarray, down: np.ndarray) -> np.ndarray:
        u = np.abs(across - (left + right) / 2) - (right - left) / 2 + corner
        v = np.abs(down - (top + bottom) / 2) - (bottom - top) / 2 + corner
        return np.hypot(np.maximum(u, 0), np.maximum(v, 0)) + np.minimum(np.maximum(u, v), 0) - corner

    return distance


def either(*shapes: Distance) -> Distance:
    """The union."""
    return lambda across, down: np.minimum.reduce([shape(across, down) for shape in shapes])


def both(*shapes: Distance) -> Distance:
    """The intersection."""
    return lambda across, down: np.maximum.reduce([shape(across, down) for shape in shapes])
