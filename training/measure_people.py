"""Who is in a picture and how open the mouths are, from pixels alone.

Every pixel of some frames is given the name of the nearest colour of the world; a face is a connected piece of skin.
The mouth is what is darker than the skin in the face's lower half: no scene behind the picture is asked.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

from training.backdrops import WALLS
from training.people import EYE, HAIR, INSIDE_OF_MOUTH, SKINS
from training.world import COLOURS

# Frames that are looked at to find faces; between them the boxes are interpolated.
KEY_FRAMES = 7
# The least area of a face, as a fraction of the frame's shorter side squared. In the world's own clips the least is
# 0.029 and nothing else is named skin; in those that are made a forehead may be blurred into the hair.
LEAST_FACE = 0.01
# And of the largest one's.
LEAST_BESIDE_LARGEST = 0.4
# Of the area in which a look is sought, the least part that is of its colour. In the world's own clips the true one has
# 0.28 and more, strays of others (an eye, an edge) up to 0.05.
LEAST_LOOK = 0.1
# The part of a face's box (from the hair line to the chin) in which the mouth moves, as (from, to) fractions.
MOUTH_ROWS = (0.42, 0.96)
MOUTH_COLUMNS = (0.14, 0.86)
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class PersonMeasure:
    """A face: `box` (frames, 4) in pixels (left, top, right, bottom of the visible skin), its looks ("" for what is not
    to be seen), and `opening` (frames,), how much of the lower face is mouth, in no particular unit."""

    box: np.ndarray
    skin: str
    hair: str
    clothes: str
    opening: np.ndarray

    @property
    def x(self) -> float:
        """The middle of the face in pixels, over the clip."""
        return float(np.median((self.box[:, 0] + self.box[:, 2]) / 2))


def measure_people(frames: np.ndarray) -> list[PersonMeasure]:
    """The people of uint8 `frames` (frames, height, width, 3), from left to right."""
    keys = np.unique(np.linspace(0, len(frames) - 1, KEY_FRAMES).round().astype(int))
    named = [_name_pixels(frames[key]) for key in keys]
    faces = [_faces(names) for names in named]
    counts = np.array([len(found) for found in faces])
    count = int(np.bincount(counts).argmax())
    use = np.flatnonzero(counts == count)
    people = []
    for number in range(count):
        at_keys = np.array([faces[index][number] for index in use], dtype=np.float64)
        box = np.stack([np.interp(np.arange(len(frames)), keys[use], side) for side in at_keys.T], axis=1)
        skin, hair, clothes = _looks([named[index] for index in use], at_keys)
        people.append(PersonMeasure(box, skin, hair, clothes, _opening(frames, box)))
    return people


def correlation(measured: np.ndarray, true: np.ndarray) -> float:
    """Pearson's; 0 where either does not vary."""
    if measured.std() < 1e-9 or true.std() < 1e-9:
        return 0.0
    return float(np.corrcoef(measured, true)[0, 1])


@lru_cache(maxsize=1)
def _palette() -> tuple[np.ndarray, tuple[str, ...]]:
    """Colours (n, 3) and their names, "skin light", "hair black", "clothes red" or "" for anything else."""
    entries: list[tuple[str, np.ndarray]] = []

    def add(name: str, colour: tuple[int, int, int], *shades: float) -> None:
        entries.extend((name, np.array(colour, np.float32) * shade) for shade in shades)

    for name, colour in SKINS.items():
        add(f"skin {name}", colour, 1.0)
        add("", colour, 0.72, 0.82)
    for name, colour in HAIR.items():
        add(f"hair {name}", colour, 0.86, 1.0)
    for name, colour in COLOURS.items():
        add(f"clothes {name}", colour, 1.0)
    for colour in WALLS.values():
        add("", colour, 0.62, 0.78, 0.9, 1.02, 1.14)
    for colour in (
        INSIDE_OF_MOUTH,
        EYE,
        (250, 238, 190),
        (222, 200, 150),
        (228, 234, 222),
        (214, 142, 44),
        (104, 76, 52),
    ):
        add("", colour, 1.0)
    return np.stack([colour for _, colour in entries]), tuple(name for name, _ in entries)


def _name_pixels(frame: np.ndarray) -> np.ndarray:
    """For each pixel the number of the nearest colour of the palette, (height, width)."""
    colours, _ = _palette()
    pixels = frame.reshape(-1, 3).astype(np.float32)
    distance = (colours**2).sum(1) - 2 * pixels @ colours.T
    return distance.argmin(axis=1).reshape(frame.shape[:2])


def _is(kind: str) -> np.ndarray:
    return np.array([name.startswith(kind) for name in _palette()[1]])


def _faces(names: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Boxes of the faces, from left to right."""
    skin = ndimage.binary_opening(_is("skin")[names], iterations=1)
    # An open mouth cuts a small face in two: eyes and mouth are filled.
    skin = ndimage.binary_fill_holes(ndimage.binary_closing(skin, iterations=3))
    labels, _ = ndimage.label(skin)
    areas = np.bincount(labels.ravel())[1:]
    least = max(LEAST_FACE * min(names.shape) ** 2, LEAST_BESIDE_LARGEST * areas.max(initial=0))
    found = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        if areas[number - 1] >= least:
            found.append((columns.start, rows.start, columns.stop, rows.stop))
    return sorted(found)


def _looks(named: list[np.ndarray], boxes: np.ndarray) -> tuple[str, str, str]:
    """The commonest skin in the face, hair above and beside it, and clothes under it."""
    palette = _palette()[1]
    found: dict[str, Counter[str]] = {kind: Counter() for kind in ("skin", "hair", "clothes")}
    for names, (left, top, right, bottom) in zip(named, boxes.astype(int), strict=True):
        wide, tall = right - left, bottom - top
        areas = {
            "skin": names[top:bottom, left:right],
            "hair": names[max(top - tall // 2, 0) : bottom - tall // 2, max(left - wide // 5, 0) : right + wide // 5],
            "clothes": names[bottom + tall // 4 :, max(left - wide // 4, 0) : right + wide // 4],
        }
        for kind, area in areas.items():
            for name, count in zip(palette, np.bincount(area.ravel(), minlength=len(palette)), strict=True):
                found[kind][name] += int(count)
    skin, hair, clothes = (_commonest(kind, counts) for kind, counts in found.items())
    return skin, hair, clothes


def _commonest(kind: str, counts: Counter[str]) -> str:
    """The commonest of a kind of looks among the pixels that were counted; "" for less than LEAST_LOOK of them."""
    of_kind = {name: count for name, count in counts.items() if name.startswith(kind)}
    name = max(of_kind, key=lambda name: of_kind[name])
    return name.split()[1] if of_kind[name] > LEAST_LOOK * counts.total() else ""


def _opening(frames: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """How much of the mouth's part of the face is dark, (frames,), of its area."""
    found = np.zeros(len(frames))
    for number, (frame, (left, top, right, bottom)) in enumerate(zip(frames, boxes, strict=True)):
        wide, tall = right - left, bottom - top
        rows = slice(int(top + MOUTH_ROWS[0] * tall), int(np.ceil(top + MOUTH_ROWS[1] * tall)))
        columns = slice(int(left + MOUTH_COLUMNS[0] * wide), int(np.ceil(left + MOUTH_COLUMNS[1] * wide)))
        light = frame[rows, columns].astype(np.float32) @ LUMA
        if light.size:
            skin = np.percentile(light, 85)
            dark = float(np.array(INSIDE_OF_MOUTH, np.float32) @ LUMA)
            found[number] = np.clip((skin - light) / max(skin - dark, 20.0), 0, 1).mean()
    return found
