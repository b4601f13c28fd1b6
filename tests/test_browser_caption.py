"""Rewriting a prompt in a real browser: the caption is shown, used, taken back, stopped and found again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from chromium import PROMPT_IS, needs_chromium, opened, write
from studio_server import TypingModel, studio, tiny_pipeline

from nava_core.engine import InProcessEngine
from rewriter import Rewriter
from ui.rewriting import RewriteDesk

pytestmark = needs_chromium
CAPTION_HOLDS = """text => document.querySelector('#caption-status [data-outcome]')
    && document.querySelector('#caption textarea')?.value.includes(text)"""
ENGLISH = "A red ball falls. She says: ~~Hello <b>there</b>~~"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcessEngine]:
    engine = InProcessEngine(tiny_pipeline, tmp_path_factory.mktemp("outputs"))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def url(engine: InProcessEngine) -> Iterator[str]:
    with studio(engine, engine.output_dir) as url:
        yield url


@pytest.fixture
def model() -> TypingModel:
    return TypingModel()


@pytest.fixture
def typing_url(engine: InProcessEngine, model: TypingModel) -> Iterator[str]:
    """A page whose captions are typed while one can watch."""
    with studio(engine, engine.output_dir, desk=RewriteDesk(lambda: Rewriter(model))) as url:
        yield url


def test_a_prompt_is_rewritten_used_taken_back_and_made(context: Any, url: str, engine: InProcessEngine) -> None:
    with opened(context, url) as page:
        write(page, ENGLISH)
        page.click("#rewrite")
        page.wait_for_function(CAPTION_HOLDS, arg="~~Hello <b>there</b>~~")
        assert "offline composer" in page.inner_text("#caption-status")
        page.click("#use-caption")
        page.wait_for_selector("#caption-section", state="hidden")
        page.wait_for_function("document.querySelector('#prompt textarea')?.value.includes('红色')")
        page.click("#undo-caption")
        page.wait_for_function(PROMPT_IS, arg=ENGLISH)
        page.wait_for_selector("#caption-section")

        page.click("#rewrite-and-generate")
        page.wait_for_selector("#clip video")
        page.wait_for_function(PROMPT_IS, arg=ENGLISH)
        page.wait_for_function(
            "document.querySelector('#random-seed input')?.checked"
            " && /^[0-9]+$/.test(document.querySelector('#seed input')?.value)"
        )
        page.wait_for_selector("#recipe >> text=Written by you")
    recipe = engine.jobs()[0].recipe
    assert recipe is not None and recipe["original_prompt"] == ENGLISH
    assert "红色" in recipe["prompt"] and "~~Hello <b>there</b>~~" in recipe["prompt"]


def test_a_caption_of_an_earlier_prompt_is_marked_and_not_used(context: Any, url: str, engine: InProcessEngine) -> None:
    with opened(context, url) as page:
        write(page, "A ball")
        page.click("#rewrite")
        page.wait_for_selector("#use-caption")
        write(page, "A star")
        page.wait_for_selector("#caption-stale .nava-message")
        write(page, "A ball")
        page.wait_for_selector("#caption-stale .nava-message", state="hidden")
        write(page, "A star")
        page.wait_for_selector("#caption-stale .nava-message")
        page.click("#generate")
        page.wait_for_selector("#clip video")
    assert engine.jobs()[0].request.prompt == "A star"


def test_thinking_is_a_quiet_sign_and_writing_can_be_stopped(context: Any, typing_url: str, model: TypingModel) -> None:
    model.thought.clear()
    model.typed.clear()
    with opened(context, typing_url) as page:
        write(page, "a quiet café")
        page.click("#rewrite")
        page.wait_for_selector('#caption-status [data-state="thinking"]')
        assert "SECRET" not in page.inner_text("#scene") and page.input_value("#caption textarea") == ""
        model.thought.set()
        page.wait_for_function(
            "document.querySelector('#caption-status [data-state=writing]')"
            " && document.querySelector('#caption textarea')?.value.length > 20"
        )
        page.click("#stop-rewriting")
        page.wait_for_selector('#caption-status [data-state="cancelled"]')
        page.wait_for_selector("#caption textarea", state="hidden")
        page.wait_for_selector("#rewrite:not([disabled])")
        page.wait_for_function(PROMPT_IS, arg="a quiet café")


def test_a_tab_closed_while_a_caption_is_written_finds_its_clip(
    context: Any, typing_url: str, model: TypingModel
) -> None:
    model.typed.clear()
    with opened(context, typing_url) as page:
        write(page, ENGLISH)
        page.click("#rewrite-and-generate")
        page.wait_for_selector('#caption-status [data-state="writing"]')
        # What the browser keeps is written behind the page's back.
        page.wait_for_function("localStorage.getItem('nava-studio-draft') !== null")
    page = context.new_page()
    page.goto(typing_url)
    page.wait_for_selector('#caption-status [data-state="writing"]')
    page.wait_for_function(PROMPT_IS, arg=ENGLISH)
    model.typed.set()
    page.wait_for_selector("#clip video")
    page.wait_for_function(PROMPT_IS, arg=ENGLISH)
    page.wait_for_function(CAPTION_HOLDS, arg="~~Hello <b>there</b>~~")
    page.close()
