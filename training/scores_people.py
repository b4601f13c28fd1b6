"""From measured clips of people to the numbers of a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from training.likeness import Likeness, likeness_shares
from training.measure import last_third
from training.measure_camera import measure_camera
from training.measure_lips import SpeechMeasure, measure_lips
from training.measure_people import PersonMeasure, measure_people
from training.recognise import word_error_rate
from training.scores import shares
from training.shots import Shot, speakers

LAG_SECONDS = 0.06
LEAST_CORRELATION = 0.6
IN_TIME_CORRELATION = 0.5
PLACE_TOLERANCE = 0.05
SIDES = (0.41, 0.59)


@dataclass(frozen=True)
class PeopleMeasure:
    """A clip's people, over all of it and in its last third, its camera, its speech, and its width in pixels."""

    people: tuple[PersonMeasure, ...]
    last: tuple[PersonMeasure, ...]
    camera: str
    speech: SpeechMeasure
    width: int


@dataclass(frozen=True)
class Outcome:
    """A shot that was asked for, what the clip made of it measures, the words heard, seconds it took to make.

    heard: in the speakers' turns, one after the other, and heard_whole: in all of the clip at once; None where no
    recogniser listened. voices: what each encoder that listened says of each speaker.
    """

    shot: Shot
    clip: PeopleMeasure
    seconds: float
    heard: tuple[str, ...] | None = None
    heard_whole: tuple[str, ...] | None = None
    voices: Mapping[str, Sequence[Likeness]] = field(default_factory=dict)


def measure_people_clip(frames: np.ndarray, audio: np.ndarray, fps: float, rate: int) -> PeopleMeasure:
    """Measure uint8 `frames` (frames, height, width, 3) and `audio` (channels, samples)."""
    people, last = tuple(measure_people(frames)), tuple(measure_people(last_third(frames)))
    return PeopleMeasure(people, last, measure_camera(frames), measure_lips(people, audio, fps, rate), frames.shape[2])


def _present(outcome: Outcome) -> bool:
    return len(outcome.clip.people) == len(outcome.shot.people)


def _look(fact: str) -> Callable[[Outcome], float]:
    """The share of the asked people that have the asked `fact`."""

    def rule(outcome: Outcome) -> float:
        asked = outcome.shot.people
        pairs = zip(asked, outcome.clip.people, strict=False)
        return sum(getattr(person, fact) == getattr(seen, fact) for person, seen in pairs) / len(asked)

    return rule


def _side(outcome: Outcome) -> bool | float:
    """One person stands in the asked column; two stand left and right of the middle. NaN where the camera moves."""
    if _moves(outcome):
        return np.nan
    places = [person.x / outcome.clip.width for person in outcome.clip.people]
    if not _present(outcome):
        return False
    if len(places) > 1:
        return places[0] < 0.5 < places[1]
    column = "left" if places[0] < SIDES[0] else "right" if places[0] > SIDES[1] else "centre"
    return column == outcome.shot.people[0].column


def _moves(outcome: Outcome) -> bool:
    """Whether the camera is asked to move."""
    return outcome.shot.camera != "still"


def _camera(moves: bool) -> Callable[[Outcome], bool | float]:
    """The camera does as asked, of those that move or of those that do not; NaN outside of tours, where none moves."""

    def rule(outcome: Outcome) -> bool | float:
        if outcome.shot.kind != "tour" or _moves(outcome) != moves:
            return np.nan
        return outcome.clip.camera == outcome.shot.camera

    return rule


def _correlation(outcome: Outcome) -> float:
    return outcome.clip.speech.correlation


def _follows(outcome: Outcome) -> bool:
    return outcome.clip.speech.correlation >= LEAST_CORRELATION


def _in_time(outcome: Outcome) -> bool:
    """The mouths fit the voice, and fit best within LAG_SECONDS of where they are."""
    return outcome.clip.speech.correlation >= IN_TIME_CORRELATION and abs(outcome.clip.speech.lag) <= LAG_SECONDS + 1e-9


def _stereo(outcome: Outcome) -> bool:
    """Each voice comes from where its speaker stands."""
    if not _present(outcome):
        return False
    return all(
        outcome.clip.speech.column(number) == outcome.shot.people[number].column for number in speakers(outcome.shot)
    )


def _order(outcome: Outcome) -> bool | float:
    """Of two speakers the right one opens the mouth first; NaN for one."""
    order = speakers(outcome.shot)
    return outcome.clip.speech.first == order[0] if len(order) > 1 else np.nan


def _carried(outcome: Outcome) -> bool | float:
    """In the last third hair, clothes and place are those of the scene whose first frame was given.

    NaN where the camera moves, and the places with it.
    """
    if _moves(outcome):
        return np.nan
    if len(outcome.clip.last) != len(outcome.shot.people):
        return False
    return all(
        seen.hair == person.hair
        and seen.clothes == person.clothes
        and abs(seen.x / outcome.clip.width - person.x) < PLACE_TOLERANCE
        for seen, person in zip(outcome.clip.last, outcome.shot.people, strict=True)
    )


SHARES: dict[str, Callable[[Outcome], bool | float]] = {
    "people": _present,
    "hair": _look("hair"),
    "clothes": _look("clothes"),
    "skin": _look("skin"),
    "side": _side,
    "camera still": _camera(moves=False),
    "camera moves": _camera(moves=True),
    "mouth follows": _follows,
    "sync 60ms": _in_time,
    "stereo": _stereo,
    "order": _order,
    "carried": _carried,
}


def score(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Shares (0 to 1) of SHARES, the mean mouth correlation, the median error of the start, WER, seconds a clip.

    With the shares of voices that were recognised by each encoder that listened. NaN is what was not measured.
    """
    result = shares(outcomes, SHARES) | likeness_shares([outcome.voices for outcome in outcomes if outcome.voices])
    result["mouth"] = float(np.mean([_correlation(outcome) for outcome in outcomes]))
    errors = [
        abs(outcome.clip.speech.start - outcome.shot.people[speakers(outcome.shot)[0]].start)
        for outcome in outcomes
        if outcome.clip.speech.start is not None
    ]
    result["start error"] = float(np.median(errors)) if errors else float("nan")
    result["wer"] = _word_error_rate([(outcome.shot, outcome.heard) for outcome in outcomes])
    result["wer whole"] = _word_error_rate([(outcome.shot, outcome.heard_whole) for outcome in outcomes])
    result["seconds"] = float(np.mean([outcome.seconds for outcome in outcomes]))
    return result


def _word_error_rate(clips: Sequence[tuple[Shot, tuple[str, ...] | None]]) -> float:
    """Of what was heard, each None where nothing listened; NaN where nothing listened to any."""
    said = [
        ([word for number in speakers(shot) for word in shot.people[number].words], heard)
        for shot, heard in clips
        if heard is not None
    ]
    return word_error_rate(said) if said else np.nan


def shuffled(outcomes: Sequence[Outcome], sounds: Sequence[np.ndarray], fps: float, rate: int) -> list[Outcome]:
    """Every picture with the sound of another clip, (channels, samples) each. Takes two clips or more."""
    if len(outcomes) < 2:
        raise ValueError(f"{len(outcomes)} clip has no other clip's sound to take; make two or more")
    mixed = []
    for shift in range(1, min(len(outcomes), 4)):
        for number, outcome in enumerate(outcomes):
            other = (number + shift) % len(outcomes)
            speech = measure_lips(outcome.clip.people, sounds[other], fps, rate)
            clip = replace(outcome.clip, speech=speech)
            heard, whole = outcomes[other].heard, outcomes[other].heard_whole
            mixed.append(replace(outcome, clip=clip, heard=heard, heard_whole=whole, voices={}))
    return mixed
