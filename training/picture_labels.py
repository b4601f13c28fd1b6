"""What is seen at each video token: a shape of a colour, hair, skin or clothes, a post, or what is behind them; how far
what moves is from where it lands or touches; and where the camera is.

Asked by `training.middle_heads`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.backdrops import AMBIENCES, WALLS, post_boxes
from training.people import HAIR, SKINS
from training.rolling import distances
from training.shots import Shot, canvas_of, heads, points_of_interest
from training.world import ALL_COLOURS, COLOURS, FPS, SHADES, SHAPES, heights

_SINGLE = (
    *(("backdrop", name) for name in (*WALLS, *AMBIENCES)),
    *(("hair", name) for name in HAIR),
    *(("skin", name) for name in SKINS),
    *(("clothes", name) for name in COLOURS),
)
POST = ("landmark", "post")
_NAMES = (*_SINGLE, *product(ALL_COLOURS, SHAPES), POST)
CLASS_OF = {names: number for number, names in enumerate(_NAMES)}
CLASSES = len(_NAMES)
BACKDROPS = len(WALLS) + len(AMBIENCES)  # classes of these come first
FRAMES = 4  # that a latent frame holds; the first one holds a single one
UNIT = 0.1  # of `distance_labels` and `camera_labels`, in heights of the frame and in nepers
STIRRED = 0.1  # in UNIT: what moves less within a latent frame, a pixel of 128, stands still


class ClassScores(nn.Linear):
    """Scores of the classes (..., CLASSES) of states (..., `dim`); those of a shape are the sum of a score of its
    colour and one of its form.

    With a score for each pair, those of colour and shape that are kept out of the training would be what nothing is
    ever called, and the layers would be taught to see something else in them.
    """

    sums: Tensor

    def __init__(self, dim: int) -> None:
        facts = {names: number for number, names in enumerate((*_SINGLE, *COLOURS, *SHAPES, *SHADES, POST))}
        super().__init__(dim, len(facts))
        sums = torch.zeros(len(facts), CLASSES)
        for names, number in CLASS_OF.items():
            for fact in [names] if names in facts else names:
                sums[facts[fact], number] = 1.0
        self.register_buffer("sums", sums, persistent=False)

    def forward(self, states: Tensor) -> Tensor:
        return super().forward(states) @ self.sums


def picture_labels(shot: Shot, frames: int, rows: int, columns: int) -> Tensor:
    """The class of each token, (frames * rows * columns,), of so many latent frames and rows and columns of tokens."""
    labels = np.full((frames, rows, columns), CLASS_OF["backdrop", shot.backdrop])
    shown = np.minimum(np.maximum(FRAMES * np.arange(frames) - 2, 0), shot.num_frames - 1)
    sizes = np.array([shot.width / columns, shot.height / rows])
    for names, boxes in _things(shot):
        left, top, right, bottom = (boxes[shown] / np.tile(sizes, 2)).T
        covered = _within(top, bottom, rows)[:, :, None] & _within(left, right, columns)[:, None, :]
        covered &= ((right > left) & (bottom > top))[:, None, None]  # a ball that has not come in yet has no box
        labels[covered] = CLASS_OF[names]
    return torch.from_numpy(labels.ravel())


def distance_labels(shot: Shot, labels: Tensor, frames: int) -> Tensor:
    """How far what moves is from where it sounds, in each frame of the latent frame of each token, in UNIT:
    (tokens, FRAMES), NaN at tokens that do not show such a thing.

    A falling shape from the floor; a rolling ball, and the shape that it hits, from where they touch. labels: of the
    tokens, as from `picture_labels`, of so many latent frames.
    """
    found = torch.full((len(labels), FRAMES), torch.nan)
    times = _moments(frames) / FPS
    moving: list[tuple[tuple[str, str], np.ndarray]] = []
    if shot.scene is not None:
        moving = [((shot.scene.colour, shot.scene.shape), heights(shot.scene, times))]
    if shot.roll is not None:
        ball, struck = distances(shot.roll, times)
        moving = [((shot.roll.colour, shot.roll.shape), struck), ((shot.roll.ball_colour, "ball"), ball)]
    for names, away in moving:
        shows = labels == CLASS_OF[names]
        rows = torch.from_numpy(away / UNIT).float().repeat_interleave(len(labels) // frames, 0)
        found = torch.where(shows[:, None], rows, found)
    return found


def camera_labels(shot: Shot, frames: int) -> Tensor:
    """Where the camera is in each frame of so many latent frames, in UNIT: (frames, 2 * FRAMES), first how far to the
    right, then its zoom's logarithm.
    """
    path, numbers = shot.camera_path, np.minimum(_moments(frames), shot.num_frames - 1)
    x, zoom = (np.broadcast_to(values, shot.num_frames)[numbers] for values in (path.x, path.zoom))
    return torch.from_numpy(np.concatenate([x, np.log(zoom)], axis=1) / UNIT).float()


def _moments(frames: int) -> np.ndarray:
    """The numbers of the frames of each latent frame, (frames, FRAMES); the first holds one, four times."""
    numbers: np.ndarray = np.maximum(FRAMES * np.arange(frames)[:, None] - np.arange(FRAMES)[::-1], 0)
    return numbers


def class_weights(thing: float, colours: Mapping[str, float]) -> Tensor:
    """What the squared error of a token of each class counts, (CLASSES,): 1 of a backdrop, `thing` of all else; of a
    shape as many times that as `colours` says of its colour.
    """
    things = [thing * (colours.get(colour, 1.0) if shape in SHAPES else 1.0) for colour, shape in _NAMES[BACKDROPS:]]
    return torch.tensor([1.0] * BACKDROPS + things)


def error_weights(
    labels: Tensor, distances: Tensor, frames: int, height: int, width: int, classes: Tensor, moving: float
) -> Tensor:
    """What the squared error of each latent counts, (batch, 1, frames, height, width), with a mean of 1: what `classes`
    (CLASSES,) says of the token, `moving` times as much while it shows something that falls, rolls, lies where it
    fell or waits to be hit, and no less one latent frame before and after.

    With what moves alone, what a ball hits lost its form until it was hit.

    labels: of each token (batch, tokens), as from `picture_labels`, and distances (batch, tokens, FRAMES), as from
    `distance_labels`; tokens are squares of latents.
    """
    side = round((frames * height * width / labels.shape[1]) ** 0.5)
    moves = distances.amax(-1) - distances.amin(-1) > STIRRED
    waits = distances.amax(-1) < STIRRED
    weights = classes[labels] * (1 + (moving - 1) * (moves | waits))
    weights = weights.unflatten(1, (frames, height // side, width // side))
    weights = F.max_pool3d(weights[:, None], (3, 1, 1), stride=1, padding=(1, 0, 0))
    weights = weights.repeat_interleave(side, 3).repeat_interleave(side, 4)
    return weights / weights.mean()


def _within(low: np.ndarray, high: np.ndarray, count: int) -> np.ndarray:
    """The tokens whose middles are between two ends (frames,), and at least the one that holds the middle of both."""
    places = np.arange(count)
    middle = np.clip(np.floor((low + high) / 2), 0, count - 1)
    inside: np.ndarray = (places + 0.5 >= low[:, None]) & (places + 0.5 < high[:, None])
    return inside | (places == middle[:, None])


def _things(shot: Shot) -> Iterator[tuple[tuple[str, str], np.ndarray]]:
    """The names and the boxes, pixels (frames, 4), of what stands before the backdrop, from the back to the front."""
    if shot.ambience is not None:
        for box in post_boxes(canvas_of(shot), shot.ambience):
            yield POST, box
    for person, head in zip(shot.people, heads(shot), strict=True):
        left, top, right, bottom = head.T
        middle, floor = (top + bottom) / 2, np.full_like(bottom, shot.height)
        yield ("clothes", person.clothes), np.stack([left, bottom, right, floor], axis=1)
        yield ("hair", person.hair), np.stack([left, top, right, middle], axis=1)
        yield ("skin", person.skin), np.stack([left, middle, right, bottom], axis=1)
    boxes = points_of_interest(shot)[len(shot.people) :]
    if shot.scene is not None:
        yield (shot.scene.colour, shot.scene.shape), boxes[0]
    if shot.roll is not None:
        ball, struck = boxes[-2:]
        yield (shot.roll.colour, shot.roll.shape), struck
        yield (shot.roll.ball_colour, "ball"), ball
