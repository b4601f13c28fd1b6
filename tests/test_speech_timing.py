"""How long lines take to say, against what people and synthesisers take."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nava_core.speech_timing import spoken_seconds, syllables


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("Hello there", 0.5, 1.0),
        ("Hi! How are you today?", 1.3, 2.2),
        ("你好", 0.35, 0.6),
        ("你好！今天过得怎么样？", 2.0, 3.2),
        ("今天天气很好，我们一起去公园散步吧。", 3.2, 4.6),  # 16 characters and a comma
        ("The quick brown fox jumps over the lazy dog.", 2.0, 3.2),
        ("Call me at 555 0199", 2.0, 3.4),
        ("こんにちは", 0.5, 1.0),
        ("안녕하세요", 0.7, 1.3),
        ("Wir gehen nach Hause", 1.0, 1.7),
    ],
)
def test_lines_take_about_as_long_as_people_do(text: str, least: float, most: float) -> None:
    assert least <= spoken_seconds(text) <= most


def test_the_rainbow_passage_is_read_at_150_to_200_words_a_minute() -> None:
    text = (
        "When the sunlight strikes raindrops in the air, they act as a prism and form a rainbow. The rainbow is a "
        "division of white light into many beautiful colors. These take the shape of a long round arch, with its "
        "path high above, and its two ends apparently beyond the horizon."
    )
    assert 150 <= len(text.split()) * 60 / spoken_seconds(text) <= 200


@pytest.mark.parametrize("text", ["", "   ", "…", "?!", "\n", "——"])
def test_nothing_to_say_takes_no_time(text: str) -> None:
    assert spoken_seconds(text) == 0.0


@pytest.mark.parametrize(
    ("word", "count"),
    [("hello", 2), ("there", 1), ("today", 2), ("make", 1), ("makes", 1), ("table", 2), ("the", 1), ("beautiful", 3),
     ("TV", 2), ("hmm", 1), ("wanted", 2), ("played", 1)],
)  # fmt: skip
def test_syllables(word: str, count: int) -> None:
    assert abs(syllables(word) - count) <= (word == "wanted")


def test_pauses_stand_within_a_line_and_not_at_its_end() -> None:
    assert spoken_seconds("你好。") == spoken_seconds("你好")
    assert spoken_seconds("你好。你好") > spoken_seconds("你好，你好") > spoken_seconds("你好你好")
    assert spoken_seconds("3.5") == spoken_seconds("35")


@given(st.text(), st.text())
def test_more_words_take_longer(one: str, other: str) -> None:
    assert spoken_seconds(one) >= 0
    assert spoken_seconds(f"{one} {other}") >= max(spoken_seconds(one), spoken_seconds(other)) - 1e-9
