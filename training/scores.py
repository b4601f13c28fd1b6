"""From measured clips to the numbers of a report: what share of a set of clips did as its prompts say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from training.measure import ClipMeasure, sync
from training.world import DROPS, FLOOR, GRAVITY, RELEASES, Scene, contacts

T = TypeVar("T")

SYNC_SECONDS, CLOSE_SYNC_SECONDS = 0.08, 0.06
# How far a released moment may be outside of what its word means, and a carried-on shape from where it was given.
RELEASE_TOLERANCE = 0.12
PLACE_TOLERANCE = 0.05
SIZE_BORDER = 0.127


@dataclass(frozen=True)
class Outcome:
    """A scene that was asked for, what the clip made of it measures, and how long the clip took to make in seconds."""

    scene: Scene
    clip: ClipMeasure
    seconds: float


def _shape(outcome: Outcome) -> bool:
    return outcome.clip.picture.shape == outcome.scene.shape


def _colour(outcome: Outcome) -> bool:
    return outcome.clip.picture.colour == outcome.scene.colour


def _pair(outcome: Outcome) -> bool:
    return _colour(outcome) and _shape(outcome)


def _side(outcome: Outcome) -> bool:
    return outcome.clip.picture.column == outcome.scene.column


def _size(outcome: Outcome) -> bool:
    radius = outcome.clip.picture.radius
    return (
        outcome.clip.picture.shape is not None and ("large" if radius > SIZE_BORDER else "small") == outcome.scene.size
    )


def _release(outcome: Outcome) -> bool:
    """The first contact comes when a fall from the asked height, released when asked, would bring it."""
    seen = outcome.clip.picture.contacts
    if not seen:
        return False
    released = seen[0] - (2 * DROPS[outcome.scene.drop] / GRAVITY) ** 0.5
    limits = [0.0, *RELEASES.values()]
    word = list(RELEASES).index(outcome.scene.release)
    return limits[word] - RELEASE_TOLERANCE <= released <= limits[word + 1] + RELEASE_TOLERANCE


def _place(outcome: Outcome) -> bool:
    """The shape starts where the scene's first frame has it."""
    x, y = outcome.clip.picture.track[0]
    scene = outcome.scene
    # The centre of mass of the shapes lies between 0.65 and 1 radius above their lower edge.
    above = FLOOR - scene.fall - y
    return abs(x - scene.x) < PLACE_TOLERANCE and -PLACE_TOLERANCE < above - 0.8 * scene.radius < PLACE_TOLERANCE


def _carried(outcome: Outcome) -> bool:
    """In the last third colour and x are those of the scene whose first frame was given."""
    last, scene = outcome.clip.last, outcome.scene
    return last.colour == scene.colour and bool(abs(np.nanmedian(last.track[:, 0]) - scene.x) < PLACE_TOLERANCE)


def _carried_shape(outcome: Outcome) -> bool:
    return _carried(outcome) and outcome.clip.last.shape == outcome.scene.shape


def _in_sync(outcome: Outcome) -> bool:
    return sync(outcome.clip.picture.contacts, outcome.clip.sound.onsets).all_within(SYNC_SECONDS)


def _first_in_sync(outcome: Outcome) -> bool:
    return sync(outcome.clip.picture.contacts, outcome.clip.sound.onsets).first_within(SYNC_SECONDS)


def _in_close_sync(outcome: Outcome) -> bool:
    return sync(outcome.clip.picture.contacts, outcome.clip.sound.onsets).all_within(CLOSE_SYNC_SECONDS)


def _first_in_close_sync(outcome: Outcome) -> bool:
    return sync(outcome.clip.picture.contacts, outcome.clip.sound.onsets).first_within(CLOSE_SYNC_SECONDS)


def _partnered(outcome: Outcome) -> float:
    return sync(outcome.clip.picture.contacts, outcome.clip.sound.onsets).share_within(SYNC_SECONDS)


def _same_count(outcome: Outcome) -> bool:
    return sync(outcome.clip.picture.contacts, outcome.clip.sound.onsets).same_count


def _true_count(outcome: Outcome) -> bool:
    return len(outcome.clip.picture.contacts) == len(contacts(outcome.scene))


def _pan(outcome: Outcome) -> bool:
    """The sound leans to the side that was asked for, or to none for the centre."""
    return outcome.clip.sound.column == outcome.scene.column


def _material(outcome: Outcome) -> bool:
    return outcome.clip.sound.material == outcome.scene.shape


SHARES: dict[str, Callable[[Outcome], bool | float]] = {
    "colour": _colour,
    "shape": _shape,
    "colour&shape": _pair,
    "side": _side,
    "size": _size,
    "release": _release,
    "place": _place,
    "carried": _carried,
    "carried shape": _carried_shape,
    "sync": _in_sync,
    "sync first": _first_in_sync,
    "sync 60ms": _in_close_sync,
    "first 60ms": _first_in_close_sync,
    "sync share": _partnered,
    "count equal": _same_count,
    "count true": _true_count,
    "pan": _pan,
    "material": _material,
}


def shares(outcomes: Sequence[T], rules: Mapping[str, Callable[[T], bool | float]]) -> dict[str, float]:
    """The mean of each rule over the clips; a rule is NaN of a clip that it says nothing of, which does not count.

    Raises ValueError where there are no clips.
    """
    if not outcomes:
        raise ValueError("there are no clips to score; make at least one")
    return {name: mean_known([rule(outcome) for outcome in outcomes]) for name, rule in rules.items()}


def mean_known(values: Sequence[float]) -> float:
    """The mean of the values that are not NaN; NaN where there are none."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def score(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Shares (0 to 1) of SHARES, the first contacts' spread and range, the median |heard - seen|, seconds a clip."""
    result = shares(outcomes, SHARES)
    first = [outcome.clip.picture.contacts[0] for outcome in outcomes if outcome.clip.picture.contacts]
    result["contact std"] = float(np.std(first)) if first else 0.0
    result["contact range"] = float(np.ptp(first)) if first else 0.0
    fits = [sync(outcome.clip.picture.contacts, outcome.clip.sound.onsets) for outcome in outcomes]
    errors = [abs(error) for fit in fits for error in fit.errors[:1]]
    result["sync error"] = float(np.median(errors)) if errors else float("nan")
    result["seconds"] = float(np.mean([outcome.seconds for outcome in outcomes]))
    return result


def shuffled(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Every picture with the sound of each of the other clips (of up to 8 of them). Takes two clips or more."""
    return with_others(outcomes, lambda one, other: replace(one, clip=replace(one.clip, sound=other.clip.sound)))


def with_others(outcomes: Sequence[T], exchange: Callable[[T, T], T]) -> list[T]:
    """`exchange` of every outcome with each of the others (of up to 8 of them). Takes two or more."""
    count = len(outcomes)
    if count < 2:
        raise ValueError(f"{count} clip has no other clip's sound to take; make two or more")
    return [
        exchange(outcome, outcomes[(number + shift) % count])
        for shift in range(1, min(count, 9))
        for number, outcome in enumerate(outcomes)
    ]
