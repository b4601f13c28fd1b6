"""What of a clip's recipe goes back into the form."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from gallery_page import SPEC, make_clip
from hypothesis import given, settings
from hypothesis import strategies as st

from nava_core.engine.jobs import Job
from nava_core.request import GenerationRequest
from ui.catalogue import Catalogue
from ui.reuse import PARTS, reused_form
from ui.state import form_values


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A finished job."""
    return make_clip(tmp_path_factory.mktemp("made"), "film.mp4", "A red ball ~~Hello there~~", seed=101)


NOW = form_values(GenerationRequest("now", seed=0), SPEC) | {"voices": []}


def test_all_of_a_recipe_makes_the_form_that_wrote_it(film: Job) -> None:
    recipe = film.recipe
    changed, messages = reused_form(NOW, recipe, PARTS, SPEC)
    assert messages == []
    assert changed == {"prompt": "A red ball ~~Hello there~~", "seed": "101", "random_seed": False}
    assert NOW | changed == form_values(film.request, SPEC) | {"random_seed": False, "voices": []}


def test_only_the_asked_part_changes(film: Job, tmp_path: Path) -> None:
    voice = tmp_path / "v.wav"
    voice.touch()
    recipe = film.recipe | {"speakers": [None, str(voice)], "image": str(voice), "num_inference_steps": 9}
    for part, names in {
        "prompt": {"prompt"},
        "voices": {"voices"},
        "frame": {"image"},
        "seed": {"seed", "random_seed"},
        "new_seed": {"random_seed"},
        "settings": {"steps"},
    }.items():
        changed, messages = reused_form(NOW, recipe, [part], SPEC)
        assert set(changed) == names and messages == [], part
    assert reused_form(NOW, recipe, ["new_seed"], SPEC)[0] == {"random_seed": True}
    assert reused_form(NOW, recipe, ["voices"], SPEC)[0]["voices"] == [None, str(voice)]
    assert reused_form(NOW, recipe, ["nothing"], SPEC) == ({}, [])


def test_what_todays_model_cannot_do_is_said_and_the_rest_restored(film: Job) -> None:
    recipe = film.recipe | {
        "width": 1280,
        "height": 704,
        "num_frames": 241,
        "num_inference_steps": 7,
        "speakers": ["anna.wav"],
        "image": "/gone/first.png",
        "seed": -1,
        "guidance": {"video": 99, "audio": 5.0, "align": "yes", "warmth": 2},
        "negative_prompt": ["x"],
        "modality": "smell",
    }
    changed, messages = reused_form(NOW, recipe, PARTS, replace(SPEC, accepts_images=True))
    assert changed == {"prompt": recipe["prompt"], "steps": 7, "audio": 5.0, "voices": [None]}
    said = "\n".join(messages)
    for words in (
        "Size: nava-nano does not make 1280 × 704",
        "Length: the clip would be 10.00 s",
        "Voices: anna.wav is not kept",
        "First frame: first.png",
        "Seed: seed is -1",
        "guidance video is 99",
        "warmth",
        "guidance align is 'yes'",
        "Negative prompt",
        "Make: modality is 'smell'",
    ):
        assert words in said, words
    unable = replace(SPEC, accepts_images=False, accepts_speakers=False)
    changed, messages = reused_form(NOW, recipe, ["voices", "frame"], unable)
    assert changed == {} and len(messages) == 2
    in_chinese = reused_form(NOW, recipe | {"fps": 16}, ["settings"], SPEC, Catalogue("zh"))[1]
    assert any("每秒 16 帧" in words for words in in_chinese)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=6,
)


FIELDS = [*(item.name for item in fields(GenerationRequest)), "model", "anything"]


@settings(max_examples=200)
@given(st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_no_recipe_breaks_the_form(recipe: dict[str, Any]) -> None:
    changed, messages = reused_form(NOW, recipe, PARTS, SPEC)
    assert set(changed) <= {*NOW, "random_seed"} and all(isinstance(words, str) for words in messages)
    assert all(kept is None or Path(kept).is_file() for kept in changed.get("voices", ()))
