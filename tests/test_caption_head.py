"""What captions say, and that it can be read from a text's states."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.caption_head import QUESTIONS, WORDS, CaptionHead, answers
from training.captions_people import shot_caption
from training.picture_labels import CLASS_OF, CLASSES
from training.shots import KINDS, sample_shot
from training.sound_labels import UNKNOWN

NAMES = {number: names for names, number in CLASS_OF.items()}


def answered(kind: str, seed: int = 3, caption: str = "") -> dict[str, tuple[str, str]]:
    shot = sample_shot(np.random.default_rng(seed), kind)
    found = answers(shot, caption or shot_caption(shot, np.random.default_rng(0), "dense"))
    return {name: NAMES[int(answer)] for name, answer in zip(QUESTIONS, found, strict=True) if answer != UNKNOWN}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_asked_of_what_it_shows(kind: str) -> None:
    shot = sample_shot(np.random.default_rng(3), kind)
    found = answered(kind)
    assert found["backdrop"] == ("backdrop", shot.backdrop)
    assert len(found) == 1 + 3 * len(shot.people) + (shot.scene is not None) + 2 * (shot.roll is not None)


def test_people_are_asked_of_from_left_to_right() -> None:
    shot = sample_shot(np.random.default_rng(3), "pair")
    left, right = sorted(shot.people, key=lambda person: person.x)
    found = answered("pair")
    assert found["first clothes"] == ("clothes", left.clothes) and found["second hair"] == ("hair", right.hair)


def test_what_a_caption_leaves_out_is_not_asked_and_speech_says_nothing_of_looks() -> None:
    (person,) = sample_shot(np.random.default_rng(3), "talk").people
    clothes = WORDS["clothes"][person.clothes]["en"][0]
    assert answered("talk", caption=f"A {person.sex} in a {clothes} shirt says <S>dance<E>") == {
        "first clothes": ("clothes", person.clothes)
    }
    assert answered("talk", caption=f"A person says <S>{clothes}<E>") == {}


def test_the_head_reads_what_the_states_hold_and_no_padding() -> None:
    torch.manual_seed(0)
    head = CaptionHead(16)
    optimizer = torch.optim.Adam(head.parameters(), 0.01)
    meanings = torch.randn(CLASSES, 16)
    asked = torch.randint(0, CLASSES, (64, len(QUESTIONS)))
    asked[:, 1:] = UNKNOWN
    states = torch.cat([meanings[asked[:, :1]], torch.zeros(64, 2, 16)], dim=1)
    mask = torch.tensor([1, 1, 0]).expand(64, 3)
    first = head.loss(states, mask, asked)
    for _ in range(60):
        optimizer.zero_grad()
        loss = head.loss(states, mask, asked)
        loss.backward()
        optimizer.step()
    assert loss < first / 4
    padded = states.clone()
    padded[:, 2] = 9.0
    torch.testing.assert_close(head.loss(padded, mask, asked), head.loss(states, mask, asked))
