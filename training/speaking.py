"""Who says what in a shot, when the mouths are open, and what the shot sounds like.

The voices, what is said in them and the ambiences are `training.voices` and `training.ambience`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from training import world
from training.ambience import ambience
from training.lexicon import WORDS
from training.people import Person
from training.rolling import render_roll_sound
from training.shots import SECONDS, Shot
from training.voices import Utterance, VoiceBank, mix, place

# Speech begins no earlier than this and ends this long before the clip does, in seconds.
FIRST_START = 0.10
END_MARGIN = 0.08
BETWEEN_SPEAKERS = (0.08, 0.25)
TRIES = 60


def give_voices(shot: Shot, bank: VoiceBank, rng: np.random.Generator, split: str = "train") -> Shot:
    """`shot` with words for its people, in voices of `split` and of their sex: one after the other, either first."""
    if not shot.people:
        return shot
    for _ in range(TRIES):
        speakers = [_with_words(person, bank, rng, split, _most_words(shot)) for person in shot.people]
        lengths = [utterance(person, bank).seconds for person in speakers]
        gaps = [float(rng.uniform(*BETWEEN_SPEAKERS)) for _ in speakers[1:]]
        room = shot.seconds - END_MARGIN - FIRST_START - sum(lengths) - sum(gaps)
        if room < 0:
            continue
        moment = FIRST_START + float(rng.uniform(0, room))
        timed = {}
        for place_in_turn, number in enumerate(rng.permutation(len(speakers))):
            timed[int(number)] = replace(speakers[number], start=moment)
            moment += lengths[number] + (gaps[place_in_turn] if place_in_turn < len(gaps) else 0.0)
        return replace(shot, people=tuple(timed[number] for number in range(len(speakers))))
    raise ValueError(
        f"no words of {len(shot.people)} people fit into {shot.seconds:g} s in {TRIES} tries; make the shot longer"
    )


def _most_words(shot: Shot) -> int:
    """That one of its people says: three, and two where there are two; in a longer shot one more."""
    return 4 - len(shot.people) + (shot.seconds > SECONDS)


def _with_words(person: Person, bank: VoiceBank, rng: np.random.Generator, split: str, most: int) -> Person:
    voice = bank.draw(rng, split)
    while voice.sex != person.sex:
        voice = bank.draw(rng, split)
    count = int(rng.integers(1, most + 1))
    words = tuple(str(word) for word in rng.choice(WORDS, count, replace=False))
    return replace(person, voice=voice.name, words=words, speech_seed=int(rng.integers(2**31)))


def utterance(person: Person, bank: VoiceBank) -> Utterance:
    """What `person` says, the same at each call."""
    return bank.utterance(bank.voice(person.voice), person.words, np.random.default_rng(person.speech_seed))


def speech_end(person: Person, bank: VoiceBank) -> float:
    """When `person` has said it, seconds."""
    return person.start + utterance(person, bank).seconds


def openings(shot: Shot, bank: VoiceBank) -> list[np.ndarray]:
    """How open each person's mouth is in each frame, (frames,) in [0, 1]."""
    times = np.arange(shot.num_frames) / world.FPS
    return [
        utterance(person, bank).opening(times - person.start) if person.words else np.zeros(shot.num_frames, np.float32)
        for person in shot.people
    ]


def render_sound(shot: Shot, bank: VoiceBank | None, rate: int = 48_000, tail: float = 0.0) -> np.ndarray:
    """The shot's sound, float32 (2, samples): impacts, speech from each speaker's side, ambience.

    bank: None where nobody speaks. tail: for how many seconds longer than the picture.
    """
    seconds = shot.num_frames / world.FPS + tail
    if shot.kind == "fall" and shot.scene is not None:
        return world.render_sound(shot.scene, seconds, rate)
    if shot.roll is not None:
        return render_roll_sound(shot.roll, shot.width / shot.height, seconds, rate)
    rng = np.random.default_rng(shot.seed)
    parts = [np.zeros((2, round(seconds * rate)), np.float32)]
    if shot.scene is not None:
        parts.append(world.render_sound(shot.scene, seconds, rate))
    for person in shot.people:
        if person.words:
            assert bank is not None
            parts.append(place(utterance(person, bank), person.start, person.x, seconds, rate))
    if shot.ambience:
        parts.append(ambience(shot.ambience, seconds, rng, rate))
    return mix(parts, rng)


def reference(person: Person, bank: VoiceBank, seconds: float = 3.0) -> np.ndarray:
    """A sample of `person`'s voice that says other words: float32 (n,) at 16 kHz."""
    rng = np.random.default_rng([person.speech_seed, 1])
    return bank.reference(bank.voice(person.voice), rng, person.words, seconds)
