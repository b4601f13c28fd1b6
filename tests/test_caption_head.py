"""What captions say, and that it can be read from a text's states."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from nava_core.speech import SENTINEL
from training.canvas import CAMERAS
from training.caption_head import (
    MOMENTS,
    QUESTIONS,
    WORDS,
    CaptionHead,
    Captions,
    answers,
    camera_move,
    digits_of_pieces,
    last_named,
    moments,
    numbers_ending,
    places_of_pieces,
    speech_moments,
)
from training.captions_people import shot_caption
from training.lexicon import WORDS as SPOKEN_WORDS
from training.picture_labels import CLASS_OF, CLASSES
from training.shots import KINDS, sample_shot
from training.sound_labels import UNKNOWN
from training.speaking import utterance
from training.voices import Voice, VoiceBank

ROOT = Path(__file__).parents[1]
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


def test_moments_are_asked_where_they_are_said() -> None:
    for kind in ("fall", "roll", "pair"):
        shot = sample_shot(np.random.default_rng(3), kind)
        people = [replace(person, words=("hello",), start=0.3 + turn) for turn, person in enumerate(shot.people)]
        shot = replace(shot, people=tuple(people))
        caption = shot_caption(shot, np.random.default_rng(0), "dense", True)
        asked = dict(zip(MOMENTS, moments(shot, caption).tolist(), strict=True))
        said = {name: tenth for name, tenth in asked.items() if tenth != UNKNOWN}
        assert set(said) == ({"first start", "second start"} if people else {"contact"})
        assert all(f"{tenth / 10:.1f}秒" in caption for tenth in said.values())
        silent = shot_caption(shot, np.random.default_rng(0), "dense", False)
        assert set(moments(shot, silent).tolist()) == {UNKNOWN}


@given(st.integers(0, 2**16))
def test_the_camera_is_asked_where_the_caption_says_it(seed: int) -> None:
    shot = sample_shot(np.random.default_rng(seed), "tour")
    move = CAMERAS.index(shot.camera)
    assert camera_move(shot, shot_caption(shot, np.random.default_rng(seed), "dense")) == move
    assert camera_move(shot, "一个红色的球") == UNKNOWN


def test_the_head_reads_what_the_states_hold_and_no_padding() -> None:
    torch.manual_seed(0)
    head = CaptionHead(16)
    optimizer = torch.optim.Adam(head.parameters(), 0.01)
    meanings = torch.randn(CLASSES, 16)
    said = torch.randint(0, CLASSES, (64, len(QUESTIONS)))
    said[:, 1:] = UNKNOWN
    places = torch.randint(0, 4, (64, 3))
    states = torch.cat([meanings[said[:, :1]], torch.zeros(64, 2, 16)], dim=1)
    states[..., :4] += 3 * torch.nn.functional.one_hot(places, 4)
    times = torch.randint(0, 4, (64, 1)) * torch.ones(3, dtype=torch.long)
    states[:, 1, 4:8] = 3 * torch.nn.functional.one_hot(times[:, 0], 4)
    numbers = torch.stack([torch.full_like(times[:, 0], UNKNOWN), *times[:, :2].T], dim=1)
    numbers[:, 2] = UNKNOWN
    cameras = torch.randint(0, len(CAMERAS), (64,))
    states[:, 1, 8:13] = 3 * torch.nn.functional.one_hot(cameras, len(CAMERAS))
    asked = Captions(torch.zeros(64, 3), torch.tensor([1, 1, 0]).expand(64, 3), said, times, cameras, places, numbers)
    first = head.loss(states, asked)
    for _ in range(60):
        optimizer.zero_grad()
        loss = head.loss(states, asked)
        loss.backward()
        optimizer.step()
    assert loss < first / 4
    padded = states.clone()
    padded[:, 2] = 9.0
    torch.testing.assert_close(head.loss(padded, asked), head.loss(states, asked))


@pytest.mark.parametrize(
    ("caption", "named"),
    [
        ("左侧是一位穿红色的女子，右边是一位男子", {"左侧": 1, "女子": 1, "男子": 3}),
        ("in the middle a man, on the right a woman", {"▁man": 2, "▁woman": 3}),
        ("a man", {"▁man": 0}),
        ("画面中央有一位男子，镜头向右平移，墙", {"画面": 0, "男子": 2, "墙": 2}),
    ],
)
def test_the_place_that_was_named_last_is_known_at_each_token(caption: str, named: dict[str, int]) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(ROOT / "training" / "weights" / "tokenizer")
    ids = torch.tensor([tokenizer(caption)["input_ids"]])
    places = last_named(places_of_pieces(tokenizer)[ids])[0].tolist()
    found = dict(zip(tokenizer.convert_ids_to_tokens(ids[0].tolist()), places, strict=True))
    assert {piece: found[piece] for piece in named} == named


def test_a_moment_is_known_at_its_last_digit() -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(ROOT / "training" / "weights" / "tokenizer")
    caption = "it lands at 1.3 s. 约0.7秒时开口，4.9秒，没有3个，1.x"
    ids = torch.tensor([tokenizer(caption)["input_ids"]])
    numbers = numbers_ending(digits_of_pieces(tokenizer)[ids])[0].tolist()
    pieces = tokenizer.convert_ids_to_tokens(ids[0].tolist())
    found = [(piece, number) for piece, number in zip(pieces, numbers, strict=True) if number != UNKNOWN]
    assert found == [("3", 13), ("7秒时", 7)]  # 4.9 s is later than any moment that is asked for


def test_a_spoken_word_is_asked_when_it_is_said() -> None:
    """Of two people, where the caption says when the second one begins; each word is 0.4 s long."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(ROOT / "training" / "weights" / "tokenizer")
    sounds = {word: np.full(6400, 0.1, np.float32) for word in SPOKEN_WORDS}
    bank = VoiceBank([Voice("one", "one", "f", 200.0, 1.0, "train")], {"one": sounds})
    shot = sample_shot(np.random.default_rng(3), "pair")
    lines = (("hello", 0.3), ("moon", 0.92))
    shot = replace(
        shot,
        people=tuple(
            replace(person, voice="one", words=(word, "yes"), start=start, speech_seed=3)
            for person, (word, start) in zip(shot.people, lines, strict=True)
        ),
    )
    spans = ["<S><extra_id_2>hello yes<E>", "<S><extra_id_2>moon yes<E>"]
    caption = f"她说：{spans[0]}，在第0.9秒他说：{spans[1]}"
    pieces = tokenizer.convert_ids_to_tokens(tokenizer(caption)["input_ids"])
    moments = speech_moments(pieces, shot, caption, bank).tolist()
    found = [(piece, moment) for piece, moment in zip(pieces, moments, strict=True) if moment != UNKNOWN]
    (_, begin, end) = utterance(shot.people[1], bank).words[1]
    whole = round(10 * (0.92 + utterance(shot.people[1], bank).seconds / 2))
    assert found == [(SENTINEL, whole), ("moon", 11), ("▁yes", round(10 * (0.92 + (begin + end) / 2)))]
    assert set(speech_moments(pieces, shot, "", bank).tolist()) == {UNKNOWN}
