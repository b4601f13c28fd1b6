"""From measured clips of rolling balls to the numbers of a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from training.measure import Sync, sync
from training.measure_roll import RollClipMeasure
from training.measure_sound import SIDE_DECIBELS
from training.rolling import Roll, places
from training.scores import CLOSE_SYNC_SECONDS, shares, with_others
from training.world import CLIP_SECONDS

# A prompt names the moment in tenths of a second.
MOMENT_SECONDS = 0.1
# A contact this near to the middle, as a fraction of the width, sounds from neither side.
MIDDLE = 0.035


@dataclass(frozen=True)
class Outcome:
    """A roll that was asked for, what the clip made of it measures, and how long the clip took to make in seconds."""

    roll: Roll
    clip: RollClipMeasure
    seconds: float

    @property
    def sync(self) -> Sync:
        return sync(self.clip.picture.contacts, self.clip.sound.onsets)


def _colour(outcome: Outcome) -> bool:
    return outcome.clip.picture.colour == outcome.roll.colour


def _shape(outcome: Outcome) -> bool:
    return outcome.clip.picture.shape == outcome.roll.shape


def _pair(outcome: Outcome) -> bool:
    return _colour(outcome) and _shape(outcome)


def _ball_colour(outcome: Outcome) -> bool:
    return outcome.clip.picture.ball_colour == outcome.roll.ball_colour


def _side(outcome: Outcome) -> bool:
    return outcome.clip.picture.side == outcome.roll.side


def _carried(outcome: Outcome) -> bool:
    """In the last third both have the asked colours; what was hit may have rolled out of the picture by then."""
    roll, seen = outcome.roll, outcome.clip.last_colours
    both = (roll.ball_colour, roll.colour) if roll.side == "left" else (roll.colour, roll.ball_colour)
    gone = abs(float(places(roll, np.array(CLIP_SECONDS))[1])) > 0.5
    return seen == both or (gone and seen == (roll.ball_colour,))


def _moment(outcome: Outcome) -> bool:
    """The contact is seen when it was asked for."""
    contact = outcome.clip.picture.contact
    return contact is not None and abs(contact - outcome.roll.contact) <= MOMENT_SECONDS


def _in_sync(outcome: Outcome) -> bool:
    """One contact is seen and one impact heard, at the same time."""
    return outcome.sync.all_within(CLOSE_SYNC_SECONDS)


def _first_in_sync(outcome: Outcome) -> bool:
    return outcome.sync.first_within(CLOSE_SYNC_SECONDS)


def _pan(outcome: Outcome) -> bool:
    """The impact is louder on the side on which it is seen; a prompt does not say where that is."""
    x, sound = outcome.clip.picture.x, outcome.clip.sound
    if x is None or not sound.onsets:
        return False
    if abs(x - 0.5) < MIDDLE:
        return abs(sound.balance) <= SIDE_DECIBELS
    return (sound.balance > 0) == (x < 0.5)


SHARES: dict[str, Callable[[Outcome], bool | float]] = {
    "colour": _colour,
    "shape": _shape,
    "colour&shape": _pair,
    "ball colour": _ball_colour,
    "side": _side,
    "carried": _carried,
    "moment": _moment,
    "sync 60ms": _in_sync,
    "first 60ms": _first_in_sync,
    "pan sign": _pan,
}


def score(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Shares (0 to 1) of SHARES, the share of clips with a contact and its spread, median errors, seconds a clip.

    moment error: |seen - asked|; sync error: |heard - seen|, both in seconds and of the first contact.
    """
    result = shares(outcomes, SHARES)
    pairs = [(outcome.clip.picture.contact, outcome.roll.contact) for outcome in outcomes]
    seen = [(contact, asked) for contact, asked in pairs if contact is not None]
    errors = [abs(error) for outcome in outcomes for error in outcome.sync.errors[:1]]
    result["contact"] = len(seen) / len(outcomes)
    result["contact std"] = float(np.std([contact for contact, _ in seen])) if seen else 0.0
    result["moment error"] = float(np.median([abs(contact - asked) for contact, asked in seen])) if seen else np.nan
    result["sync error"] = float(np.median(errors)) if errors else np.nan
    result["seconds"] = float(np.mean([outcome.seconds for outcome in outcomes]))
    return result


def shuffled(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Every picture with the sound of each of the other clips (of up to 8 of them). Takes two clips or more."""
    return with_others(outcomes, lambda one, other: replace(one, clip=replace(one.clip, sound=other.clip.sound)))
