"""The stage and the comparison in a real browser: progress, seeking in the sound, subtitles, playing together."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import DESKTOP, PHONE, needs_chromium, one_person, opened
from stage_server import LINES, SECONDS, SPOKEN, Engine, make_clip, stage_page

from nava_core.engine.jobs import Job
from nava_core.media import read_recipe

pytestmark = needs_chromium
TIME = "document.querySelector('#stage video, #stage audio')?.currentTime"
NEAR = f"to => Math.abs({TIME} - to) < 0.11"
BOX = "document.querySelector('#stage .nava-stage')?.getBoundingClientRect().height"
TIMES = "[...document.querySelectorAll('#compare video')].map(clip => clip.currentTime)"
TOGETHER = f"() => {{ const times = {TIMES}; return Math.max(...times) - Math.min(...times); }}"
HEARD = "[...document.querySelectorAll('#compare video')].map(clip => !clip.muted)"
PLAYING = "[...document.querySelectorAll('#compare video')].every(clip => !clip.paused)"
LOADED = "[...document.querySelectorAll('#compare video')].every(clip => clip.readyState >= 3)"
SUBTITLE = "() => document.querySelector('#stage video')?.textTracks[0]?.activeCues?.[0]?.text"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    film = make_clip(folder, "film")
    running = replace(film, id="running", state="running", phase="denoise", step=1, result=None, recipe=None)
    preview = replace(running, id="preview", step=3, preview=np.full((16, 24, 3), 90, np.uint8))
    others = [make_clip(folder, f"take{seed}", seed=seed) for seed in (2, 3)]
    return Engine(film, running, preview, *others, make_clip(folder, "sound", modality="audio"))


@pytest.fixture(scope="module")
def url(engine: Engine, folder: Path) -> Iterator[str]:
    def without_recipe(path: Path) -> Path:
        copy = folder / "bare" / path.name
        copy.parent.mkdir(exist_ok=True)
        return Path(shutil.copy(path, copy))

    with stage_page(engine, folder, without_recipe=without_recipe) as url:
        yield url


@pytest.fixture(params=[DESKTOP], ids=["desktop"])
def page(request: Any, browser: Any, url: str) -> Iterator[Any]:
    with one_person(browser, viewport=request.param) as context, opened(context, url, "#stage .nava-stage") as page:
        yield page


def write(page: Any, place: str, words: str) -> None:
    page.fill(f"{place} textarea, {place} input", words)
    page.keyboard.press("Enter")


def show(page: Any, job: Job | str) -> None:
    write(page, "#show", str(job))


def show_clip(page: Any, name: str = "film") -> None:
    show(page, name)
    page.wait_for_selector(".nava-wave")
    page.wait_for_function("document.querySelector('#stage video, #stage audio')?.readyState >= 2")


@pytest.mark.parametrize("page", [DESKTOP, PHONE], ids=["desktop", "phone"], indirect=True)
def test_progress_and_preview_do_not_move_the_page(page: Any) -> None:
    show(page, "running")
    page.wait_for_selector('.nava-phase[data-state="now"] >> text=Create')
    assert page.get_attribute("[role=progressbar]", "aria-valuenow") == "1"
    assert "about 12 s left" in page.inner_text("#progress")
    height, below = page.evaluate(BOX), page.evaluate("document.querySelector('#progress').getBoundingClientRect().top")
    show(page, "preview")
    page.wait_for_selector(".nava-stage img")
    page.wait_for_selector("[role=progressbar][aria-valuenow='3']")
    assert page.evaluate(BOX) == height
    assert page.evaluate("document.querySelector('#progress').getBoundingClientRect().top") == below
    show_clip(page)
    page.wait_for_selector("#picture", state="hidden")
    assert page.evaluate(BOX) == height
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]


@pytest.mark.parametrize("name", ["film", "sound"])
def test_the_sound_is_a_place_to_seek(page: Any, name: str) -> None:
    show_clip(page, name)
    wave = page.locator(".nava-wave")
    box = wave.bounding_box()
    wave.click(position={"x": 0.75 * box["width"], "y": 10})
    page.wait_for_function(NEAR, arg=0.75 * SECONDS)
    page.wait_for_function("+document.querySelector('.nava-wave')?.ariaValueNow >= 2.8")
    page.wait_for_selector(f".nava-cue[data-now] >> text={LINES[1]}")
    wave.focus()
    page.keyboard.press("Home")
    page.wait_for_function(NEAR, arg=0)
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.wait_for_function(NEAR, arg=0.3)
    page.keyboard.press("Space")
    page.wait_for_function(f"{TIME} > 0.5")
    page.click(f".nava-cue:has-text('{LINES[1]}')")
    page.wait_for_function(f"{TIME} >= {SPOKEN[1][0] - 0.2}")
    assert page.locator('.nava-wave path[data-colour="2"]').count() == 1


def test_subtitles_can_be_shown_and_saved(page: Any, tmp_path: Path) -> None:
    show_clip(page)
    toggle = page.locator('[data-toggle="subtitles"]')
    assert toggle.get_attribute("aria-pressed") == "false"
    toggle.click()
    page.wait_for_function("document.querySelector('#stage video')?.textTracks[0]?.mode === 'showing'")
    page.evaluate(f"document.querySelector('#stage video').currentTime = {sum(SPOKEN[0]) / 2}")
    page.wait_for_function(f"({SUBTITLE})()?.includes('&lt;b&gt;there')")
    assert toggle.get_attribute("aria-pressed") == "true"
    with page.expect_download() as download:
        page.click("#srt")
    assert download.value.suggested_filename == "film.srt"
    download.value.save_as(tmp_path / "film.srt")
    saved = (tmp_path / "film.srt").read_text(encoding="utf-8")
    assert saved.startswith("1\n00:00:00,") and all(line in saved for line in LINES)
    toggle.click()
    page.wait_for_function("document.querySelector('#stage video')?.textTracks[0]?.mode === 'hidden'")


def test_loop_stays_for_the_next_clip_and_the_clip_is_handed_on(page: Any, tmp_path: Path) -> None:
    show_clip(page)
    page.click('[data-toggle="loop"]')
    page.wait_for_function("document.querySelector('#stage video')?.loop")
    show(page, "running")
    page.wait_for_selector(".nava-wave", state="detached")
    page.wait_for_selector("#download", state="hidden")  # what it would save is not the next clip yet
    show_clip(page, "take2")
    page.wait_for_function("document.querySelector('#stage video')?.loop")
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / "clip.mp4")
    assert read_recipe(tmp_path / "clip.mp4")["seed"] == 2
    page.click("#continue-from")
    page.wait_for_selector("#asked >> text=take2.mp4")
    page.click("#reuse")
    page.wait_for_selector("#asked >> text=parts")


def test_variations_play_together_and_one_is_taken(page: Any) -> None:
    write(page, "#group", "film take2 take3")
    page.wait_for_selector("#compare figure >> nth=2")
    page.wait_for_function(LOADED)
    page.wait_for_function(f"{HEARD}.join() === 'true,false,false'")
    page.click("#compare [data-play]")
    page.wait_for_function(PLAYING)
    for moment in (1, 2):
        page.wait_for_function(f"{TIMES}[0] > {moment}")
        page.wait_for_function(f"({TOGETHER})() < 0.1")
    page.keyboard.press("3")
    page.wait_for_function(f"{HEARD}.join() === 'false,false,true'")
    page.click("#compare [data-play]")
    page.wait_for_function(f"!{PLAYING}")
    page.wait_for_function(f"({TOGETHER})() === 0")
    page.fill("#compare input[type=range]", "0.5")
    page.wait_for_function(f"{TIMES}.every(time => Math.abs(time - {SECONDS / 2}) < 0.1)")
    page.click("#compare figure:nth-child(2) .nava-listen")
    page.wait_for_function(f"{HEARD}.join() === 'false,true,false'")
    page.click("#compare figure:nth-child(2) [data-take]")
    page.wait_for_selector("#asked >> text=take2")
    page.wait_for_selector("#compare", state="hidden")
