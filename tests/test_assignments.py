"""Voices stay with their lines while the prompt around them changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from nava_core.request import RequestError
from ui.assignments import Assignments, assignments_of, carry_over, colours_of, speakers_of
from ui.catalogue import Catalogue
from ui.handover import line_colours
from ui.library.voices import VoiceLibrary
from ui.service import Service

LINES = st.lists(st.text("abc", max_size=4), max_size=6)
DISTINCT = st.lists(st.text("abcdef", min_size=1, max_size=6), max_size=6, unique=True)


def voices_for(lines: list[str]) -> list[str | None]:
    return [f"voice {number}" for number in range(len(lines))]


@given(LINES, LINES)
def test_one_place_for_each_line_and_no_voice_more_often_than_before(old: list[str], new: list[str]) -> None:
    carried = carry_over(old, voices_for(old), new)
    assert len(carried) == len(new)
    given = [voice for voice in carried if voice is not None]
    assert len(set(given)) == len(given)
    assert len(given) <= len(old)


@given(LINES)
def test_nothing_changes_where_nothing_changed(lines: list[str]) -> None:
    assert carry_over(lines, voices_for(lines), lines) == tuple(voices_for(lines))


@given(DISTINCT, st.data())
def test_lines_added_or_removed_around_it_leave_a_line_its_voice(lines: list[str], data: Any) -> None:
    kept = data.draw(st.lists(st.sampled_from(lines), unique=True) if lines else st.just([]))
    kept.sort(key=lines.index)
    fresh = data.draw(st.lists(st.tuples(st.integers(0, len(kept)), st.text("XYZ", min_size=1)), max_size=3))
    new = list(kept)
    for place, line in fresh:
        new.insert(place, line)
    spoken = dict(zip(lines, voices_for(lines), strict=True))
    carried = carry_over(lines, voices_for(lines), new)
    assert all(carried[new.index(line)] == spoken[line] for line in kept)


@given(DISTINCT, st.permutations(range(6)))
def test_lines_that_change_places_take_their_voices_along(lines: list[str], order: list[int]) -> None:
    new = [lines[index] for index in order if index < len(lines)]
    spoken = dict(zip(lines, voices_for(lines), strict=True))
    assert carry_over(lines, voices_for(lines), new) == tuple(spoken[line] for line in new)


@given(DISTINCT.filter(len), st.data())
def test_a_line_being_typed_keeps_its_voice(lines: list[str], data: Any) -> None:
    index = data.draw(st.integers(0, len(lines) - 1))
    new = [*lines[:index], lines[index] + "!", *lines[index + 1 :]]
    assert carry_over(lines, voices_for(lines), new) == tuple(voices_for(lines))


@pytest.mark.parametrize("place", [0, 4, 13, 24])
@pytest.mark.parametrize("marks", [("~~", "~~"), ("<S>", "<E>")])
def test_a_line_typed_letter_by_letter_anywhere_leaves_the_others_their_voices(
    place: int, marks: tuple[str, str]
) -> None:
    prompt, typed = "She: ~~one~~ he: ~~two~~", f"{marks[0]}ab{marks[1]} "
    stored = Assignments().settled(prompt).assign(0, "ann").assign(1, "ben")
    for count in range(1, len(typed) + 1):
        stored = stored.settled(prompt[:place] + typed[:count] + prompt[place:])
    after = prompt[:place] + typed + prompt[place:]
    shown = dict(zip(stored.follow(after).lines, stored.follow(after).voices, strict=True))
    assert shown == {"ab": None, "one": "ann", "two": "ben"}
    assert stored.settled("") == stored and stored.settled("~~") == stored


def test_a_changed_line_is_known_by_its_words_when_another_comes_before_it() -> None:
    assert carry_over(["How are you today?"], ["ann"], ["Hi!", "How are you today, Ben?"]) == (None, "ann")
    assert carry_over(["a", "b"], ["ann", "ben"], ["c", "d", "e"]) == ("ann", "ben", None)


@pytest.mark.parametrize("stored", [None, 3, "x", {}, {"lines": ["a"], "voices": []}, {"lines": 1, "voices": 2}])
def test_what_a_browser_keeps_may_be_anything(stored: Any) -> None:
    assert Assignments.read(stored) == Assignments()


@pytest.fixture
def library(tmp_path: Path) -> VoiceLibrary:
    soundfile.write(tmp_path / "voice.wav", np.random.default_rng(1).normal(size=40_000) * 0.1, 16_000)
    return VoiceLibrary(tmp_path / "voices")


def test_the_way_to_a_request_and_back(library: VoiceLibrary, tmp_path: Path) -> None:
    ann = library.add("me", tmp_path / "voice.wav", "Ann", consent=True)
    ben = library.recolour("me", library.add("me", tmp_path / "voice.wav", "Ben", consent=True).id, 7)
    before = Assignments().follow("~~one~~ ~~two~~").assign(1, ben.id).assign(9, ann.id).to_json()
    prompt = "~~zero~~ and ~~one~~ and ~~two~~"
    assert speakers_of(library, "me", prompt, before) == (None, None, ben.path)
    assert colours_of(library.list("me"), prompt, before) == (1, 2, 7)
    copied = [None, "copies/of/a.wav", str(tmp_path / "elsewhere" / ben.path.name)]
    again = assignments_of(library, "me", prompt, copied)
    assert speakers_of(library, "me", prompt, again) == (None, None, ben.path)
    assert assignments_of(library, "you", prompt, copied)["voices"] == [None] * 3
    service = Service(cast(Any, None), cast(Any, None), Catalogue(), library)
    assert line_colours(service, {"prompt": prompt, "speakers": copied}) == [1, 2, 7]
    assert line_colours(service, {"prompt": "~~one~~", "speakers": [5, "x"]}) == [1] and line_colours(service, {}) == []
    assert speakers_of(None, "", prompt, before) == (None, None, None)
    library.delete("me", ben.id)
    with pytest.raises(RequestError, match="line 3 was deleted") as gone:
        speakers_of(library, "me", prompt, before)
    assert gone.value.field == "speakers"
