"""The app as people start it, with its worker, in a real browser: what is left of a queue after anything was killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import psutil
import pytest
from chromium import PATIENCE, fill_number, needs_chromium, one_person, without_errors
from chromium import opened as opened_page
from soak_checks import LAUNCHER, WORKER, read_store
from studio_server import tiny_pipeline

from nava_core.media import read_recipe

pytestmark = [needs_chromium, pytest.mark.slow]
ROOT = Path(__file__).parents[1]
MANY = 100
STAGED = "() => document.querySelector('#clip video')?.getAttribute('src')"
ENDED = "document.querySelectorAll('#gallery .nava-clip').length"


class App:
    """`python app.py` on a port and a folder of its own; may be killed and started again."""

    def __init__(self, model: Path, folder: Path, *options: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.output = folder / "outputs"
        self.url = f"http://127.0.0.1:{port}"
        self._log = folder / "app.log"
        self._command = [sys.executable, "app.py", "--model", str(model), "--port", str(port), "--rewriter", "offline"]
        self._command += ["--output-dir", str(self.output), "--dtype", "float32", *options]
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, cwd=ROOT, stdout=log, stderr=log)
        until(self._answers, lambda: self._log.read_text(errors="replace")[-2000:])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        finally:
            self.process.kill()

    def workers(self) -> list[psutil.Process]:
        return [each for each in psutil.Process(self.process.pid).children(recursive=True) if _is_worker(each)]

    def jobs(self) -> list[dict[str, Any]]:
        return read_store(self.output, app_lives=True)

    def states(self) -> list[str]:
        return [job["state"] for job in self.jobs()]

    def _answers(self) -> bool:
        try:
            return bool(urllib.request.urlopen(self.url, timeout=30).read())
        except OSError:
            return False


def _is_worker(process: psutil.Process) -> bool:
    try:
        words = process.cmdline()
        return WORKER in words and LAUNCHER not in words  # the launcher names what it starts
    except psutil.Error:  # it ends while one looks
        return False


def until(true: Callable[[], Any], words: Callable[[], Any] = str, patience: float = PATIENCE / 1000) -> None:
    ends = time.monotonic() + patience
    while not true():
        assert time.monotonic() < ends, words()
        time.sleep(0.05)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def app(model: Path, tmp_path: Path) -> Iterator[App]:
    app = App(model, tmp_path)
    yield app
    app.close()


opened = partial(opened_page, ready="#generate:not([disabled])")


def submit(page: Any, prompt: str, steps: int) -> None:
    page.fill("#prompt textarea", prompt)
    if not page.is_visible("#steps input[type=number]"):
        page.click("#advanced > button")
    fill_number(page, "#steps", str(steps))
    page.click("#generate")


def begin_two(page: Any, app: App) -> None:
    """A long clip, "one", that is being made, and a short one, "two", that waits for it."""
    submit(page, "one", steps=100)
    page.wait_for_selector("#stage [role=progressbar]")
    submit(page, "two", steps=4)
    # Kept is what the store holds: the press is on its way until then.
    until(lambda: len(app.jobs()) == 2 and "running" in app.states() and bool(app.workers()), app.jobs)


def test_a_killed_worker_costs_a_start_and_no_clip(context: Any, app: App) -> None:
    with opened(context, app.url) as page:
        begin_two(page, app)
        (worker,) = app.workers()
        os.kill(worker.pid, signal.SIGKILL)
        until(lambda: app.states() == ["done", "done"], app.jobs)
        page.wait_for_function(STAGED)
        page.wait_for_function(f"{ENDED} === 2")
    first, second = app.jobs()
    assert (first["attempts"], second["attempts"]) == (2, 1)
    assert [read_recipe(app.output / job["result"])["prompt"] for job in (first, second)] == ["one", "two"]


def test_a_killed_app_is_taken_up_again_by_the_tab_that_was_open(context: Any, app: App) -> None:
    with opened(context, app.url) as page:
        begin_two(page, app)
        workers = app.workers()
        app.kill()
        until(lambda: not any(worker.is_running() and _is_worker(worker) for worker in workers))
        page.wait_for_selector("#queue >> text=/answer|away|reach/i")
        app.start()
        # Gradio's page comes back by itself, and with it the words, the job and the queue.
        page.wait_for_selector("#generate:not([disabled])")
        page.wait_for_function("document.querySelector('#prompt textarea')?.value === 'two'")
        until(lambda: all(state in ("done", "interrupted") for state in app.states()), app.jobs)
        page.wait_for_function(f"{ENDED} >= 1")
    assert [job["request"]["prompt"] for job in app.jobs()] == ["one", "two"]
    assert app.jobs()[1]["state"] == "done"


@pytest.mark.timeout(MANY * 20 + 600)
def test_a_hundred_jobs_from_a_file_on_the_page(context: Any, app: App, tmp_path: Path) -> None:
    lines = [{"prompt": f"job {number}", "num_inference_steps": 2, "seed": number} for number in range(MANY)]
    file = tmp_path / "hundred.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    with opened(context, app.url) as page:
        page.set_input_files("#queue input[type=file]", file)
        page.wait_for_selector("#queue-plan >> text=100")
        page.click("#queue-accept")
        until(lambda: len(app.jobs()) == MANY)
        began = time.monotonic()
        page.fill("#prompt textarea", "still written while a hundred wait")
        seconds = time.monotonic() - began
        print(f"a sentence takes {seconds:.2f} s while a hundred jobs are listed")
        page.locator(".nava-queue-row[data-state=queued]:not([hidden]) [data-act=cancel]").last.click()
        until(lambda: "cancelled" in app.states())
        page.reload()
        page.wait_for_selector(".nava-queue-row")
        os.kill(app.workers()[0].pid, signal.SIGKILL)
        until(lambda: not {"queued", "running"} & {*app.states()}, app.states, patience=MANY * 20.0)
        page.wait_for_function("!document.querySelector('.nava-queue-row[data-state=queued]')")
    jobs = app.jobs()
    assert sorted(job["state"] for job in jobs) == ["cancelled"] + ["done"] * (MANY - 1)
    assert all((app.output / job["result"]).is_file() for job in jobs if job["state"] == "done")
    assert [job["request"]["seed"] for job in jobs] == [*range(MANY)]


def test_two_people_who_log_in_see_nothing_of_each_other(browser: Any, model: Path, tmp_path: Path) -> None:
    passwords = {"anna": "sunflower", "ben": "ocean"}
    with closing(App(model, tmp_path, *(f"--auth={name}:{word}" for name, word in passwords.items()))) as app:
        for name, word in passwords.items():
            with one_person(browser) as context, without_errors(context) as page:
                page.goto(app.url)
                page.get_by_label("username").fill(name)
                page.get_by_label("password").fill(word)
                page.get_by_role("button", name="login").click()
                page.wait_for_selector("#generate:not([disabled])")
                if name == "anna":
                    submit(page, "hers alone", steps=2)
                    address = page.wait_for_function(STAGED).json_value()
                    page.wait_for_function(f"{ENDED} === 1")
                    assert context.request.get(urljoin(app.url, address)).ok
                else:
                    page.wait_for_selector(".nava-clips-empty")
                    assert "hers alone" not in page.content()
                    assert context.request.get(urljoin(app.url, address)).status in (403, 404)
