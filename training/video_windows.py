"""Windows of rendered clips for the video autoencoder's training, and where in a picture errors weigh most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from training.shots import RECOLOURED, Shot, babble, heads, points_of_interest, recolour, render_frames, sample_shot

# Weight of a head beside that of a mouth or a shape.
HEAD_SHARE = 0.3
# Of a shape that falls or is struck; a shape in any other clip has 1.
SHAPE_WEIGHT = 1.5
SHAPE_KINDS = ("fall", "roll")
CELL = 16  # pixels to a latent's side


def to_pixels(frames: np.ndarray) -> torch.Tensor:
    """uint8 `(frames, height, width, 3)` to float `(3, frames, height, width)` in [-1, 1]."""
    return torch.from_numpy(frames).permute(3, 0, 1, 2).float().div_(127.5).sub_(1.0)


def box_mask(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """1.0 inside each frame's box: float32 `(frames, height, width)`."""
    x, y = np.arange(width)[None, None, :], np.arange(height)[None, :, None]
    left, top, right, bottom = (boxes[:, i, None, None] for i in range(4))
    return ((x >= left) & (x < right) & (y >= top) & (y < bottom)).astype(np.float32)


@dataclass(frozen=True)
class Window:
    """The size of a training window and its share of the steps at evenly spaced points of the run."""

    frames: int
    height: int
    width: int
    batch: int
    share: list[float]

    def share_at(self, progress: float) -> float:
        return float(np.interp(progress, np.linspace(0, 1, len(self.share)), self.share))


@dataclass(frozen=True)
class Clip:
    """`frames` uint8; `boxes` (n, frames, 4) of mouths or the shape; `mask` (frames, height, width), at most 1 or,
    of falls and rolls, SHAPE_WEIGHT; `moving` frame numbers."""

    frames: np.ndarray
    boxes: np.ndarray
    mask: np.ndarray
    moving: np.ndarray


def babbling(shot: Shot, rng: np.random.Generator) -> tuple[Clip, list[np.ndarray]]:
    """A shot as pixels, its people babbling, and how open their mouths are."""
    openings = [babble(rng, shot.num_frames) for _ in shot.people]
    return make_clip(shot, openings), openings


def make_clip(shot: Shot, openings: Sequence[np.ndarray]) -> Clip:
    """A shot as pixels; openings: how open each person's mouth is in each frame, (frames,) in [0, 1]."""
    frames = render_frames(shot, openings)
    boxes = np.array(points_of_interest(shot)).reshape(-1, len(frames), 4)
    mask = np.zeros(frames.shape[:3], np.float32)
    for share, parts in ((HEAD_SHARE, heads(shot)), (1.0, boxes)):
        for part in parts:
            mask = np.maximum(mask, share * box_mask(part, shot.width, shot.height))
    inside = mask == mask.max()
    change = np.abs(np.diff(frames.astype(np.int16), axis=0)).sum(-1) * inside[1:]
    moving = np.flatnonzero((change > 24).sum((1, 2)) > 3)
    mask *= SHAPE_WEIGHT if shot.kind in SHAPE_KINDS else 1
    return Clip(frames, boxes, mask, moving if len(moving) else np.arange(len(frames) - 1))


def is_hard(shot: Shot) -> bool:
    """Whether its shape is a small star, whose points lie within one latent."""
    body = shot.scene or shot.roll
    return body is not None and (body.shape, body.size) == ("star", "small")


class WindowSource:
    """Windows of rendered clips. A pool is kept, and one clip of it is replaced at each draw.

    config: `tinted` and `shaded`, the shares of shots whose shape is so recoloured (`shots.recolour`), and
    `hard_share`, that of the falls and rolls which are drawn until they are hard to decode; 0 where they are left out.
    """

    def __init__(self, config: dict[str, Any], seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.windows = [Window(**entry) for entry in config["windows"]]
        self.moving_share, self.shape_share = config["moving_share"], config["shape_share"]
        self.kinds = list(config["kinds"])
        self.kind_shares = np.array(list(config["kinds"].values())) / sum(config["kinds"].values())
        self.hard_share = config.get("hard_share", 0.0)
        recoloured = [config.get(how, 0.0) for how in RECOLOURED]
        self.recolour_shares = [*recoloured, 1 - sum(recoloured)]
        self.pool = [self._clip() for _ in range(config["pool"])]

    def draw(self, progress: float, sizes: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels `(batch, 3, frames, height, width)` in [-1, 1] and the mask `(batch, 1, frames, ...)`.

        `sizes` draws which window is cut, the source's own generator everything in it.
        """
        shares = np.array([window.share_at(progress) for window in self.windows])
        window = self.windows[sizes.choice(len(shares), p=shares / shares.sum())]
        self.pool[self.rng.integers(len(self.pool))] = self._clip()
        cuts = [self._cut(self.pool[self.rng.integers(len(self.pool))], window) for _ in range(window.batch)]
        pixels = torch.stack([to_pixels(frames) for frames, _ in cuts])
        return pixels, torch.stack([torch.from_numpy(mask)[None] for _, mask in cuts])

    def _clip(self) -> Clip:
        kind = self.kinds[self.rng.choice(len(self.kinds), p=self.kind_shares)]
        shot = sample_shot(self.rng, kind, "train")
        if kind in SHAPE_KINDS and self.rng.random() < self.hard_share:
            while not is_hard(shot):
                shot = sample_shot(self.rng, kind, "train")
        how = str(self.rng.choice([*RECOLOURED, ""], p=self.recolour_shares))
        if how:
            shot = recolour(shot, self.rng, how)
        return babbling(shot, self.rng)[0]

    def _cut(self, clip: Clip, window: Window) -> tuple[np.ndarray, np.ndarray]:
        last = len(clip.frames) - window.frames
        start = int(self.rng.integers(last + 1))
        if self.rng.random() < self.moving_share:
            start = int(np.clip(self.rng.choice(clip.moving) - self.rng.integers(window.frames), 0, last))
        span = slice(start, start + window.frames)
        height, width = clip.frames.shape[1:3]
        size = window.width, window.height
        left, top = crop_corner(self.rng, clip.boxes[:, span], size, width, height, self.shape_share)
        area = (span, slice(top, top + window.height), slice(left, left + window.width))
        return np.ascontiguousarray(clip.frames[area]), np.ascontiguousarray(clip.mask[area])


def crop_corner(
    rng: np.random.Generator, boxes: np.ndarray, size: tuple[int, int], width: int, height: int, shape_share: float
) -> tuple[int, int]:
    """The left and top of a crop of `size`, on the latent grid: the floor and the frame's edges keep their place in it.

    boxes: (n, frames, 4), of one of which the crop holds a part for `shape_share` of the time.
    """
    wanted = np.array(size)
    room = np.array([width, height]) - wanted
    corner = rng.integers(0, room + 1)
    if len(boxes) and rng.random() < shape_share:
        box = boxes[rng.integers(len(boxes)), rng.integers(boxes.shape[1])]
        corner = (box[:2] + box[2:]) / 2 - wanted * rng.uniform(0.25, 0.75, 2)
    left, top = np.clip(np.rint(corner / CELL) * CELL, 0, room).astype(int)
    return int(left), int(top)
