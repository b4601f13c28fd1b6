"""Times of spoken lines, and the subtitles made of them."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nava_core.speech import parse_speech
from nava_core.speech_timing import spoken_seconds
from nava_core.subtitles import energy_envelope, line_times, to_srt, to_vtt, voiced_stretches

RATE = 16_000


def spans(*lines: str) -> tuple:
    return parse_speech(" ".join(f"~~{line}~~" for line in lines)).spans


def bursts(seconds: float, *voiced: tuple[float, float], noise: float = 0.003) -> np.ndarray:
    """Sound that is loud, and wavers as a voice does, in each of the stretches."""
    time = np.arange(round(seconds * RATE)) / RATE
    sound = np.random.default_rng(0).normal(0, noise, time.size)
    for start, end in voiced:
        sound += ((time >= start) & (time < end)) * np.sin(900 * time) * (0.3 + 0.1 * np.sin(25 * time))
    return sound.astype(np.float32)


def timed(lines: tuple[str, ...], seconds: float, *voiced: tuple[float, float]) -> list[tuple[float, float]]:
    return line_times(spans(*lines), seconds, energy_envelope(bursts(seconds, *voiced), RATE))


def test_two_lines_take_the_two_stretches_that_are_heard() -> None:
    times = timed(("Hello there", "How are you today, my friend?"), 5, (0.6, 1.4), (2.6, 4.4))
    assert times[0] == (pytest.approx(0.6, abs=0.1), pytest.approx(1.4, abs=0.1))
    assert times[1] == (pytest.approx(2.6, abs=0.1), pytest.approx(4.4, abs=0.1))


def test_a_pause_within_a_line_does_not_end_it() -> None:
    times = timed(("你好", "今天的天气真不错，我们出去走走吧"), 6, (0.3, 0.8), (1.6, 3.0), (3.3, 5.0))
    assert times[0][1] == pytest.approx(0.8, abs=0.1)
    assert times[1] == (pytest.approx(1.6, abs=0.1), pytest.approx(5.0, abs=0.1))


def test_one_stretch_is_shared_by_the_length_of_the_lines() -> None:
    (_, cut), (start, _) = timed(("one two three four five six", "one two three"), 4, (0.5, 3.5))
    assert cut == pytest.approx(2.5, abs=0.35) and start >= cut


def test_a_noise_before_the_speech_belongs_to_no_line() -> None:
    times = timed(("one two three four",), 5, (0.2, 0.35), (2.5, 3.6))
    assert times == [(pytest.approx(2.5, abs=0.1), pytest.approx(3.6, abs=0.1))]


@pytest.mark.parametrize("envelope", [None, np.zeros(100), np.full(100, 0.4), np.zeros(0), np.full(50, np.nan)])
def test_where_the_sound_tells_nothing_lines_are_spread_by_length(envelope: np.ndarray | None) -> None:
    times = line_times(spans("Hello", "one two three four five six"), 6, envelope)
    (first, first_end), (second, second_end) = times
    assert 0 < first < first_end < second < second_end < 6
    assert second_end - second > 2 * (first_end - first)


def test_more_lines_than_time_are_shortened_and_empty_ones_take_none() -> None:
    times = line_times(spans("a long line of many words " * 5, "", "another line"), 1.0)
    assert times[0][0] == 0 and times[1][0] == times[1][1] and times[2][1] == pytest.approx(1.0)
    assert line_times(spans("", " "), 2.0) == [(0.0, 0.0), (0.0, 0.0)]
    assert line_times((), 2.0) == [] and line_times(spans("a"), 0.0) == [(0.0, 0.0)]


@settings(max_examples=60)
@given(
    lines=st.lists(st.text("ab 你好,.!1", max_size=40), max_size=12),
    seconds=st.floats(0.05, 30),
    envelope=st.none() | st.lists(st.floats(0, 1), max_size=300),
)
def test_times_are_in_order_and_within_the_clip(lines: list[str], seconds: float, envelope: list[float] | None) -> None:
    times = line_times(spans(*lines), seconds, envelope)
    assert len(times) == len(lines)
    flat = [moment for pair in times for moment in pair]
    assert flat == sorted(flat) and all(0 <= moment <= seconds for moment in flat)
    for line, (start, end) in zip(lines, times, strict=True):
        assert (end > start) == (spoken_seconds(line) > 0)


def test_voiced_stretches_survive_noise() -> None:
    sound = bursts(4, (0.5, 1.5), (2.0, 3.0), noise=0.04)
    found = voiced_stretches(energy_envelope(sound, RATE), 4)
    assert [pytest.approx(found[0], abs=0.1), pytest.approx(found[1], abs=0.1)] == [(0.5, 1.5), (2.0, 3.0)]


def test_stereo_is_heard_as_mono() -> None:
    sound = bursts(1, (0.2, 0.6))
    assert energy_envelope(np.stack([sound, sound], 1), RATE) == pytest.approx(energy_envelope(sound, RATE))
    assert energy_envelope(np.zeros((0, 2)), RATE).size == 0


LINES = ("Hello\n\nthere --> <b>you</b> & me", "", "再见")
TIMES = [(0.5, 1.25), (1.25, 1.25), (3661.0, 3662.0)]


def test_srt_has_one_block_for_each_line() -> None:
    assert to_srt(LINES, TIMES) == (
        "1\n00:00:00,500 --> 00:00:01,250\nHello there → <b>you</b> & me\n\n2\n01:01:01,000 --> 01:01:02,000\n再见\n"
    )


def test_vtt_escapes_what_a_player_would_read_as_markup_and_says_what_its_times_are() -> None:
    text = to_vtt(LINES, TIMES)
    assert text.startswith("WEBVTT\n\n") and "estimated" in text.split("\n\n")[1]
    assert "Hello there --&gt; &lt;b&gt;you&lt;/b&gt; &amp; me" in text and text.count("-->") == 2
    assert len(re.findall(r"^\d\d:\d\d:\d\d\.\d{3} --> ", text, re.MULTILINE)) == 2
