"""One clip of any stage: a backdrop, a camera, a falling shape, people who speak, a size and a length.

    python -m training.shots --sheet out.png [--kind talk]

A `Shot` says everything about its clip; nothing is hidden. Stage 1's clips are shots too, drawn by `training.world`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from training import world
from training.backdrops import AMBIENCES, WALLS, draw_backdrop
from training.canvas import CAMERAS, Camera, Canvas, camera_path
from training.people import PAIR_PLACES, SINGLE_PLACES, Person, draw_person, head_box, mouth_box, sample_person
from training.rolling import Roll, draw_roll, roll_boxes, sample_roll

SIZES = {"square": (128, 128), "landscape": (224, 128), "portrait": (128, 224)}
KINDS = ("fall", "roll", "talk", "pair", "tour", "view")
RECOLOURED = ("tinted", "shaded", "faint")
# Kinds of any size and length; all others are square and of SECONDS.
OPEN_KINDS = ("tour", "view")
SECONDS = 2.0
LENGTHS = (2.0, 3.0, 4.0)  # seconds


@dataclass(frozen=True)
class Shot:
    """`scene` falls, `people` speak; `panels` are the wall's; `seed` draws the backdrop's and the ambience's chances.

    kind: "fall" (stage 1), "roll" (a ball hits a shape), "talk" (a person), "pair" (two people), "tour" (a person or a
    shape, with any camera, backdrop and size) or "view" (a backdrop alone).
    """

    kind: str
    backdrop: str
    camera: str
    width: int
    height: int
    seconds: float
    seed: int
    panels: bool = False
    scene: world.Scene | None = None
    people: tuple[Person, ...] = ()
    roll: Roll | None = None

    @property
    def num_frames(self) -> int:
        """4n+1, the nearest to the seconds."""
        return 4 * round(self.seconds * world.FPS / 4) + 1

    @property
    def camera_path(self) -> Camera:
        return camera_path(self.camera, self.num_frames, self.width / self.height)

    @property
    def ambience(self) -> str | None:
        return self.backdrop if self.backdrop in AMBIENCES else None


def shot_from_dict(values: dict[str, Any]) -> Shot:
    """The shot that `dataclasses.asdict` made `values` of, also through JSON."""
    people = tuple(Person(**{**person, "words": tuple(person["words"])}) for person in values["people"])
    scene = world.Scene(**values["scene"]) if values["scene"] else None
    roll = Roll(**values["roll"]) if values.get("roll") else None
    return Shot(**{**values, "people": people, "scene": scene, "roll": roll})


def fall(scene: world.Scene, seed: int = 0) -> Shot:
    """The shot of a falling shape, as stage 1's model makes it."""
    return Shot("fall", scene.background, "still", 128, 128, SECONDS, seed, scene=scene)


def sample_shot(
    rng: np.random.Generator, kind: str, split: str = "train", size: str | None = None, seconds: float = SECONDS
) -> Shot:
    """A shot of `kind`; its people are silent until `training.speaking.give_voices` has given them words.

    split: "train", "held_out" or "all", of colour and shape and of hair and clothes. size: a key of SIZES; None draws
    it where the kind leaves it open (OPEN_KINDS). seconds: the length, which those kinds leave open too.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(KINDS)}")
    is_open = kind in OPEN_KINDS
    if size not in ((*SIZES, None) if is_open else ("square", None)):
        raise ValueError(f"size is {size!r} for a shot of the kind {kind}; {', '.join(SIZES) if is_open else 'square'}")
    if seconds < SECONDS or (seconds > SECONDS and not is_open):
        raise ValueError(
            f"seconds is {seconds:g} for a shot of the kind {kind}; {SECONDS:g}{' or more' if is_open else ''}"
        )
    seed = int(rng.integers(2**31))
    if kind == "fall":
        return fall(world.sample_scene(rng, split), seed)
    wall = list(WALLS)[rng.integers(len(WALLS))]
    if kind == "roll":
        return Shot(kind, wall, "still", 128, 128, SECONDS, seed, roll=sample_roll(rng, split))
    if kind in ("talk", "pair"):
        people = _one(rng, split) if kind == "talk" else _two(rng, split)
        return Shot(kind, wall, "still", 128, 128, SECONDS, seed, people=people)
    camera = CAMERAS[rng.integers(len(CAMERAS))]
    width, height = SIZES[size or list(SIZES)[rng.integers(len(SIZES))]]
    outdoors = kind == "view" or rng.random() < 0.4
    backdrop = AMBIENCES[rng.integers(len(AMBIENCES))] if outdoors else wall
    shot = Shot(kind, backdrop, camera, width, height, seconds, seed, panels=True)
    if kind == "view":
        return shot
    if rng.random() < 0.3 and not outdoors:
        return replace(shot, scene=world.sample_scene(rng, split))
    two = rng.random() < 0.3 and camera == "still"
    people = _two(rng, split) if two else _one(rng, split, camera == "still")
    # People are as large beside the shorter side of every frame as they are in a square one.
    narrow = min(width / height, 1.0)
    return replace(shot, people=tuple(replace(person, radius=person.radius * narrow) for person in people))


def recolour(shot: Shot, rng: np.random.Generator, how: str) -> Shot:
    """The same with its falling or resting shape recoloured (`how`, of RECOLOURED): "tinted", its colour a little
    towards another, "shaded", in one of `world.SHADES`, or "faint", in one of `world.FAINT`. So is then the ball that
    rolls: of a colour that only balls had, whatever rests would be taken for one.

    Among colours that stand for themselves, form is learnt apart from them: see docs/nano-stage2.md.
    """
    body = shot.scene or shot.roll
    if body is None:
        return shot
    shades = {"shaded": tuple(world.SHADES), "faint": world.FAINT}.get(how)
    drawn = world.sample_shade(rng, shades) if shades else world.sample_tint(rng, body.colour)
    changed = replace(body, **drawn)
    if not isinstance(changed, Roll):
        return replace(shot, scene=changed)
    if shades:
        others = [shade for shade in shades if shade != changed.colour]
        changed = replace(changed, ball_colour=others[rng.integers(len(others))])
    return replace(shot, roll=changed)


def _one(rng: np.random.Generator, split: str, anywhere: bool = True) -> tuple[Person, ...]:
    """anywhere: else in the centre, where no camera loses sight of the face."""
    columns = list(SINGLE_PLACES) if anywhere else ["centre"]
    column = columns[rng.integers(len(columns))]
    x = SINGLE_PLACES[column] + rng.uniform(-0.02, 0.02)
    return (sample_person(rng, column, float(x), float(rng.uniform(0.20, 0.235)), split),)


def _two(rng: np.random.Generator, split: str) -> tuple[Person, ...]:
    """Left and right; of different hair or clothes, so that a caption can tell them apart."""
    radius = float(rng.uniform(0.145, 0.165))
    while True:
        people = tuple(
            sample_person(rng, column, float(x + rng.uniform(-0.015, 0.015)), radius, split)
            for column, x in PAIR_PLACES.items()
        )
        if people[0].clothes != people[1].clothes:
            return people


def render_frames(shot: Shot, openings: Sequence[np.ndarray] = ()) -> np.ndarray:
    """uint8 (frames, height, width, 3); `openings` holds for each person how open the mouth is, (frames,) in [0, 1]."""
    if shot.kind == "fall" and shot.scene is not None:
        return world.render_frames(shot.scene, shot.width, shot.height, shot.num_frames)
    if len(openings) != len(shot.people):
        raise ValueError(f"{len(openings)} openings for {len(shot.people)} people; give one for each person")
    canvas = canvas_of(shot)
    draw_backdrop(canvas, shot.backdrop, shot.panels, shot.seed)
    if shot.scene is not None:
        _draw_scene(canvas, shot.scene)
    if shot.roll is not None:
        draw_roll(canvas, shot.roll, np.arange(shot.num_frames) / world.FPS)
    for person, opening in zip(shot.people, openings, strict=True):
        draw_person(canvas, person, opening)
    return canvas.picture()


def points_of_interest(shot: Shot) -> list[np.ndarray]:
    """The boxes that matter most in a clip, pixels (frames, 4) each: mouths, or the shape; none of a view."""
    canvas = canvas_of(shot)
    boxes = [mouth_box(canvas, person) for person in shot.people]
    if shot.scene is not None:
        boxes.append(_scene_box(canvas, shot.scene))
    if shot.roll is not None:
        boxes += roll_boxes(canvas, shot.roll, np.arange(shot.num_frames) / world.FPS)
    return boxes


def heads(shot: Shot) -> list[np.ndarray]:
    """The box of each person's head, pixels (frames, 4)."""
    canvas = canvas_of(shot)
    return [head_box(canvas, person) for person in shot.people]


def canvas_of(shot: Shot) -> Canvas:
    """An empty canvas of the shot's size and length, through its camera."""
    return Canvas(shot.width, shot.height, shot.num_frames, shot.camera_path)


def _place(canvas: Canvas, scene: world.Scene) -> tuple[float, np.ndarray]:
    """World x of the shape and world y of its lower edge in each frame, (frames, 1, 1)."""
    above = world.heights(scene, np.arange(canvas.frames) / world.FPS).astype(np.float32)
    return (scene.x - 0.5) * canvas.width / canvas.height, (world.FLOOR - above)[:, None, None]


def _draw_scene(canvas: Canvas, scene: world.Scene) -> None:
    x, bottom = _place(canvas, scene)
    radius = scene.radius
    nearness = np.exp((bottom - world.FLOOR) / 0.12)
    wide = radius * (1.5 - 0.6 * nearness)

    def shadow(across: np.ndarray, down: np.ndarray) -> np.ndarray:
        return np.hypot((across - x) / wide, (down - world.FLOOR - 0.02) / 0.035) * 0.03 - 0.03

    reach = 1.6 * radius
    canvas.fill(shadow, (20, 20, 24), (x - reach, world.FLOOR, x + reach, 1.0), 0.15 + 0.3 * nearness)

    def distance(across: np.ndarray, down: np.ndarray) -> np.ndarray:
        return radius * world.signed_distance(scene.shape, (across - x) / radius, (bottom - down) / radius)

    reach = 1.3 * radius
    canvas.fill(distance, scene.rgb, (x - reach, -0.1, x + reach, world.FLOOR + 0.02))


def _scene_box(canvas: Canvas, scene: world.Scene) -> np.ndarray:
    x, bottom = _place(canvas, scene)
    limits = np.array([canvas.width, canvas.height, canvas.width, canvas.height])
    scale = np.broadcast_to(canvas.scale[:, 0, 0], canvas.frames)
    camera_x = np.broadcast_to(canvas.camera_x[:, 0, 0], canvas.frames)
    centre = (x - camera_x) * scale + canvas.width / 2
    lower = (bottom[:, 0, 0] - 0.5) * scale + canvas.height / 2
    r = scene.radius * scale
    box = np.stack([centre - 1.25 * r, lower - 2.2 * r, centre + 1.25 * r, lower + 0.15 * r], axis=1)
    return np.clip(np.rint(box), 0, limits).astype(np.int64)


def speakers(shot: Shot) -> list[int]:
    """The numbers of the people who speak, in the order in which they do."""
    spoken = [number for number, person in enumerate(shot.people) if person.words]
    return sorted(spoken, key=lambda number: shot.people[number].start)


def babble(rng: np.random.Generator, frames: int) -> np.ndarray:
    """A made-up opening of a mouth, (frames,) in [0, 1]: a few syllables between silences, as a voice would have it."""
    opening = np.zeros(frames, np.float32)
    moment = rng.uniform(-0.3, 0.8)
    times = np.arange(frames) / world.FPS
    while moment < frames / world.FPS:
        half, peak = rng.uniform(0.05, 0.13), rng.uniform(0.35, 1.0)
        opening = np.maximum(opening, peak * np.exp(-(((times - moment) / half) ** 2)))
        moment += rng.uniform(0.12, 0.32) + (rng.uniform(0.2, 0.9) if rng.random() < 0.15 else 0.0)
    return np.clip(opening, 0, 1).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw a contact sheet of shots.")
    parser.add_argument("--sheet", type=Path, required=True, help="PNG to write")
    parser.add_argument("--kind", choices=KINDS, nargs="+", default=list(KINDS))
    parser.add_argument("--clips", type=int, default=3, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    from training.sheet import clip_row, stack_rows

    rng = np.random.default_rng(arguments.seed)
    rows = []
    for kind in arguments.kind:
        for _ in range(arguments.clips):
            shot = sample_shot(rng, kind, "all")
            frames = render_frames(shot, [babble(rng, shot.num_frames) for _ in shot.people])
            looks = ", ".join(f"{p.skin} {p.hair} {p.hair_style} {p.clothes} {p.column}" for p in shot.people)
            label = f"{kind}: {shot.backdrop}, {shot.camera}, {shot.width}x{shot.height}; {looks}"
            rows.append(clip_row(frames, None, 0, label, 9))
    stack_rows(rows).save(arguments.sheet)


if __name__ == "__main__":
    main()
