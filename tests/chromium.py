"""The browser of the tests that need one: how it is started, how large its windows are, how long it is waited for."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the PATH")
PATIENCE = 240_000  # milliseconds, on a machine that is busy with something else
DESKTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
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


def _note_outside(address: str, outside: list[str]) -> None:
    if not address.startswith(("http://127.0.0.1", "http://localhost", "data:", "blob:")):
        outside.append(address)
