"""The gallery in a real browser: clips come alive, are found, marked, deleted and brought back, and files dropped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from chromium import PATIENCE, PHONE, needs_chromium
from chromium import opened as opened_page
from gallery_page import Heard, gallery_page, make_clip

from nava_core.media import read_recipe
from ui.library.gallery import GALLERY_DATABASE, Gallery

pytestmark = needs_chromium
NASTY = "<img src=x onerror='window.bad=1'> & {{this}} ${1+1}"
PLAYS = """id => {
    const video = document.querySelector(`.nava-clip[data-id="${id}"] video`);
    return video && video.muted && !video.paused && video.videoWidth === 96;
}"""
SHOWN = "ids => JSON.stringify([...document.querySelectorAll('.nava-clip')].map(e => e.dataset.id)) === ids"
FITS = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
RED, STAR, BAD, ONE, TWO = (letter * 16 for letter in "abcde")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def gallery(folder: Path) -> Iterator[Gallery]:
    gallery = Gallery(folder / GALLERY_DATABASE, folder)
    gallery.add(make_clip(folder, "one.mp4", "Two ways to fall", job=ONE, seed=50, variations="group", created=100.0))
    gallery.add(make_clip(folder, "two.mp4", "Two ways to fall", job=TWO, seed=51, variations="group", created=101.0))
    gallery.add(make_clip(folder, f"{NASTY}.mp4".replace("/", "-"), NASTY, job=BAD, seed=3, created=200.0))
    gallery.add(make_clip(folder, "star.mp4", "星星 a star ~~Hi~~", job=STAR, seed=2, created=300.0))
    gallery.add(make_clip(folder, "red.mp4", "A red ball ~~Hello~~", job=RED, seed=101, created=400.0))
    yield gallery
    gallery.close()


@pytest.fixture(scope="module")
def heard() -> Heard:
    return Heard()


@pytest.fixture(scope="module")
def url(gallery: Gallery, heard: Heard) -> Iterator[str]:
    with gallery_page(gallery, heard=heard) as url:
        yield url


@contextmanager
def opened(context: Any, url: str) -> Iterator[Any]:
    """A page that shows its cards; any error of a script fails the test."""
    with opened_page(context, url, ".nava-clip, .nava-clips-empty") as page:
        yield page
        assert page.evaluate("window.bad") is None


def card(clip_id: str, inside: str = "") -> str:
    return f'.nava-clip[data-id="{clip_id}"] {inside}'


def shows(page: Any, *ids: str) -> None:
    page.wait_for_function(SHOWN, arg="[" + ",".join(f'"{clip_id}"' for clip_id in ids) + "]")


def press(page: Any, clip_id: str, action: str) -> None:
    page.click(card(clip_id, "summary"))
    page.click(card(clip_id, f'[role=menuitem][data-action="{action}"]'))


def until(page: Any, found: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE / 1000
    while not (value := found()) and time.monotonic() < deadline:
        page.wait_for_timeout(30)
    assert value
    return value


def test_a_clip_plays_under_the_pointer_and_opens_on_the_stage(context: Any, url: str, heard: Heard) -> None:
    with opened(context, url) as page:
        page.hover(card(RED, ".nava-clip-frame"))
        page.wait_for_function(PLAYS, arg=RED)
        page.hover(card(STAR, ".nava-clip-frame"))
        page.wait_for_function(PLAYS, arg=STAR)
        page.wait_for_function("document.querySelectorAll('.nava-clip video').length === 1")
        page.hover("#gallery-title")
        page.wait_for_selector(".nava-clip video", state="detached")
        page.focus("#gallery-search input, #gallery-search textarea")
        page.keyboard.press("Tab")
        page.wait_for_function(PLAYS, arg=RED)  # the keyboard's way to the same
        page.keyboard.press("ArrowRight")
        page.wait_for_function(PLAYS, arg=STAR)
        page.keyboard.press("Enter")
        until(page, lambda: (heard.last("opened") or {}).get("id") == STAR)


def test_whatever_was_written_stays_text(context: Any, url: str) -> None:
    with opened(context, url) as page:
        assert page.inner_text(card(BAD, ".nava-clip-text p")) == NASTY
        page.hover(card(BAD, ".nava-clip-frame"))
        page.wait_for_function(PLAYS, arg=BAD)  # its file's name is as bad
        page.fill("#gallery-search input, #gallery-search textarea", f"{NASTY} nowhere")
        page.wait_for_selector(".nava-clips-empty >> text=onerror")
        assert page.locator("#gallery img[src=x]").count() == 0


def test_search_favourites_and_a_clip_that_comes_meanwhile(
    context: Any, url: str, gallery: Gallery, folder: Path
) -> None:
    with opened(context, url) as page:
        shows(page, RED, STAR, BAD, TWO)
        page.fill("#gallery-search input, #gallery-search textarea", "星星 STAR")
        shows(page, STAR)
        page.click(card(STAR, ".nava-clip-star"))
        page.wait_for_selector(card(STAR, '.nava-clip-star[aria-pressed="true"]'))
        page.fill("#gallery-search input, #gallery-search textarea", "")
        shows(page, RED, STAR, BAD, TWO)
        page.click("#gallery-shown label:has-text('Favourites')")
        shows(page, STAR)
        page.click(card(STAR, ".nava-clip-star"))
        page.wait_for_selector(".nava-clips-empty")
        page.click("#gallery-shown label:has-text('All')")
        shows(page, RED, STAR, BAD, TWO)
        page.click(card(STAR, "summary"))
        gallery.add(make_clip(folder, "new.mp4", "Just made", job="f" * 16, created=500.0))
        shows(page, "f" * 16, RED, STAR, BAD, TWO)
        page.wait_for_selector(card(STAR, "details[open]"))  # the menu follows its card
        page.keyboard.press("Escape")
        page.wait_for_selector("details[open]", state="detached")
        gallery.delete("", "f" * 16)
        shows(page, RED, STAR, BAD, TWO)


def test_a_deleted_clip_is_brought_back(context: Any, url: str, gallery: Gallery) -> None:
    with opened(context, url) as page:
        press(page, RED, "delete")
        shows(page, STAR, BAD, TWO)
        page.wait_for_selector("#gallery-undo >> text=Clip deleted")
        assert not gallery.clip("", RED).path.exists()
        page.click("#gallery-undo-button")
        shows(page, RED, STAR, BAD, TWO)
        page.wait_for_selector("#gallery-undo", state="hidden")
        page.focus(card(RED, ".nava-clip-frame"))
        page.keyboard.press("Delete")
        shows(page, STAR, BAD, TWO)
    with opened(context, url) as page:  # another day
        page.click("#gallery-shown label:has-text('Deleted')")
        page.wait_for_selector(card(RED, "summary"))
        press(page, RED, "restore")
        page.click("#gallery-shown label:has-text('All')")
        shows(page, RED, STAR, BAD, TWO)


def test_variations_are_unfolded_and_compared(context: Any, url: str, heard: Heard) -> None:
    with opened(context, url) as page:
        page.wait_for_selector(card(TWO, ".nava-clip-badge >> text=2 variations"))
        press(page, TWO, "compare")
        until(page, lambda: (heard.last("compare") or {}).get("ids") == [ONE, TWO])
        press(page, TWO, "unfold")
        shows(page, RED, STAR, BAD, ONE, TWO)
        press(page, ONE, "seed")
        reuse = until(page, lambda: heard.last("reuse"))
        assert reuse["parts"] == ["seed"] and reuse["recipe"]["seed"] == 50
        press(page, ONE, "fold")
        shows(page, RED, STAR, BAD, TWO)
        press(page, RED, "continue")
        continued = until(page, lambda: heard.last("continued"))
        assert Path(continued["image"]).read_bytes().startswith(b"\x89PNG") and continued["recipe"]["seed"] == 101


def test_an_exported_file_has_no_recipe_where_that_is_wanted(context: Any, url: str, tmp_path: Path) -> None:
    def downloaded(page: Any, name: str) -> Path:
        with page.expect_download() as download:
            press(page, RED, "download")
        assert download.value.suggested_filename == "red.mp4"
        download.value.save_as(tmp_path / name)
        return tmp_path / name

    with opened(context, url) as page:
        assert read_recipe(downloaded(page, "with.mp4"))["seed"] == 101
        page.check("#gallery-private input")
        with pytest.raises(ValueError, match="holds no recipe"):
            read_recipe(downloaded(page, "without.mp4"))
    with opened(context, url) as page:
        page.wait_for_function("document.querySelector('#gallery-private input')?.checked")


def test_a_dropped_clip_restores_its_recipe(
    context: Any, url: str, gallery: Gallery, heard: Heard, tmp_path: Path
) -> None:
    clip, broken = gallery.clip("", RED).path, tmp_path / "broken.mp4"
    broken.write_bytes(clip.read_bytes()[:700])
    nasty = tmp_path / f"{NASTY}.mp4"
    nasty.write_bytes(clip.read_bytes())
    with opened(context, url) as page:
        page.click("#recipe-drop > button")
        page.set_input_files("#recipe-drop-file input[type=file]", broken)
        page.wait_for_selector("#recipe-drop-notice >> text=cannot be read")
        page.click("#recipe-drop-file button[aria-label='Clear']")
        page.wait_for_selector("#recipe-drop-notice", state="hidden")
        page.set_input_files("#recipe-drop-file input[type=file]", nasty)
        page.wait_for_selector("#recipe-drop-found >> text=A red ball ~~Hello~~")
        page.click("#recipe-keep-seed")
        reuse = until(page, lambda: (found := heard.last("reuse")) and "settings" in found["parts"] and found)
        assert reuse["recipe"]["seed"] == 101 and "seed" in reuse["parts"]
        page.wait_for_selector("#recipe-keep-seed", state="hidden")
        page.set_input_files("#recipe-drop-file input[type=file]", clip)
        page.click("#recipe-new-seed")
        until(page, lambda: "new_seed" in heard.last("reuse")["parts"] and "seed" not in heard.last("reuse")["parts"])


def test_a_phone_in_chinese(context: Any, gallery: Gallery) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    with gallery_page(gallery, "zh") as url, opened(context, url) as page:
        page.set_viewport_size(PHONE)
        page.wait_for_function(FITS)
        page.click(card(RED, "summary"))
        menu = page.locator(card(RED, "[role=menu]")).bounding_box()
        assert menu["x"] >= 0 and menu["x"] + menu["width"] <= PHONE["width"]
        assert "从最后一帧继续" in page.inner_text(card(RED, "[role=menu]"))
        page.wait_for_function(FITS)
        violations = axe.run(page, "#gallery").response["violations"]
        assert [found["id"] for found in violations if found["impact"] in ("serious", "critical")] == []


def test_who_logs_in_sees_their_own_clips(context: Any, tmp_path: Path) -> None:
    gallery = Gallery(tmp_path / GALLERY_DATABASE, tmp_path)
    gallery.add(make_clip(tmp_path, "ann.mp4", "Ann's", job=RED, owner="ann"))
    gallery.add(make_clip(tmp_path, "bob.mp4", "Bob's", job=STAR, owner="bob"))
    with gallery_page(gallery, auth=[("ann", "secret-a"), ("bob", "secret-b")]) as url:
        for name, clip_id in (("ann", RED), ("bob", STAR)):
            answer = context.request.post(f"{url}login", form={"username": name, "password": f"secret-{name[0]}"})
            assert answer.ok
            with opened(context, url) as page:
                shows(page, clip_id)
    gallery.close()
