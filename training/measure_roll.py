"""What a clip of a ball that rolls into a resting shape shows and sounds like, from its pixels and samples alone.

The two things are the pieces that differ from the wall. They never pass each other, so that the left one stays the left
one; the ball is the one that comes nearer. Where both touch they are one piece: such frames are left out, and the
moment of contact follows from the motion before and after, see `find_contact`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from training.measure import LEAST_AREA, LEAST_CONTRAST, last_third, lower_edges, middles, name_colour, name_shape
from training.measure_sound import SoundMeasure, measure_sound
from training.world import FLOOR, FPS

# Lengths are fractions of the frame's height. Nothing that rolls or rests is as high as this row.
CLEAR_WALL = 0.55
# Below it the floor's darkness leaks into the wall.
SHADOWS = FLOOR - 0.008
# Of a row that the two things fill half of, so much is wall at least.
LEAST_WALL = 0.2
# What comes nearer by less is no ball, and what moves by less is not pushed.
LEAST_APPROACH = 0.05
LEAST_PUSH = 0.012
# The edges that face each other may be this far apart at a contact: an autoencoder rounds points off.
TOUCH = 0.14
# How much of the motion before and after a contact is looked at: later on, friction has stopped what moved.
SECONDS_BEFORE, SECONDS_AFTER = 0.5, 0.3
# A push is noticed this many frames after it began, at most, counting those in which ball and shape are one piece.
FRAMES_TO_NOTICE = 6
STEPS = 20
# Where a thing's area is further from what it is mostly, a blur has joined a part of it with the other, or is one.
SWELL = 0.5


@dataclass(frozen=True)
class RollMeasure:
    """None stands for what is not to be seen.

    shape, colour: of what rests; `x`: its middle while it rests, as a fraction of the width; side: where the ball comes
    from; contact: when it hits the shape, in seconds; likeness: the overlap (IoU) with the best shape template.
    """

    shape: str | None = None
    colour: str | None = None
    x: float | None = None
    ball_colour: str | None = None
    side: str | None = None
    contact: float | None = None
    likeness: float = 0.0

    @property
    def contacts(self) -> tuple[float, ...]:
        return () if self.contact is None else (self.contact,)


@dataclass(frozen=True)
class RollClipMeasure:
    """A clip's picture, the colours of what is seen in its last third from left to right, and its sound."""

    picture: RollMeasure
    last_colours: tuple[str | None, ...]
    sound: SoundMeasure


@dataclass(frozen=True)
class _Pieces:
    """One thing of a clip: `coverage` (seen, height, width) in those `frames` (seen,) in which it is a piece."""

    coverage: np.ndarray
    frames: np.ndarray


def measure_roll_clip(frames: np.ndarray, audio: np.ndarray, fps: float = FPS, rate: int = 48_000) -> RollClipMeasure:
    """Measure uint8 `frames` (frames, height, width, 3) and `audio` (channels, samples)."""
    return RollClipMeasure(measure_roll(frames, fps), thing_colours(last_third(frames)), measure_sound(audio, rate))


def measure_roll(frames: np.ndarray, fps: float = FPS) -> RollMeasure:
    """Find the ball and what it hits in uint8 `frames` (frames, height, width, 3), name them and time their contact."""
    height, width = frames.shape[1:3]
    alone, left, right = _things(frames)
    apart = _sized(left) & _sized(right)
    left, right = (_Pieces(thing.coverage[apart], thing.frames[apart]) for thing in (left, right))
    if len(left.frames) < 2:
        return RollMeasure()
    edges = [_right_edges(left.coverage) / height, (width - _right_edges(right.coverage[..., ::-1])) / height]
    nearer = [float(np.max(edges[0] - edges[0][0])), float(np.max(edges[1][0] - edges[1]))]
    if max(nearer) < LEAST_APPROACH:
        return RollMeasure()
    side, ball, shape = ("left", left, right) if nearer[0] > nearer[1] else ("right", right, left)
    towards = (1 if side == "left" else -1) * width / height
    ball_x, shape_x = (
        towards * np.where(_whole(thing), middles(thing.coverage)[:, 0], np.nan) for thing in (ball, shape)
    )
    contact = find_contact(left.frames, ball_x, shape_x, edges[1] - edges[0], fps)
    until = np.inf if contact is None else contact * fps
    rest = np.concatenate([alone.coverage, shape.coverage[shape.frames <= until]])
    if len(rest) < 2:
        return RollMeasure()
    places = middles(rest)
    kind, likeness, _ = name_shape(rest, places, np.ones(len(rest), bool))
    x = float(np.median(places[:, 0]))
    return RollMeasure(kind, _colour(frames, shape), x, _colour(frames, ball), side, contact, likeness)


def thing_colours(frames: np.ndarray) -> tuple[str | None, ...]:
    """The colours of the one or two things of uint8 `frames` (frames, height, width, 3), from left to right."""
    alone, *two = _things(frames)
    return tuple(_colour(frames, thing) for thing in (two if len(two[0].frames) else [alone]) if len(thing.frames))


def find_contact(frames: np.ndarray, ball: np.ndarray, shape: np.ndarray, gap: np.ndarray, fps: float) -> float | None:
    """When `ball` hits `shape`, in seconds.

    All are (seen,), of the numbered `frames`: where the two middles are, counted from the ball's side on and NaN where
    a thing is not wholly in view, and the `gap` between the edges that face each other. The shape rests until the
    contact and is moved on by it, the ball comes evenly and is thrown back: the moment is the one at which such
    motions, slowed down by friction, fit best. None where no shape is moved or no ball is near it.
    """
    known = shape[~np.isnan(shape)]
    pushed = shape - np.median(known[:3]) > LEAST_PUSH if len(known) else np.zeros(len(shape), bool)
    lasting = np.flatnonzero(pushed[:-1] & pushed[1:])
    if not len(lasting):
        return None
    noticed = frames[lasting[0]]
    near = (frames >= noticed - SECONDS_BEFORE * fps) & (frames <= noticed + SECONDS_AFTER * fps)
    if gap[near].min() > TOUCH:
        return None
    moments = np.arange(noticed - FRAMES_TO_NOTICE, noticed + 0.5, 1 / STEPS)
    errors = [_misfit(frames[near] - moment, ball[near], shape[near]) for moment in moments]
    return max(float(moments[np.argmin(errors)]), 0.0) / fps


def _misfit(times: np.ndarray, ball: np.ndarray, shape: np.ndarray) -> float:
    """The squared error of the best motions of a ball and a shape that meet at time 0."""
    before, after = np.minimum(times, 0), np.maximum(times, 0)
    motions = np.stack([np.ones_like(after), after, after**2, before], axis=1)
    error = 0.0
    for places, kinds in ((ball, 4), (shape, 3)):
        seen = ~np.isnan(places)
        basis = motions[seen, :kinds]
        fitted = np.linalg.lstsq(basis, places[seen], rcond=None)[0]
        error += float(np.square(basis @ fitted - places[seen]).sum())
    return error


def _things(frames: np.ndarray) -> tuple[_Pieces, _Pieces, _Pieces]:
    """What is alone before there are two things, and then the left and the right one of frames that show two."""
    distance = _from_wall(frames)
    least = LEAST_AREA * frames.shape[1] ** 2
    found: tuple[list[np.ndarray], ...] = ([], [], [])
    seen: tuple[list[int], ...] = ([], [], [])
    for number, frame in enumerate(distance):
        pieces = _pieces(frame, least)
        which = (1, 2) if len(pieces) == 2 else (0,) if len(pieces) == 1 and not seen[1] else ()
        for index, piece in zip(which, pieces, strict=False):
            found[index].append(piece)
            seen[index].append(number)
    none = np.zeros((0, *distance.shape[1:]), np.float32)
    alone, left, right = (
        _Pieces(np.stack(coverage) if coverage else none, np.array(numbers, int))
        for coverage, numbers in zip(found, seen, strict=True)
    )
    return alone, left, right


def _from_wall(frames: np.ndarray) -> np.ndarray:
    """How far each pixel's colour is from the wall's, (frames, height, width); 0 on the floor, where shadows are.

    A row's median is the wall's colour unless the two things fill half of the row: then it is far from what the rows
    above them, whose brightness is even, lead to, and the wall is what of the row is nearest to that.
    """
    height = frames.shape[1]
    floor, clear = int(SHADOWS * height), int(CLEAR_WALL * height)
    wall = np.median(frames[:, :floor], axis=2)
    rows = np.arange(floor) - (clear - 1) / 2
    slope = np.einsum("r,frc->fc", rows[:clear], wall[:, :clear]) / np.square(rows[:clear]).sum()
    line = wall[:, :clear].mean(axis=1)[:, None] + rows[:, None] * slope[:, None]
    far = np.linalg.norm(wall - line, axis=-1) > LEAST_CONTRAST
    crowded, least = frames[:, :floor][far].astype(np.float32), int(LEAST_WALL * frames.shape[2])
    nearest = np.linalg.norm(crowded - line[far][:, None], axis=-1).argsort(axis=1)[:, :least, None]
    wall[far] = np.median(np.take_along_axis(crowded, nearest, axis=1), axis=1)
    distance = np.zeros(frames.shape[:3], np.float32)
    distance[:, :floor] = np.linalg.norm(frames[:, :floor] - wall[:, :, None].astype(np.float32), axis=-1)
    return distance


def _pieces(distance: np.ndarray, least: float) -> list[np.ndarray]:
    """How much of each pixel the two largest connected things of a frame cover (height, width), from left to right."""
    labels, _ = ndimage.label(ndimage.binary_opening(ndimage.binary_fill_holes(distance > LEAST_CONTRAST)))
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    largest = [number for number in np.argsort(areas)[::-1][:2] if areas[number] >= least]
    pieces = []
    for number in largest:
        inside = labels == number
        contrast = np.median(distance[inside])
        coverage = np.clip((distance / contrast - 0.5) * 1.6 + 0.5, 0, 1)
        around = ndimage.binary_dilation(inside, iterations=2) & (inside | (labels == 0))
        pieces.append(np.where(around, coverage, 0))
    return sorted(pieces, key=lambda piece: float(middles(piece[None])[0, 0]))


def _whole(thing: _Pieces) -> np.ndarray:
    """Whether the thing does not touch the left or right edge of the picture, (seen,)."""
    return np.asarray(thing.coverage[:, :, [0, -1]].max(axis=(1, 2)) < 0.4)


def _sized(thing: _Pieces) -> np.ndarray:
    """Whether the thing is as large as it mostly is, or else not wholly in view, (seen,)."""
    areas, whole = thing.coverage.sum(axis=(1, 2)), _whole(thing)
    usual = max((np.median(some) for some in (areas, areas[whole]) if len(some)), default=0.0)
    return np.asarray(~whole | (np.abs(areas - usual) < SWELL * usual))


def _right_edges(coverage: np.ndarray) -> np.ndarray:
    """The column, with its fraction, up to which each frame is half covered somewhere."""
    return lower_edges(coverage.swapaxes(1, 2))


def _colour(frames: np.ndarray, thing: _Pieces) -> str | None:
    core = thing.coverage > 0.9
    return name_colour(np.median(frames[thing.frames][core], axis=0)) if core.any() else None
