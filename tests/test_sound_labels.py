"""What sounds at each audio token."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from training.lexicon import WORDS
from training.shots import sample_shot
from training.sound_labels import CLASSES, IMPACTS, PARTS, UNKNOWN, sound_labels, speaking_labels
from training.voices import Voice, VoiceBank
from training.world import contacts
from training.world_sound import MATERIALS

SECOND = 16_000


@pytest.fixture(scope="module")
def bank() -> VoiceBank:
    """One voice; each word is 0.4 s long."""
    voice = Voice("one", "one", "f", 200.0, 1.0, "train")
    return VoiceBank([voice], {"one": {word: np.full(int(0.4 * SECOND), 0.1, np.float32) for word in WORDS}})


def test_labels_follow_the_words_in_time(bank: VoiceBank) -> None:
    shot = sample_shot(np.random.default_rng(0), "talk")
    person = replace(shot.people[0], voice="one", words=("moon", "yes"), start=0.6, speech_seed=3)
    labels = sound_labels(replace(shot, people=(person,)), bank, 50)
    assert labels.shape == (50,) and labels.min() >= 0 and labels.max() < CLASSES
    assert labels[:15].eq(0).all() and labels[40:].eq(0).all(), "silence before and after"
    moon, yes = (1 + PARTS * WORDS.index(word) for word in ("moon", "yes"))
    heard = [int(label) for label in labels.unique_consecutive()]
    assert heard == [0, *range(moon, moon + PARTS), 0, *range(yes, yes + PARTS), 0]
    assert int((labels >= 1).sum()) == pytest.approx(20, abs=2), "0.8 s at 25 tokens a second"


def test_turns_are_counted_in_the_order_of_speaking(bank: VoiceBank) -> None:
    shot = sample_shot(np.random.default_rng(0), "pair")
    people = tuple(
        replace(person, voice="one", words=("moon",), start=start, speech_seed=3)
        for person, start in zip(shot.people, (1.2, 0.4), strict=True)
    )
    turns = speaking_labels(replace(shot, people=people), bank, 50).tolist()
    assert turns[:10] == [UNKNOWN] * 10 and turns[10:19] == [0] * 9
    assert turns[21:30] == [UNKNOWN] * 9 and turns[30:39] == [1] * 9
    assert set(speaking_labels(shot, bank, 50).tolist()) == {UNKNOWN}


def test_impacts_are_labelled_by_what_is_struck(bank: VoiceBank) -> None:
    for kind in ("fall", "roll"):
        shot = sample_shot(np.random.default_rng(1), kind)
        body = shot.scene or shot.roll
        assert body is not None
        labels = sound_labels(shot, None, 50)
        struck = IMPACTS + list(MATERIALS).index(body.shape)
        assert set(labels.tolist()) == {0, struck}
        first = contacts(shot.scene)[0].time if shot.scene else shot.roll.contact if shot.roll else 0.0
        assert int(labels.ne(0).nonzero()[0]) == pytest.approx(25 * first, abs=1)


def test_nothing_is_asked_of_voices_that_are_not_known(bank: VoiceBank) -> None:
    silent = sample_shot(np.random.default_rng(0), "talk")
    assert sound_labels(silent, None, 9).eq(0).all()
    spoken = replace(silent, people=(replace(silent.people[0], voice="one", words=("go",)),))
    assert sound_labels(spoken, None, 9).eq(UNKNOWN).all() and not sound_labels(spoken, bank, 9).eq(UNKNOWN).any()
