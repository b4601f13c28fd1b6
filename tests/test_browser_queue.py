"""The queue in a real browser: what two tabs show, what keys, drags and buttons do, import and export."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
import soundfile
from chromium import DESKTOP, PATIENCE, PHONE, needs_chromium, wait_for_value
from chromium import opened as opened_page
from queue_child import SoundRunner
from studio_server import offline_desk

from nava_core.engine.jobs import JobError
from nava_core.engine.queue import QueueEngine
from nava_core.engine.runner import Outcome, Progress, RunFailed
from nava_core.request import GenerationRequest
from ui.catalogue import Catalogue
from ui.queue import build_queue, connect_queue
from ui.service import Service
from ui.studio import launch_options

pytestmark = needs_chromium

WAITING = "[...document.querySelectorAll('.nava-queue-row[data-state=queued] b:first-child')].map(e => e.innerText)"
ORDER_IS = """names => JSON.stringify(names) === JSON.stringify([...document.querySelectorAll(
    '.nava-queue-row[data-state=queued] .nava-queue-words b')].map(e => e.innerText))"""
SHOWN = "document.querySelectorAll('.nava-queue-row:not([hidden])').length"
FOCUS_IS = "([act, words]) => document.activeElement.dataset.act === act && \
    document.activeElement.closest('li')?.innerText.includes(words)"
UNNAMED = """() => [...document.querySelectorAll('#queue button')]
    .filter(e => e.checkVisibility() && !(e.ariaLabel || e.innerText.trim())).map(e => e.outerHTML)"""


class Painter(SoundRunner):
    """Shows a picture, and then waits in each run until it is let go or cancelled; fails with the next of `errors`."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Semaphore(0)
        self.errors: list[RunFailed] = []

    def run(self, task: Any, report: Any, cancelled: threading.Event) -> Outcome:
        report(Progress("denoise", 1, 2, np.full((64, 96, 3), 200, np.uint8)))
        while not self.gate.acquire(timeout=0.01) and not cancelled.is_set():
            pass
        if self.errors:
            raise self.errors.pop(0)
        return super().run(task, report, cancelled)


@pytest.fixture
def runner() -> Painter:
    return Painter()


@pytest.fixture
def engine(tmp_path: Path, runner: Painter) -> Iterator[QueueEngine]:
    engine = QueueEngine(runner, tmp_path / "out")
    engine.wait_until_loaded()
    yield engine
    engine.close()


@contextmanager
def served(engine: QueueEngine, language: str = "en", **options: Any) -> Iterator[str]:
    service = Service(engine, offline_desk(), Catalogue(language))
    with gr.Blocks(fill_width=True) as demo:
        panel = build_queue(service.text)
        connect_queue(service, panel)
        said = gr.Textbox(elem_id="said")
        panel.watched_job.change(lambda chosen: f"watched {chosen['job']}", panel.watched_job, said)
        panel.edited.change(lambda chosen: f"edited {chosen['recipe']['prompt']}", panel.edited, said)
    demo.queue(default_concurrency_limit=None)
    chosen = launch_options(engine.output_dir) | {"mcp_server": False} | options
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **chosen)
    try:
        yield url
    finally:
        demo.close()


@pytest.fixture
def url(engine: QueueEngine) -> Iterator[str]:
    with served(engine) as url:
        yield url


opened = partial(opened_page, ready=".nava-queue-head .nava-queue-facts", state="attached")


def sound(prompt: str, **rest: Any) -> GenerationRequest:
    return GenerationRequest(prompt, modality="audio", **rest)


def button(page: Any, words: str, act: str) -> Any:
    return page.locator(f".nava-queue-row:has-text('{words}') [data-act={act}]")


def wait_order(page: Any, *names: str) -> None:
    page.wait_for_function(ORDER_IS, arg=list(names))


def test_two_tabs_follow_a_job_and_what_is_done_to_the_queue(
    context: Any,
    url: str,
    engine: QueueEngine,
    runner: Painter,
) -> None:
    with opened(context, url) as one, opened(context, url) as two:
        one.wait_for_selector("text=Nothing is waiting")
        running = engine.submit(sound("the <b>first</b> ~~one~~"))
        for name in ("alpha", "beta", "gamma"):
            engine.submit(sound(name))
        for page in (one, two):
            page.wait_for_selector(".nava-queue-row[data-state=running] img")
            assert "the <b>first</b> “one”" in page.inner_text(".nava-queue-row[data-state=running]")
            page.wait_for_selector("[role=progressbar][aria-valuenow='1'][aria-valuemax='2']")
            wait_order(page, "alpha", "beta", "gamma")
        one.click(".nava-queue-row[data-state=running] [data-act=watch]")
        one.wait_for_function("id => document.querySelector('#said textarea')?.value === `watched ${id}`", arg=running)
        button(one, "beta", "edit").click()
        wait_for_value(one, "#said textarea", "edited beta")
        button(one, "beta", "duplicate").click()
        wait_order(two, "alpha", "beta", "gamma", "beta")
        button(two, "alpha", "cancel").click()
        wait_order(one, "beta", "gamma", "beta")
        two.click(".nava-queue-row[data-state=running] [data-act=cancel]")
        one.wait_for_selector(".nava-queue-row[data-state=running]:has-text('beta')")
        assert engine.job(running).state == "cancelled"
        one.click("[data-act=pause]")
        two.wait_for_selector(".nava-queue-bar:has-text('paused')")
        runner.gate.release()
        two.wait_for_selector(".nava-queue-row[data-state=running]", state="detached")
        wait_order(two, "gamma", "beta")
        two.reload()
        wait_order(two, "gamma", "beta")
        two.click("[data-act=resume]")
        one.wait_for_selector(".nava-queue-row[data-state=running]:has-text('gamma')")


def test_the_order_by_keys_buttons_and_drag(context: Any, url: str, engine: QueueEngine) -> None:
    engine.pause()
    for name in ("alpha", "beta", "gamma", "delta"):
        engine.submit(sound(name))
    with opened(context, url) as page:
        wait_order(page, "alpha", "beta", "gamma", "delta")
        button(page, "alpha", "grip").focus()
        page.keyboard.press("ArrowDown")
        wait_order(page, "beta", "alpha", "gamma", "delta")
        page.wait_for_function(FOCUS_IS, arg=["grip", "alpha"])
        assert page.inner_text("#queue .nava-unseen[role=status]") == "Now at place 2 of 4"
        page.keyboard.press("End")
        wait_order(page, "beta", "gamma", "delta", "alpha")
        page.keyboard.press("Home")
        wait_order(page, "alpha", "beta", "gamma", "delta")
        button(page, "delta", "first").click()
        wait_order(page, "delta", "alpha", "beta", "gamma")
        button(page, "gamma", "up").click()
        wait_order(page, "delta", "alpha", "gamma", "beta")
        drag(page, "beta", onto="delta")
        wait_order(page, "beta", "delta", "alpha", "gamma")
        page.wait_for_function("!document.querySelector('[data-dragged]')")
        wait_until_engine_has(page, engine, ["beta", "delta", "alpha", "gamma"])
        button(page, "delta", "cancel").focus()
        page.keyboard.press("Enter")
        wait_order(page, "beta", "alpha", "gamma")
        page.wait_for_function("document.activeElement.closest('li')?.innerText.includes('alpha')")


def drag(page: Any, words: str, onto: str) -> None:
    start = button(page, words, "grip").bounding_box()
    end = page.locator(f".nava-queue-row:has-text('{onto}')").bounding_box()
    page.mouse.move(start["x"] + 5, start["y"] + 5)
    page.mouse.down()
    page.mouse.move(end["x"] + 40, end["y"] + end["height"] / 2, steps=5)
    page.mouse.move(end["x"] + 40, end["y"] + 3, steps=3)
    page.mouse.up()


def wait_until_engine_has(page: Any, engine: QueueEngine, names: list[str]) -> None:
    for _ in range(PATIENCE // 50):
        if [job.request.prompt for job in engine.jobs() if job.state == "queued"] == names:
            return
        page.wait_for_timeout(50)
    raise AssertionError([job.request.prompt for job in engine.jobs()])


def test_failures_say_why_and_what_to_do(
    context: Any,
    url: str,
    engine: QueueEngine,
    runner: Painter,
) -> None:
    runner.errors = [RunFailed(JobError("8 GB are not enough", kind="out_of_memory"))]
    runner.gate.release()
    engine.submit(sound("too large"))
    with opened(context, url) as page:
        page.wait_for_selector(".nava-queue-row[data-state=failed]:has-text('not enough memory')")
        page.wait_for_selector(".nava-queue-trouble:has-text('smaller size')")
        button(page, "too large", "retry").click()
        page.wait_for_selector(".nava-queue-row[data-state=running]:has-text('too large')")
        runner.errors = [RunFailed(JobError("again", kind="internal"))]
        runner.gate.release()
        page.wait_for_selector(".nava-queue-row[data-state=failed]")
        page.click("[data-act=clear]")
        page.wait_for_selector("text=Nothing is waiting")


@pytest.mark.parametrize(("size", "language"), [(DESKTOP, "en"), (PHONE, "zh")], ids=["desktop", "phone-chinese"])
def test_a_hundred_jobs_fold_fit_and_have_names(
    context: Any,
    engine: QueueEngine,
    size: dict[str, int],
    language: str,
) -> None:
    engine.pause()
    for number in range(100):
        engine.submit(sound(f"clip {number:03} {'long ' * 50}{'x' * 80}"))
    with served(engine, language) as url, opened(context, url) as page:
        page.set_viewport_size(size)
        page.wait_for_function(f"{SHOWN} === 20")
        assert "80" in page.inner_text(".nava-queue-more")
        page.click(".nava-queue-more")
        assert page.evaluate(SHOWN) == 100
        button(page, "clip 099", "first").click()
        page.wait_for_selector(".nava-queue-row:first-child:has-text('clip 099')")
        page.click(".nava-queue-more")
        assert page.evaluate(SHOWN) == 20
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        assert page.evaluate(UNNAMED) == []


def test_import_after_a_dry_run_and_export(
    context: Any,
    url: str,
    engine: QueueEngine,
    tmp_path: Path,
) -> None:
    engine.pause()
    lines = [
        {"prompt": "~~hello~~ <script>window.bad=1</script>", "modality": "audio", "seconds": 0.4},
        {"prompt": "~~hidden~~", "spk_wavs": ["/etc/passwd"]},
        {"prompt": "a ball", "modality": "audio", "seed": 7},
    ]
    path = tmp_path / "my queue.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    soundfile.write(tmp_path / "her.wav", np.zeros(16_000), 16_000)
    with opened(context, url) as page:
        page.set_input_files("#queue input[type=file]", [path, tmp_path / "her.wav"])
        page.wait_for_selector("#queue-plan tr[data-bad]:has-text('was not uploaded')")
        assert engine.jobs() == [] and page.evaluate("window.bad") is None
        assert page.locator("#queue-plan tbody tr").count() == 3
        page.click("#queue-accept:has-text('Queue 2 clips')")
        wait_order(page, "“hello” <script>window.bad=1</script>", "a ball")
        page.wait_for_selector("#queue-plan", state="hidden")
        with page.expect_download() as download:
            page.click("#queue-export")
        download.value.save_as(tmp_path / "export.jsonl")
        assert download.value.suggested_filename == "nava-queue.jsonl"
        exported = [json.loads(line) for line in (tmp_path / "export.jsonl").read_text().splitlines()]
        assert [line["prompt"] for line in exported] == [lines[0]["prompt"], lines[2]["prompt"]]
        assert exported[1]["seed"] == 7


def test_with_a_login_everybody_has_an_own_queue(context: Any, browser: Any, engine: QueueEngine) -> None:
    engine.pause()
    anns = engine.submit(sound("of ann"), "ann")
    engine.submit(sound("SECRET of bob"), "bob")
    with served(engine, auth=[("ann", "1"), ("bob", "2")]) as url:
        assert context.request.post(f"{url}login", form={"username": "ann", "password": "1"}).ok
        with opened(context, url) as page:
            wait_order(page, "of ann")
            assert "SECRET" not in page.content() and "1 job of others" not in page.inner_text("#queue")
            button(page, "of ann", "duplicate").click()
            wait_order(page, "of ann", "of ann")
            page.click("[data-act=resume]")
            page.wait_for_selector(".nava-queue-row[data-state=running]")
            page.click("[data-act=pause]")
            page.wait_for_selector("#queue-notice:has-text('Clips of others')")
        other = browser.new_context()
        refused = other.request.post(
            f"{url}gradio_api/component_server",
            data={"data": {}, "component_id": 1, "fn_name": "queue_feed", "session_hash": "x"},
        )
        assert refused.status == 401
        other.close()
    assert [job.owner for job in engine.jobs() if job.request == engine.job(anns).request] == ["ann", "ann"]
