"""The page's features without a browser: mixer, footer, differences, what a browser keeps, variations."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gradio.utils import get_upload_folder
from hypothesis import given
from hypothesis import strategies as st
from queue_child import SoundRunner

from nava_core.engine import EngineError, QueueEngine
from nava_core.request import GenerationRequest, Guidance, ModelSpec, RequestError
from ui.catalogue import Catalogue
from ui.differences import differences, differences_view
from ui.footer import SHARES, quality_of, steps_of
from ui.mixer import FACTORS, cost_view, passes_of, preset_guidance, preset_of
from ui.state import kept_settings, kept_words
from ui.variations import submit_variations, unfinished

TEXT = Catalogue("en")
SMALL = ModelSpec("small", sizes=((64, 64),), max_seconds=2.0, guidance=Guidance(2.0, 2.0, 4.0, 2.0, 3.0))


def test_presets_are_relative_to_the_model_and_recognised() -> None:
    assert preset_guidance("balanced", SMALL) == SMALL.guidance
    assert preset_guidance("lips", SMALL).video_align == 6.0 and preset_guidance("free", SMALL).video_align == 2.0
    assert preset_guidance("voice", SMALL).timbre == 4.8
    for name in FACTORS:
        assert preset_of(preset_guidance(name, SMALL), SMALL) == name
    assert preset_of(Guidance(9.0), SMALL) is None
    without = replace(SMALL, guidance=replace(SMALL.guidance, timbre=0.0, video_align=0.0))
    assert preset_guidance("voice", without).timbre == 0.6 and preset_guidance("free", without).video_align == 0.0


def test_what_a_setting_costs_is_counted_in_passes() -> None:
    assert passes_of(Guidance(), "audio_video", True) == 4
    assert passes_of(Guidance(), "audio_video", False) == 3
    assert passes_of(Guidance(video=1, audio=1, timbre=0, align=False), "audio_video", True) == 1
    html = cost_view(TEXT, Guidance(), "audio_video", True)
    assert "4 passes" in html and html.count("1 fewer") == 1, "the voice alone has a pass of its own"


def test_a_quality_is_a_share_of_the_models_own_steps() -> None:
    assert [steps_of(name, ModelSpec("x")) for name in SHARES] == [20, 50, 75]
    assert quality_of(75, ModelSpec("x")) == "best" and quality_of(51, ModelSpec("x")) is None


@given(*[st.lists(st.sampled_from([*"ab ，你", "~~", "word ", "\n"])).map("".join)] * 2)
def test_both_texts_are_whole_in_their_differences(before: str, after: str) -> None:
    found = differences(before, after)
    assert "".join(piece.text for piece in found.before) == before
    assert "".join(piece.text for piece in found.after) == after


def test_differences_are_marked_and_spoken_lines_locked() -> None:
    found = differences("A red ball falls. ~~Hi~~", "A blue ball falls. ~~Hi~~")
    assert [piece.text for piece in found.before if piece.kind == "removed"] == ["red"]
    assert [piece.text for piece in found.after if piece.kind == "added"] == ["blue"]
    assert [(piece.text, piece.number) for piece in found.after if piece.kind == "speech"] == [("~~Hi~~", 1)]
    html = differences_view(TEXT, "a ~~<b>~~", "c ~~<b>~~")
    assert "data-locked" in html and "<b>" not in html
    anew = differences("A red ball falls", "一个红色圆球落下")
    assert not anew.alike and {piece.kind for piece in (*anew.before, *anew.after)} == {"same"}


@pytest.mark.parametrize(
    "stored", [None, 3, "form", [1], {}, {"prompt": 3, "size": [1], "seconds": "x", "steps": True}]
)
def test_anything_that_a_browser_kept_is_a_form(stored: Any) -> None:
    assert kept_words(stored) == {} and kept_settings(stored, SMALL) == {}


def test_what_suits_the_model_is_taken_from_a_kept_form() -> None:
    stored = {"prompt": "雨", "seed": "7", "random_seed": False, "variations": 4, "size": "64x64", "seconds": 9}
    assert kept_words(stored) == {"prompt": "雨", "seed": "7", "random_seed": False, "variations": 4}
    assert kept_settings(stored, SMALL) == {"size": "64x64"}
    assert kept_settings(stored, ModelSpec("NAVA")) == {"seconds": 9}


def test_a_kept_picture_is_an_upload_that_is_still_there(tmp_path: Path) -> None:
    uploads = Path(get_upload_folder())
    uploads.mkdir(parents=True, exist_ok=True)
    mine, other = uploads / "kept.png", tmp_path / "secret.png"
    mine.write_bytes(b"x")
    other.write_bytes(b"x")
    assert kept_words({"image": {"path": str(mine)}}) == {"image": str(mine)}
    assert kept_words({"image": {"path": str(other)}}) == {"image": None}
    mine.unlink()
    assert kept_words({"image": {"path": str(mine)}}) == {"image": None}


def test_variations_have_consecutive_seeds_and_one_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = QueueEngine(SoundRunner(), tmp_path / "out", tmp_path / "queue" / "jobs.sqlite3")
    engine.wait_until_loaded()
    engine.pause()
    request = GenerationRequest("雨", modality="audio", seed=5)
    first = engine.job(submit_variations(engine, request, 4, "ada"))
    group = unfinished(engine, first)
    assert [job.request.seed for job in group] == [5, 6, 7, 8] and {job.owner for job in group} == {"ada"}
    assert len({job.variations for job in group}) == 1 and first.variations is not None
    alone = engine.job(submit_variations(engine, request, 1))
    assert alone.variations is None and unfinished(engine, alone) == [alone]

    submit, count = engine.submit, Counter[str]()

    def fail_at_the_third(*arguments: Any) -> str:
        count["asked"] += 1
        if count["asked"] == 3:
            raise EngineError("the disk is full")
        return submit(*arguments)

    monkeypatch.setattr(engine, "submit", fail_at_the_third)
    before = {job.id for job in engine.jobs() if not job.finished}
    with pytest.raises(EngineError):
        submit_variations(engine, request, 4)
    assert {job.id for job in engine.jobs() if not job.finished} == before, "all of them, or none"
    engine.close()


def test_more_variations_than_the_page_offers_are_refused() -> None:
    from ui.state import Form

    values = dict.fromkeys(Form.__dataclass_fields__, None) | {"variations": 1000}
    with pytest.raises(RequestError, match="1000"):
        _ = Form(**values).number
