"""What a clip shows and sounds like, measured from its pixels and samples alone, never from the scene behind it.

The picture: the shape is what differs from its row's median (the nano world's backgrounds are the same along a row and
its shapes narrower than half of one). The sound: see `training.measure_sound`. The two together: `sync`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

from training.measure_sound import SoundMeasure, measure_sound
from training.world import COLOURS, FLOOR, FPS, GRAVITY, SHAPES, shape_coverage

# All lengths are fractions of the frame's height.
LEAST_AREA = 0.004
LEAST_CONTRAST = 28.0
# A rise or fall smaller than this is jitter of the decoder.
LEAST_MOVE = 0.012
NEAR_FLOOR = 0.07
STILL = 0.004
LEAST_LIKENESS = 0.7
# Autoencoders round corners off: by how much of the radius, and what overlap a rounded template must be better by.
ROUNDINGS = {0.0: 0.0, 0.12: 0.01, 0.24: 0.02}
OUTLINE_PIXELS = 48
SIDES = (0.375, 0.625)
# How much of a clip's end has to look as its given first frame did.
LAST_SHARE = 1 / 3


@dataclass(frozen=True)
class PictureMeasure:
    """The shape of a clip, None where there is none to be seen.

    `track` holds a row of (x as a fraction of the width, y of the centre as a fraction of the height) for each frame,
    NaN where the shape is lost; `contacts` are the moments in seconds at which its lower edge comes down on the floor.
    `likeness` is the overlap (IoU) with the best of the shape templates.
    """

    shape: str | None
    colour: str | None
    column: str | None
    track: np.ndarray
    radius: float
    contacts: tuple[float, ...]
    likeness: float


@dataclass(frozen=True)
class ClipMeasure:
    """A clip's picture, over all of it and in its last third, and its sound."""

    picture: PictureMeasure
    last: PictureMeasure
    sound: SoundMeasure


@dataclass(frozen=True)
class Sync:
    """How seen contacts and heard onsets fit. `errors` are heard minus seen in seconds, for pairs in order."""

    seen: int
    heard: int
    errors: tuple[float, ...]

    @property
    def same_count(self) -> bool:
        return self.seen == self.heard > 0

    def all_within(self, seconds: float) -> bool:
        """As many heard as seen, at least one, and each pair in order within `seconds`."""
        return self.same_count and all(abs(error) <= seconds for error in self.errors)

    def first_within(self, seconds: float) -> bool:
        return bool(self.errors) and abs(self.errors[0]) <= seconds

    def share_within(self, seconds: float) -> float:
        """The share of all contacts, seen or heard, that have their partner in order within `seconds`."""
        return sum(abs(error) <= seconds for error in self.errors) / max(self.seen, self.heard, 1)


def measure_clip(frames: np.ndarray, audio: np.ndarray, fps: float = FPS, rate: int = 48_000) -> ClipMeasure:
    """Measure uint8 `frames` (frames, height, width, 3) and `audio` (channels, samples)."""
    picture, last = measure_picture(frames, fps), measure_picture(last_third(frames), fps)
    return ClipMeasure(picture, last, measure_sound(audio, rate))


def last_third(frames: np.ndarray) -> np.ndarray:
    """The last of `frames` (frames, ...), two at least: until there a first frame that was given has to carry on."""
    return frames[-max(int(LAST_SHARE * len(frames)), 2) :]


def sync(seen: tuple[float, ...], heard: tuple[float, ...]) -> Sync:
    """Pair seen contacts and heard onsets (seconds) in order."""
    errors = tuple(sound - sight for sight, sound in zip(seen, heard, strict=False))
    return Sync(len(seen), len(heard), errors)


def measure_picture(frames: np.ndarray, fps: float = FPS) -> PictureMeasure:
    """Find the shape in uint8 `frames` (frames, height, width, 3), name it and time its contacts with the floor."""
    coverage, colour = _segment(frames)
    height = frames.shape[1]
    areas = coverage.sum(axis=(1, 2)) / height**2
    visible = areas > LEAST_AREA
    if colour is None or visible.sum() < len(frames) / 2:
        return PictureMeasure(None, None, None, np.full((len(frames), 2), np.nan), 0.0, (), 0.0)
    track = middles(coverage)
    track[~visible] = np.nan
    shape, likeness, radius = name_shape(coverage, track, visible)
    x = float(np.nanmedian(track[:, 0]))
    column = "left" if x < SIDES[0] else "right" if x > SIDES[1] else "centre"
    below = lower_edges(coverage) / height - track[:, 1]
    contacts = find_contacts(track[:, 1], float(np.nanmedian(below)), fps)
    return PictureMeasure(shape, name_colour(colour), column, track, radius, contacts, likeness)


def middles(coverage: np.ndarray) -> np.ndarray:
    """Centres of mass (frames, 2) of `coverage` (frames, height, width), as fractions of the width and the height."""
    mass = np.maximum(coverage.sum(axis=(1, 2)), 1e-6)
    height, width = coverage.shape[1:]
    x = coverage.sum(axis=1) @ (np.arange(width) + 0.5) / mass / width
    y = coverage.sum(axis=2) @ (np.arange(height) + 0.5) / mass / height
    return np.stack([x, y], axis=1)


def _segment(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """How much of each pixel the shape covers (frames, height, width), and its colour (3,), None without a shape."""
    pixels = frames.astype(np.float32)
    middle = frames.shape[2] // 2
    row_colours = np.partition(frames, middle, axis=2)[:, :, middle : middle + 1]
    distance = np.sqrt(np.square(pixels - row_colours).sum(axis=-1))
    # The shadow lies below the floor line, where the shape never is.
    distance[:, int(FLOOR * frames.shape[1]) + 2 :] = 0
    few = max(int(LEAST_AREA * frames.shape[1] ** 2 / 2), 1)
    strongest = np.partition(distance.reshape(len(frames), -1), -few, axis=1)[:, -few]
    contrast = float(np.median(strongest))
    if contrast < LEAST_CONTRAST:
        return np.zeros_like(distance), None
    # Half covered is half of the contrast; the ramp is steep because shading alone varies the contrast by a fifth.
    contrast = float(np.median(distance[distance > contrast / 2]))
    coverage = np.clip((distance / contrast - 0.5) * 1.6 + 0.5, 0, 1)
    for number, frame in enumerate(coverage):
        coverage[number] = _largest_piece(frame)
    core = coverage > 0.9
    if not core.any():
        return coverage, None
    return coverage, np.median(pixels[core], axis=0)


def _largest_piece(coverage: np.ndarray) -> np.ndarray:
    """`coverage` of the largest connected piece and its soft edge; the rest is decoder noise."""
    labels, count = ndimage.label(coverage > 0.4)
    if count == 0:
        return np.zeros_like(coverage)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.where(ndimage.binary_dilation(labels == sizes.argmax(), iterations=2), coverage, 0)


def lower_edges(coverage: np.ndarray) -> np.ndarray:
    """The row (with fraction) down to which each frame is half covered somewhere; NaN without one."""
    deepest = coverage.max(axis=2)
    height = deepest.shape[1]
    last = height - 1 - np.argmax(deepest[:, ::-1] >= 0.5, axis=1)
    here = deepest[np.arange(len(deepest)), last]
    following = deepest[np.arange(len(deepest)), np.minimum(last + 1, height - 1)]
    share = np.clip((here - 0.5) / np.maximum(here - following, 1e-3), 0, 1)
    return np.where(deepest.max(axis=1) >= 0.5, last + 0.5 + share, np.nan)


def name_colour(colour: np.ndarray) -> str:
    """The name of the nearest reference colour in CIELAB, lightness counting half."""
    names = list(COLOURS)
    references = _to_lab(np.array([COLOURS[name] for name in names], dtype=np.float64) * 0.97)
    difference = (references - _to_lab(colour.astype(np.float64))) * (0.5, 1, 1)
    return names[int(np.argmin(np.linalg.norm(difference, axis=-1)))]


def _to_lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB 0..255 to CIELAB (D65)."""
    linear = np.where(rgb / 255 > 0.04045, ((rgb / 255 + 0.055) / 1.055) ** 2.4, rgb / 255 / 12.92)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ matrix.T / (0.9505, 1.0, 1.089)
    cubic = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(cubic, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def name_shape(coverage: np.ndarray, track: np.ndarray, visible: np.ndarray) -> tuple[str | None, float, float]:
    """The template that overlaps most with the mean of the stillest frames, that overlap (IoU), and the radius."""
    speed = np.abs(np.gradient(track[:, 1]))
    speed[np.isnan(speed) | ~visible] = np.inf
    still = np.argsort(speed, kind="stable")[: max(min(6, int((speed < STILL).sum())), 3)]
    height, width = coverage.shape[1:]
    outline = np.mean([_normalised(coverage[i], *(track[i] * (width, height))) for i in still], axis=0)
    best, most, likeness = SHAPES[0], -1.0, 0.0
    for shape in SHAPES:
        for rounding, cost in ROUNDINGS.items():
            template = _template(shape, rounding)[0]
            overlap = float(np.minimum(outline, template).sum() / np.maximum(outline, template).sum())
            if overlap - cost > most:
                best, most, likeness = shape, overlap - cost, overlap
    radius = float(np.sqrt(np.median(coverage[still].sum(axis=(1, 2))) / _template(best, 0.0)[1]) / height)
    return (best if likeness >= LEAST_LIKENESS else None), likeness, radius


def _normalised(frame: np.ndarray, x: float, y: float) -> np.ndarray:
    """`frame` around (x, y) at such a scale that what it covers has the same area for every size of shape."""
    reach = 1.15 * np.sqrt(frame.sum())
    steps = np.linspace(-reach, reach, OUTLINE_PIXELS) - 0.5
    return ndimage.map_coordinates(frame, np.meshgrid(y + steps, x + steps, indexing="ij"), order=1)


@lru_cache(maxsize=32)
def _template(shape: str, rounding: float) -> tuple[np.ndarray, float]:
    """The normalised outline of a shape whose corners are rounded by a blur (in radii), and its area at radius 1."""
    size, radius = 256, 90.0
    coverage = shape_coverage(shape, radius, size / 2, size - 30.0, size, size)
    if rounding:
        coverage = np.clip((ndimage.gaussian_filter(coverage, rounding * radius) - 0.5) * 20 + 0.5, 0, 1)
    mass = coverage.sum()
    x = coverage.sum(axis=0) @ (np.arange(size) + 0.5) / mass
    y = coverage.sum(axis=1) @ (np.arange(size) + 0.5) / mass
    return _normalised(coverage, x, y), float(mass / radius**2)


def find_contacts(centre: np.ndarray, below: float, fps: float) -> tuple[float, ...]:
    """When a track comes down on the floor: `centre` (frames,) counts down, its lower edge is `below` further down.

    A contact is the end of a fall of at least LEAST_MOVE whose lower edge ends within NEAR_FLOOR of the floor; its time
    within the frame follows from carrying the fall on to the lowest level of the track.
    """
    seen = np.flatnonzero(~np.isnan(centre))
    if len(seen) < 4:
        return ()
    centre = np.interp(np.arange(len(centre)), seen, centre[seen])
    lowest = np.percentile(centre, 97)
    above = np.median(centre[centre > lowest - LEAST_MOVE / 2]) - centre
    times = []
    for start, end in _falls(above):
        if abs(centre[end] + below - FLOOR) > NEAR_FLOOR:
            continue
        low = max(above[end], 0.0)
        landed = start + int(np.argmax(above[start : end + 1] <= low + LEAST_MOVE / 2))
        times.append(_landing(above, start, landed, fps) / fps)
    return tuple(times)


def _falls(above: np.ndarray) -> list[tuple[int, int]]:
    """(highest, lowest) frame of each fall that is no jitter."""
    falls = []
    high = low = 0
    falling = False
    for number, level in enumerate(above):
        if falling:
            if level < above[low]:
                low = number
            elif level > above[low] + LEAST_MOVE:
                falls.append((high, low))
                falling, high = False, number
        elif level >= above[high]:
            high = number
        elif level < above[high] - LEAST_MOVE:
            falling, low = True, number
    return [*falls, (high, low)] if falling else falls


def _landing(above: np.ndarray, start: int, landed: int, fps: float) -> float:
    """The frame, with its fraction, at which the fall that `landed` ends reaches level 0.

    The frame `landed` may already be after the contact, on the way up: the fall is carried on from the frames before.
    """
    before = landed - 1
    points = np.arange(max(start, before - 4), before + 1)
    if len(points) < 2:
        return float(landed)
    # above[before + t] = level + speed * t + pull * t**2; too few points for a pull of their own get the world's.
    times, levels = points - before, above[points]
    pull = np.polyfit(times, levels, 2)[0] if len(points) >= 4 else -GRAVITY / 2 / fps**2
    speed, level = np.polyfit(times, levels - pull * times**2, 1)
    level, speed, pull = max(level, 0.0), -speed, max(-pull, 0.0)
    if speed <= 0:
        return float(landed)
    step = 2 * level / (speed + (speed**2 + 4 * pull * level) ** 0.5)
    reach = 1.0 if above[landed] <= LEAST_MOVE / 4 else 2.0
    return before + min(step, reach)
