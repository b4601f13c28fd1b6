"""Shortcuts and LoRAs on the page and in its endpoints: what of them reaches a request, and comes back of a recipe."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from studio_server import form
from test_app import TEXT

from nava_core.request import GenerationRequest, ModelSpec, RequestError, Shortcuts
from ui.faster import DEFAULTS, LoraFolder, shortcuts_of
from ui.reuse import reused_form
from ui.state import form_values, kept_settings

SPEC = ModelSpec("nano")


@pytest.fixture
def folder(tmp_path: Path) -> LoraFolder:
    for name in ("pencil.safetensors", "fast.safetensors", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    return LoraFolder(tmp_path)


def test_the_page_offers_the_loras_of_a_folder_by_name(folder: LoraFolder, tmp_path: Path) -> None:
    assert folder.names() == ["fast", "pencil"]
    assert folder.path("pencil") == str((tmp_path / "pencil.safetensors").resolve())
    assert LoraFolder().names() == LoraFolder(tmp_path / "gone").names() == []


@pytest.mark.parametrize("name", ["../pencil", "notes", "", None, 3, "/etc/passwd"])
def test_no_path_comes_in_through_a_name(folder: LoraFolder, name: Any) -> None:
    with pytest.raises(RequestError, match="there is fast, pencil") as caught:
        folder.path(name)
    assert caught.value.field == "loras"


def test_the_form_asks_for_them_and_a_request_comes_back_to_the_form(folder: LoraFolder) -> None:
    asked = form(step_cache=0.1, align_until=50, loras=["pencil"], lora_scale=0.8)
    request = asked.request(TEXT, loras=folder)
    assert request.shortcuts == Shortcuts(0.1, align=(0.0, 0.5))
    assert request.loras == ((folder.path("pencil"), 0.8),)
    again = form_values(request.resolve(SPEC), SPEC, folder)
    assert {name: again[name] for name in DEFAULTS} == {name: getattr(asked, name) for name in DEFAULTS}
    plain = form().request(TEXT)
    assert (plain.shortcuts, plain.loras) == (Shortcuts(), ())


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"step_cache": 7.0}, "shortcuts", "step_cache is 7.0"),
        ({"align_until": 120}, "shortcuts", "the steps of align are (0.0, 1.2)"),
        ({"timbre_until": None}, "shortcuts", "the steps of timbre end at None"),
        ({"loras": ["gone"]}, "loras", "there is no LoRA 'gone'"),
        ({"loras": "pencil"}, "loras", "give a list of names"),
        ({"loras": ["pencil"], "lora_scale": "much"}, "loras", "is 'much'; give a number"),
    ],
)
def test_what_makes_no_sense_is_said_beside_its_field(
    folder: LoraFolder, changes: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(RequestError, match=re.escape(words)) as caught:
        form(**changes).request(TEXT, loras=folder).resolve(SPEC)
    assert caught.value.field == field


def test_a_recipe_brings_its_own_back_and_takes_the_forms_away(folder: LoraFolder) -> None:
    request = GenerationRequest(
        "A ball", shortcuts=Shortcuts(0.2, negative=(0.0, 0.25)), loras=((folder.path("fast"), 0.5),)
    )
    now = form_values(GenerationRequest("now", seed=0), SPEC)
    changed, messages = reused_form(now, request.to_recipe(), ["settings"], SPEC, loras=folder)
    assert messages == []
    assert changed == {"step_cache": 0.2, "negative_until": 25.0, "loras": ["fast"], "lora_scale": 0.5}
    plain = GenerationRequest("A ball").to_recipe()
    back, _ = reused_form(now | changed, plain, ["settings"], SPEC, loras=folder)
    assert back == {name: DEFAULTS[name] for name in changed}


def test_what_of_a_recipe_the_form_cannot_hold_is_said(folder: LoraFolder) -> None:
    loras = ((folder.path("fast"), 0.5), (folder.path("pencil"), 1.0), ("/models/gone.safetensors", 1.0))
    request = GenerationRequest("A ball", shortcuts=Shortcuts(align=(0.25, 1.0)), loras=loras)
    now = form_values(GenerationRequest("now", seed=0), SPEC)
    changed, messages = reused_form(now, request.to_recipe(), ["settings"], SPEC, loras=folder)
    assert changed == {"loras": ["fast", "pencil"], "lora_scale": 0.5}
    said = " ".join(messages)
    assert "begin later" in said and "now all have 0.5" in said and "gone.safetensors is not kept" in said
    for broken in ({"shortcuts": {"pace": 2}}, {"shortcuts": 5}, {"loras": [["x", "y"]]}, {"loras": "abc"}):
        assert reused_form(now, broken, ["settings"], SPEC, loras=folder)[0] == {}


def test_a_browser_that_kept_a_form_gets_back_what_is_still_there(folder: LoraFolder) -> None:
    stored = {"step_cache": 0.1, "align_until": 50, "timbre_until": 900, "loras": ["fast", "gone"], "lora_scale": 9}
    kept = kept_settings(stored, SPEC, folder)
    assert kept == {"step_cache": 0.1, "align_until": 50, "loras": ["fast"]}


def test_the_endpoints_take_them_by_name(folder: LoraFolder) -> None:
    assert folder.scaled({"fast": 0.5}) == ((folder.path("fast"), 0.5),)
    assert folder.scaled(None) == () and shortcuts_of(None) == Shortcuts()
    assert shortcuts_of({"step_cache": 0.1, "align": [0.0, 0.5]}) == Shortcuts(0.1, align=(0.0, 0.5))
    with pytest.raises(RequestError, match="no speed; there are step_cache, negative, align, timbre"):
        shortcuts_of({"speed": 2})
    with pytest.raises(RequestError, match="an object of names and scales"):
        folder.scaled(["fast"])
