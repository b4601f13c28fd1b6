"""The cast and the script without a browser: their HTML, and what their events do."""

from __future__ import annotations

import asyncio
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np
import pytest
import soundfile
from gradio.utils import get_upload_folder

from nava_core.engine import EngineError, EngineStatus
from nava_core.request import ModelSpec
from ui import cast, cast_views, script, script_views
from ui.assignments import Assignments
from ui.catalogue import Catalogue, entries
from ui.library.recordings import Finding
from ui.library.voices import VoiceLibrary
from ui.service import Service

TEXT = Catalogue("en")
BAD = "<img src=x onerror='bad()'>\"&"


class Tags(HTMLParser):
    def __init__(self, html: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.found if found == tag]


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    time = np.arange(64_000) / 16_000
    soundfile.write(tmp_path / "voice.wav", 0.2 * np.sin(1000 * time) * (time % 0.7 < 0.5), 16_000)
    return tmp_path / "voice.wav"


@pytest.fixture
def library(tmp_path: Path) -> VoiceLibrary:
    return VoiceLibrary(tmp_path / "voices")


class DeafOrNot:
    """An engine that hears of every voice the length of its file's name, or nothing."""

    def __init__(self, accepts: bool = True, fails: bool = False):
        self.status = EngineStatus("ready")
        self.spec = ModelSpec("model", accepts_speakers=accepts)
        self.fails = fails
        self.asked: list[Path] = []

    def speaker_embedding(self, reference: Path) -> np.ndarray:
        self.asked.append(reference)
        if self.fails:
            raise EngineError("the worker is gone")
        return np.ones(192, np.float32)


def service_of(library: VoiceLibrary | None, engine: Any = None, language: str = "en") -> Service:
    return Service(engine or DeafOrNot(), None, Catalogue(language), library)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def panels() -> tuple[cast.CastPanel, script.ScriptPanel]:
    with gr.Blocks():
        return cast.build_cast(TEXT), script.build_script(TEXT)


# What stands on the page


def test_nothing_that_a_person_wrote_becomes_html(library: VoiceLibrary, wav: Path) -> None:
    voice = library.add("", wav, BAD, consent=True)
    other = library.add("", wav, "Ben", consent=True)
    for each in (voice, other):
        library.set_embedding("", each.id, np.ones(192), "model", each.path)
    prompt = f"He says ~~{BAD}~~"
    assignments = Assignments().follow(prompt).assign(0, voice.id)
    shown = [
        cast_views.cards(TEXT, library.list(""), "model", undo=voice),
        script_views.script(TEXT, prompt, assignments, library.list(""), 3.0),
    ]
    for html in shown:
        tags = Tags(html)
        assert not tags.all("img") and BAD in tags.words
    assert Tags(shown[0]).all("input")[0]["value"] == BAD


def test_every_control_of_a_card_has_a_name_and_a_key(library: VoiceLibrary, wav: Path) -> None:
    library.add("", wav, "Ann", consent=True)
    tags = Tags(cast_views.cards(TEXT, library.list("")))
    assert {button.get("aria-label") for button in tags.all("button")} >= {"Play Ann", "Teal", "Slate"}
    assert [button["aria-pressed"] for button in tags.all("button") if "aria-pressed" in button].count("true") == 1
    assert tags.all("svg")[2]["aria-label"] or any(svg.get("aria-label") for svg in tags.all("svg"))


@pytest.mark.parametrize(
    ("cosine", "words"),
    [(0.83, "Very close to Ben (0.83)"), (0.5, "Somewhat like Ben (0.50)"), (0.1, "nearest: Ben, 0.10")],
)
def test_likeness_in_words(library: VoiceLibrary, wav: Path, cosine: float, words: str) -> None:
    ann, ben = (library.add("", wav, name, consent=True) for name in ("Ann", "Ben"))
    assert "Not yet compared" in cast_views.cards(TEXT, library.list(""), "model")
    axes = np.eye(192)
    library.set_embedding("", ann.id, axes[0], "model", ann.path)
    library.set_embedding("", ben.id, cosine * axes[0] + (1 - cosine**2) ** 0.5 * axes[1], "model", ben.path)
    assert words in cast_views.cards(TEXT, library.list(""), "model")
    assert "Not yet compared" in cast_views.cards(TEXT, library.list(""), "another model")
    deaf = cast_views.cards(TEXT, library.list(""), "model", hears=False)
    assert "model cannot follow voices" in deaf and words not in deaf


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_finding_has_words(language: str) -> None:
    text = Catalogue(language)
    for code in ("brief", "lengthy", "clipped", "quiet", "pauses", "noisy", "narrow"):
        assert re.search(r"\d", cast_views.finding(text, Finding(code, 0.5, 3.0)))
    assert "8.0 kHz" in cast_views.finding(TEXT, Finding("narrow", 8000, 16000))
    assert {f"cast.{name}" for name in cast_views.COLOUR_NAMES} <= set(entries())


def test_a_script_that_does_not_fit_says_so() -> None:
    prompt = "~~你好，今天天气很好，我们一起去公园散步吧。~~"
    assignments = Assignments().follow(prompt)
    for seconds, state in ((2.0, "over"), (4.5, "tight"), (10.0, "fits")):
        html = script_views.script(TEXT, prompt, assignments, [], seconds)
        assert f'data-state="{state}"' in html and ("Shorten them" in html) == (state == "over")
    html = script_views.script(TEXT, prompt, assignments, [])
    assert "data-state" not in html and "&lt;S&gt;&lt;extra_id_2&gt;你好" in html


def test_a_deleted_voice_stays_in_sight_until_another_is_chosen() -> None:
    assignments = Assignments(("a",), ("gone",))
    html = script_views.script(TEXT, "~~a~~", assignments, [], hears=False)
    assert '<option value="gone" selected>Deleted voice</option>' in html and "disabled" not in html
    assert "disabled" in script_views.script(TEXT, "~~a~~", Assignments(("a",), (None,)), [], hears=False)


def test_a_model_that_cannot_tell_two_voices_apart_says_what_helps() -> None:
    for voices, said in ((("a", "b"), True), (("a", "a"), False), (("a", None), False)):
        assignments = Assignments(("x", "y"), voices)
        assert (
            TEXT("script.unplaced") in script_views.script(TEXT, "~~x~~ ~~y~~", assignments, [], places=False)
        ) is said
        assert TEXT("script.unplaced") not in script_views.script(TEXT, "~~x~~ ~~y~~", assignments, [])


# What happens


def uploaded(wav: Path) -> dict[str, str]:
    place = Path(get_upload_folder()) / f"{wav.parent.name}-{wav.name}"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(wav.read_bytes())
    return {"path": str(place)}


def test_a_voice_is_added_only_when_all_is_filled_in(
    library: VoiceLibrary, wav: Path, panels: Any, tmp_path: Path
) -> None:
    panel, service = panels[0], service_of(library)
    good = (uploaded(wav), "Ann", True)
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"no sound")
    for given, words in (
        ((None, *good[1:]), "no recording"),
        ((good[0], " ", True), "a name"),
        ((*good[:2], False), "consent"),
        (({"path": "/etc/passwd"}, *good[1:]), "no uploaded file"),
        ((uploaded(broken), *good[1:]), "cannot be read"),
    ):
        found = cast.add(service, panel, "me", *given)
        assert words in found[panel.new_message]["value"] and panel.recording not in found
    found = cast.add(service, panel, "me", *good)
    assert found[panel.recording] is None and "Ann" in found[panel.cards]
    assert [voice.name for voice in library.list("me")] == ["Ann"] and library.list("you") == []


def test_what_is_pressed_on_a_card(library: VoiceLibrary, wav: Path, panels: Any) -> None:
    panel, service = panels[0], service_of(library)
    voice = library.add("me", wav, "Ann", consent=True).id

    def press(owner: str = "me", **asked: Any) -> Any:
        return cast.change(service, panel, owner, asked)

    press(action="rename", voice=voice, name="Anna")
    press(action="recolour", voice=voice, colour=6)
    press(action="trim", voice=voice, start=0.5, end=3.5)
    now = library.get("me", voice)
    assert (now.name, now.colour, now.seconds) == ("Anna", 6, 3.0)
    assert "data:audio/wav;base64," in press(action="play", voice=voice)[panel.player]
    assert "not in the library" in press("you", action="play", voice=voice)[panel.message]["value"]
    assert "the name has" in press(action="rename", voice=voice, name="x" * 99)[panel.message]["value"]
    assert "the cut" in press(action="trim", voice=voice, start="x", end=None)[panel.message]["value"]
    assert "was deleted" in press(action="delete", voice=voice)[panel.cards]
    assert library.list("me") == []
    press(action="undelete", voice=voice)
    assert library.list("me") == [now]
    for nonsense in ({}, {"action": "drop tables"}, {"action": "rename"}, {"action": ["x"], "voice": {}}):
        press(**nonsense)
    assert library.list("me") == [now]


def test_new_voices_are_heard_once(library: VoiceLibrary, wav: Path, panels: Any) -> None:
    panel, engine = panels[0], DeafOrNot()
    for name in ("Ann", "Ben"):
        library.add("", wav, name, consent=True)
    found = asyncio.run(cast.hear(service_of(library, engine), panel, ""))
    assert len(engine.asked) == 2 and "Very close to" in found[panel.cards]
    asyncio.run(cast.hear(service_of(library, engine), panel, ""))
    assert len(engine.asked) == 2
    engine.spec = ModelSpec("another")
    engine.fails = True
    asyncio.run(cast.hear(service_of(library, engine), panel, ""))
    assert {voice.encoder for voice in library.list("")} == {"model"}
    deaf = DeafOrNot(accepts=False)
    found = asyncio.run(cast.hear(service_of(library, deaf), panel, ""))
    assert deaf.asked == [] and "cannot follow voices" in found[panel.cards]


def test_without_a_library_the_panels_are_empty(panels: Any) -> None:
    service = service_of(None)
    assert "No voices yet" in cast.show_voices(service, panels[0], "")[panels[0].cards]
    cast.change(service, panels[0], "", {"action": "play"})
    asyncio.run(cast.hear(service, panels[0], ""))


def test_choosing_voices_for_lines(library: VoiceLibrary, wav: Path, panels: Any) -> None:
    panel, service = panels[1], service_of(library)
    ann = library.add("", wav, "Ann", consent=True)
    prompt = "~~one~~ ~~two~~"
    asked = {"action": "assign", "line": 1, "voice": ann.id}
    stored = script.assign(service, panel, "", prompt, 5, None, asked)[panel.assignments]
    assert stored == {"lines": ["one", "two"], "voices": [None, ann.id]}
    found = script.show_script(service, panel, "", f"~~zero~~ {prompt}", 5, stored)
    assert found[panel.assignments]["voices"] == [None, None, ann.id]
    assert found[panel.lines].count(" selected") == 3
    again = script.show_script(service, panel, "", prompt, None, stored)
    assert again[panel.assignments] == gr.skip()
    for nonsense in ({}, {"line": 7, "voice": ann.id}, {"line": "0"}, {"line": 0, "voice": ["x"]}):
        assert script.assign(service, panel, "", prompt, "x", stored, nonsense)[panel.assignments] == stored


def test_a_library_that_cannot_be_used_is_said_in_the_cast(panels: Any) -> None:
    def fail(owner: str) -> Any:
        raise EngineError("the voice library is on the moon")

    service = service_of(SimpleNamespace(list=fail))  # type: ignore[arg-type]
    assert "moon" in cast.show_voices(service, panels[0], "")[panels[0].message]["value"]
    assert "nava-lines" in script.show_script(service, panels[1], "", "~~a~~", 5, None)[panels[1].lines]
