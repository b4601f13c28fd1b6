"""The offline composer on people who speak: read in prompts, and described as training describes them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from composed import FirstWording, assert_understood, caption_of
from hypothesis import given, settings
from hypothesis import strategies as st

from nava_core.speech import parse_speech
from rewriter.locking import lock
from rewriter.offline import composer, people
from rewriter.offline.composer import compose_caption
from rewriter.offline.people import LOOKS, read_people
from rewriter.offline.setting import shown_camera, shown_place
from rewriter.offline.words import both
from training import captions_people, lexicon, speaking
from training.backdrops import AMBIENCES, WALLS
from training.canvas import CAMERAS
from training.measure import _to_lab
from training.shots import SECONDS, Shot, sample_shot, speakers
from training.world import COLOURS, SHADES

STARTS = {1: (people.LONE_START,), 2: (people.FIRST_START, people.FIRST_START + people.PAUSE)}


def spoken_shots(count: int, seed: int = 0, kinds: Sequence[str] = ("talk", "pair", "tour")) -> Iterator[Shot]:
    """Shots of one or two people with words, as training makes them but for the voices."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        shot = sample_shot(rng, kinds[index % len(kinds)], "all")
        if not shot.people:
            continue
        said = [tuple(str(word) for word in rng.choice(lexicon.WORDS, 4 - len(shot.people))) for _ in shot.people]
        starts = rng.permutation(STARTS[len(shot.people)])
        yield replace(
            shot,
            people=tuple(
                replace(person, words=line, start=float(start))
                for person, line, start in zip(shot.people, said, starts, strict=True)
            ),
        )


def test_every_caption_is_one_that_training_writes() -> None:
    for shot in spoken_shots(100):
        plain = captions_people.shot_caption(shot, FirstWording(), "dense", moment=True)  # type: ignore[arg-type]
        asked = captions_people.shot_caption(shot, FirstWording(), "dense", moment=False)  # type: ignore[arg-type]
        assert caption_of(asked) == plain
        assert caption_of(plain) == plain


@pytest.mark.parametrize("style", ["dense", "short", "english"])
def test_all_training_captions_are_understood(style: str) -> None:
    rng = np.random.default_rng(1)
    for shot in spoken_shots(300, seed=2):
        text = captions_people.shot_caption(shot, rng, style)
        reading = read_people(lock(text))
        assert reading.is_scene and not reading.unknown, (text, reading)
        assert reading.backdrop in ("", shot.backdrop), text
        told = sorted(reading.people, key=lambda person: person.line or 0)
        for person, number in zip(told, speakers(shot), strict=True):
            true = shot.people[number]
            assert person.sex == true.sex
            assert person.start in (None, pytest.approx(true.start))
            for look in LOOKS:
                assert getattr(person, look) in ("", getattr(true, look)), (text, look)


def test_the_lexicon_has_training_s_words_and_walls() -> None:
    found = json.loads(Path(people.__file__).with_name("lexicon.json").read_text(encoding="utf-8"))["people"]
    for fact in ("sex", "skin", "hair", "hair_style", "clothes", "column"):
        for value, names in captions_people.WORDS[fact].items():
            assert people._shown(fact, value) == names["zh"][0]
    for place in AMBIENCES:
        setting = captions_people.BACKDROPS_ZH[0].format(captions_people.WORDS["backdrop"][place]["zh"][0])
        assert shown_place(place) == f"{setting}，{captions_people.AMBIENT_SOUNDS[place]['zh'][0]}。"
    for camera in CAMERAS:
        assert shown_camera(camera) == captions_people.WORDS["camera"][camera]["zh"][0]
    for wall in WALLS:
        assert people._shown("backdrop", wall) == captions_people.WORDS["backdrop"][wall]["zh"][0]
    assert set(found["looks"]["hair"]) == set(captions_people.WORDS["hair"])
    assert set(found["looks"]["hair_style"]) == set(captions_people.WORDS["hair_style"])


def test_lines_begin_when_training_s_do() -> None:
    assert speaking.FIRST_START <= people.EARLIEST < people.FIRST_START < people.LONE_START
    assert people.FIRST_START + people.PAUSE < people.LATEST < SECONDS - speaking.END_MARGIN
    assert people.LONGEST_LINE == lexicon.MOST_WORDS


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        (
            "a woman with long red hair in a blue shirt says ~~hello~~",
            ["画面中央是一个皮肤白皙、留着姜红色长发、穿蓝色上衣的女人。她约0.3秒时看着镜头说：~~hello~~，女声从正中传来"],
        ),
        (
            "on the left a man says ~~yes please~~, on the right a woman answers ~~no~~",
            [
                "画面左侧是一个皮肤白皙、留着黑色短发、穿白色上衣的男人。画面右侧是一个皮肤白皙、留着黑色长发、穿红色上衣的女人。",
                "左侧的男人约0.2秒时看着镜头说：~~yes please~~，男声从左侧传来。",
                "右侧的女人约1.1秒时看着镜头说：~~no~~，女声从右侧传来。",
            ],
        ),
        (
            "A woman in the rain says ~~hello~~ while the camera slowly pans left",
            ["背景是下着雨的原野，雨声淅淅沥沥。", "她约0.3秒时看着镜头说：~~hello~~", "镜头向左平移"],
        ),
        ("雨中的女孩说：~~hello~~，镜头向右移动", ["下着雨的原野", "镜头向右平移"]),
        ("一个黑发男人说：~~你好~~", ["黑色短发", "他约0.3秒时看着镜头说：~~你好~~"]),
        ("A blond man in red on the right says ~~stop~~", ["画面右侧", "金色短发、穿红色上衣的男人", "男声从右侧"]),
        ("a girl in a 蓝色衬衫 says ~~hello~~ at 0.8 s", ["穿蓝色上衣的女人", "她约0.8秒时"]),
        ("dark-skinned lady, curly hair, lilac wall: ~~banana today~~", ["皮肤深色、留着黑色卷发", "淡紫色的墙面"]),
        ("A man says to a woman: ~~go~~. She replies to him: ~~yes~~", ["左侧的男人约0.2秒时看着镜头说：~~go~~"]),
        ("男人对女人说：~~go~~，女人说：~~stop~~", ["左侧的男人约0.2秒时看着镜头说：~~go~~"]),
        ("一个穿绿色上衣的女人和一个灰发男人，男人说~~hi~~，女人说~~yes~~", ["左侧的女人约1.1", "右侧的男人约0.2"]),
        ("Two women talk: the left woman says ~~hello~~, the right woman ~~go~~", ["右侧的女人约1.1秒时"]),
        ("A black-haired man and a blond woman. The woman says ~~go~~. He says ~~no~~", ["金色长发", "男人约1.1"]),
        ("a man says ~~go~~ on the right, a lady in red on the left says ~~yes~~", ["左侧的女人约1.1"]),
        ("a woman with chestnut hair in a teal shirt says ~~hello~~", ["留着棕色长发、穿绿色上衣的女人"]),
        ("一个栗色头发、穿栗色上衣的男人说：~~hello~~", ["留着棕色短发、穿红色上衣的男人"]),
        ("A silver-haired man in navy says ~~stop~~", ["留着灰色短发、穿蓝色上衣的男人"]),
        ("a tan-skinned woman with brown hair in pink: ~~go~~", ["皮肤小麦色、留着棕色长发、穿红色上衣"]),
        ("a silver woman says ~~go~~", ["留着灰色长发"]),
        ("a woman in cream says ~~go~~, a man says ~~yes~~", ["穿白色上衣的女人", "穿红色上衣的男人"]),
        ("a man says ~~go~~ at 0.5 s and a woman says ~~yes~~", ["男人约0.5秒时", "女人约1.4秒时"]),
    ],
)  # fmt: skip
def test_people_are_understood(prompt: str, parts: list[str]) -> None:
    assert_understood(prompt, parts)


@pytest.mark.parametrize(
    "prompt",
    [
        "She says ~~hello~~",
        "a man in a red shirt",
        "A man does not say ~~hello~~",
        "Three women say ~~hello~~",
        "A woman says ~~hello~~ and then ~~go~~",
        "A woman says ~~hello~~ to a man",
        "a narrator says ~~hello~~ over a man in a red shirt",
        "A man in a red shirt holds a blue ball and says ~~hello~~",
        "A large red ball falls on the left at once, a man says ~~hello~~",
        "a woman in the middle says ~~yes~~, a man on the left says ~~no~~",
        "a woman on the left and a man on the left: the woman says ~~yes~~, the man says ~~no~~",
        "a man says ~~go~~ at 1.5 s and a woman says ~~yes~~",
        "A woman says ~~The sea gives, and the sea takes away.~~",
        "A man says ~~hello~~ in a kitchen",
        "A woman with long red hair in a blue shirt on the left of a café says ~~hello~~",
        "一个留着黑色短发、穿红色上衣的男人站在街上说：~~hello~~",
        "A tall man in a suit says ~~hello~~",
        "一个女人在厨房里说：~~你好~~",
        "A man and a woman sit in a café. The man says ~~hello~~, the woman laughs ~~no~~",
        "A woman with long red hair in a blue shirt walks through a rainy street and says ~~hello~~",
        "写实电影风格，一位留着灰白胡子的老船长望向镜头，一个女人用沙哑的声音说：~~你好~~",
        "a woman with black hair, her hair is red, says ~~hello~~",
        "a man in a teal shirt, his shirt is green, says ~~hello~~",
    ],
)
def test_other_prompts_keep_their_words(prompt: str) -> None:
    caption, notes = compose_caption(lock(prompt))
    assert caption.startswith(prompt)
    assert notes == (composer.NOTE_WORDS,)


def test_what_was_chosen_and_left_out_is_told() -> None:
    _, notes = compose_caption(lock("an old woman with grey hair in a red shirt says ~~hello~~ in the middle"))
    assert notes[1:] == (
        "chosen for you: skin light, hair style long; background pale blue; line 1 at 0.3 s",
        "left out, since the lexicon does not know them: old",
    )
    _, notes = compose_caption(lock("a man says ~~go~~ and a woman in white says ~~yes~~ at 1.2 s"))
    assert notes[1] == (
        "chosen for you: left person skin light, hair black, hair style short, clothes red, column left; "
        "right person skin light, hair black, hair style long, column right; background pale blue; line 1 at 0.2 s"
    )


def test_people_wear_the_nearest_of_training_s_clothes_and_the_notes_say_so() -> None:
    lexicon = composer.data("lexicon.json")
    nearest = lexicon["people"]["clothes_of_shades"]
    assert set(nearest) == set(SHADES) and set(lexicon["facts"]["colour"]) == {*COLOURS, *SHADES}
    for shade, colour in nearest.items():
        shown = captions_people.WORDS["clothes"][colour]["zh"][0]
        beside_walls = [phrase for phrase, meaning in lexicon["colour_of_things"].items() if meaning == shade]
        for phrase in (*both(lexicon["facts"]["colour"][shade]), *beside_walls):
            english = phrase.isascii()
            prompt = f"a woman in a {phrase} shirt says ~~go~~" if english else f"一个穿{phrase}上衣的女人说：~~go~~"
            caption, notes = compose_caption(lock(prompt))
            assert f"穿{shown}上衣" in caption and f"clothes {colour} for {shade}, " in notes[1], phrase


def test_the_clothes_for_a_shade_are_of_a_colour_near_it() -> None:
    """Of the two nearest, in light or to the eye: which word a colour goes by is not a distance alone."""
    nearest = composer.data("lexicon.json")["people"]["clothes_of_shades"]
    shades, colours = (np.array([*values.values()], dtype=float) for values in (SHADES, COLOURS))
    near: dict[str, set[str]] = {shade: set() for shade in SHADES}
    for a, b in ((shades, colours), (_to_lab(shades), _to_lab(colours))):
        order = np.linalg.norm(a[:, None] - b[None], axis=-1).argsort(axis=1)
        for shade, two in zip(SHADES, order[:, :2], strict=True):
            near[shade] |= {list(COLOURS)[number] for number in two}
    assert all(colour in near[shade] for shade, colour in nearest.items())


PIECES = (
    "a woman", "the man", "一个男人", "左边的女人", "she", "says", "说：", "~~hello~~", "<S>yes<E>", "~~a~", "red",
    "long hair", "in a blue shirt", "on the right", ", ", "。", "and", "at 0.5 s", "约1.1秒时", "对", "to", "白皙",
    "皮肤", "two people", "\n",
)  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=14))
@settings(max_examples=300, deadline=None)
def test_speech_stays_letter_for_letter(pieces: list[str]) -> None:
    prompt = " ".join(pieces)
    if not prompt.strip():
        return
    caption = caption_of(prompt)
    assert [span.text for span in parse_speech(caption).spans] == [span.text for span in parse_speech(prompt).spans]
    assert caption == caption_of(prompt)
