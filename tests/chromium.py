"""The browser of the tests that need one: how it is started, how large its windows are, how long it is waited for."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the PATH")
PATIENCE = 240_000  # milliseconds, on a machine that is busy with something else
DESKTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
PROMPT_IS = "text => document.querySelector('#prompt textarea')?.value === text"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def launched() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def with_microphone(browser: Any, recording: Path) -> Iterator[Any]:
    """A browser beside `browser` whose microphone hears the WAV file `recording`, over and over."""
    heard = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    heard.append(f"--use-file-for-fake-audio-capture={recording}")
    second = browser.browser_type.launch(executable_path=CHROMIUM, args=[*ARGUMENTS, *heard])
    yield second
    second.close()


@contextmanager
def one_person(browser: Any, **options: Any) -> Iterator[Any]:
    """A browser context: its pages share their local storage. Nothing may be asked of the outside."""
    context = browser.new_context(**{"viewport": DESKTOP, "accept_downloads": True} | options)
    context.set_default_timeout(PATIENCE)
    context.set_default_navigation_timeout(PATIENCE)
    outside: list[str] = []
    context.on("request", lambda request: _note_outside(request.url, outside))
    yield context
    context.close()
    assert not outside


@contextmanager
def without_errors(context: Any) -> Iterator[Any]:
    """A new page; any error of a script fails the test."""
    page, errors = context.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    page.close()
    assert not errors


@contextmanager
def opened(
    context: Any, url: str, ready: str = "#generate:not([disabled]), #cancel", state: str = "visible"
) -> Iterator[Any]:
    """A page that shows what is `ready` when it is, the form's buttons unless told; any error of a script fails the
    test. state: of that, "visible" or "attached".
    """
    with without_errors(context) as page:
        page.goto(url)
        page.wait_for_selector(ready, state=state)
        yield page


def write(page: Any, prompt: str) -> None:
    page.fill("#prompt textarea", prompt)


def wait_for_value(page: Any, place: str, value: str) -> None:
    """Until a field shows it: a page draws its parts one after another, and makes some of them anew."""
    page.wait_for_function("([place, value]) => document.querySelector(place)?.value === value", arg=[place, value])


def come_to_rest(page: Any) -> None:
    """Gradio mounts what an accordion holds when it is opened, and on a slow machine sets its values a moment later."""
    page.wait_for_timeout(500)
    page.evaluate("() => new Promise(done => requestIdleCallback(() => done(), {timeout: 10000}))")


def fill_number(page: Any, slider: str, value: str) -> None:
    """In an accordion that was just opened, where what is written faster than a person can may be lost: then again."""
    number = page.locator(f"{slider} input[type=number]")
    for _ in range(10):
        number.fill(value)
        number.press("Tab")
        come_to_rest(page)
        if number.input_value() == value:
            return
    raise AssertionError(f"{slider} is {number.input_value()} again and again, not {value}")


def wait_until_kept(page: Any, seconds: int = 15) -> None:
    """The browser stores the form behind the page's back, encrypted: only its rest tells that the last change is in it.

    One that does not rest is warned of; whether it holds what was typed, a reload tells.
    """
    kept: list[str | None] = []
    for _ in range(seconds):
        page.wait_for_timeout(1000)
        kept.append(page.evaluate("localStorage.getItem('nava-studio-form')"))
        if kept[-1] is not None and kept[-2:] == 2 * kept[-1:]:
            return
    warnings.warn(f"{len(set(kept))} forms in {seconds} s, none of them for {kept.count(None)} s", stacklevel=2)


def _note_outside(address: str, outside: list[str]) -> None:
    if not address.startswith(("http://127.0.0.1", "http://localhost", "data:", "blob:")):
        outside.append(address)
