"""The cast and the script in a real browser, on a page that holds nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
import soundfile
from chromium import PHONE, come_to_rest, needs_chromium, one_person, with_microphone, without_errors
from studio_server import offline_desk, tiny_pipeline

from nava_core.engine import InProcessEngine
from ui import launch_options
from ui.cast import build_cast, connect_cast
from ui.catalogue import Catalogue
from ui.library.voices import VoiceLibrary
from ui.script import build_script, connect_script
from ui.service import Service

pytestmark = needs_chromium
CARD = ".nava-voice-card"
LINES = "[...document.querySelectorAll('.nava-lines select')].map(each => each.selectedOptions[0].text)"
UNNAMED = """() => [...document.querySelectorAll('#cast :is(button, input, summary), #script :is(select, summary)')]
    .filter(e => e.checkVisibility() && !(e.ariaLabel || e.title || e.innerText?.trim()
        || [...(e.labels || [])].some(label => label.innerText.trim())))
    .map(e => e.outerHTML.slice(0, 200))"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> VoiceLibrary:
    return VoiceLibrary(tmp_path_factory.mktemp("voices"))


@pytest.fixture(scope="module")
def url(library: VoiceLibrary, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    outputs = tmp_path_factory.mktemp("outputs")
    with closing(InProcessEngine(tiny_pipeline, outputs)) as engine, closing(offline_desk()) as desk:
        engine.wait_until_loaded()  # a process must not end while a thread of it loads
        service = Service(engine, desk, Catalogue("en"), library)
        with gr.Blocks() as demo:
            prompt = gr.Textbox(label="Prompt", elem_id="prompt")
            seconds = gr.Slider(1, 10, 5, label="Seconds")
            cast, script = build_cast(service.text), build_script(service.text)
            connect_cast(service, cast)
            connect_script(service, script, prompt, seconds, cast)
        _, address, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options(outputs))
        yield address
        demo.close()


@pytest.fixture
def page(context: Any, url: str) -> Iterator[Any]:
    with without_errors(context) as page:
        page.goto(url)
        yield page


def write_voice(path: Path) -> Path:
    clock = np.arange(64_000) / 16_000
    soundfile.write(path, 0.2 * np.sin(1000 * clock) * (clock % 0.7 < 0.5), 16_000)
    return path


def test_a_voice_from_its_recording_to_its_line(page: Any, library: VoiceLibrary, tmp_path: Path) -> None:
    page.wait_for_selector("#cast .nava-empty")
    page.click("#cast-new > button")
    come_to_rest(page)
    page.set_input_files("#cast-recording input[type=file]", write_voice(tmp_path / "voice.wav"))
    page.wait_for_selector("#cast-recording input[type=file]", state="detached")
    page.fill("#cast-name :is(input, textarea)", "Ann <i>")
    page.click("#cast-add")
    page.wait_for_selector('#cast-new-message [data-kind="error"]:has-text("consent")')
    page.check("#cast-consent input")
    page.click("#cast-add")
    page.wait_for_selector(CARD)
    assert page.input_value(f"{CARD} input[data-action=rename]") == "Ann <i>"
    deadline = time.monotonic() + 120
    while library.list("")[0].encoder != "nava-nano":
        assert time.monotonic() < deadline, "the voice was not heard"
        time.sleep(0.05)

    page.fill("#prompt :is(input, textarea)", "~~Hello~~ he: ~~Hi~~")
    page.wait_for_selector(".nava-lines li >> nth=1")
    page.select_option(".nava-lines select >> nth=1", label="Ann <i>")
    page.wait_for_selector('.nava-lines li[data-colour="1"] >> nth=1')
    page.fill("#prompt :is(input, textarea)", "~~First~~ ~~Hello~~ he: ~~Hi~~")
    page.wait_for_function(f"{LINES}.join() === 'No reference voice,No reference voice,Ann <i>'")
    page.reload()
    page.wait_for_selector(CARD)
    page.fill("#prompt :is(input, textarea)", "~~Hi~~")
    page.wait_for_function(f"{LINES}.join() === 'Ann <i>'")

    page.click(f"{CARD} summary")
    page.click(f"{CARD} [data-action=recolour] >> nth=6")
    page.wait_for_selector('.nava-lines li[data-colour="7"]')
    page.wait_for_function(f"document.querySelector('{CARD} details')?.open")
    page.fill(f"{CARD} input[data-action=rename]", "Anna")
    page.keyboard.press("Enter")
    page.wait_for_function(f"{LINES}.join() === 'Anna'")
    page.click(f"{CARD} .nava-play")
    page.wait_for_function("document.querySelector('#cast-player audio')?.duration > 3.9")
    page.click(f"{CARD} [data-action=delete]")
    page.wait_for_function(f"{LINES}.join() === 'Deleted voice'")
    page.click("[data-action=undelete]")
    page.wait_for_function(f"{LINES}.join() === 'Anna'")
    assert [(voice.name, voice.colour) for voice in library.list("")] == [("Anna", 7)]


def test_a_voice_is_recorded_with_the_microphone(browser: Any, url: str, library: VoiceLibrary, tmp_path: Path) -> None:
    spoken = write_voice(tmp_path / "spoken.wav")
    with (
        with_microphone(browser, spoken) as hearing,
        one_person(hearing, permissions=["microphone"]) as context,
        without_errors(context) as page,
    ):
        page.goto(url)
        page.click("#cast-new > button")
        page.click("#cast-recording button[aria-label='Record audio']")
        page.click("#cast-recording .record-button")
        page.wait_for_selector("#cast-recording .stop-button", state="visible")
        page.wait_for_timeout(4000)  # it is the length that is under test
        page.click("#cast-recording .stop-button")
        page.wait_for_selector("#cast-recording .record-button", state="detached")
        page.fill("#cast-name :is(input, textarea)", "Spoken")
        page.check("#cast-consent input")
        page.click("#cast-add")
        page.wait_for_selector(f'{CARD} input[value="Spoken"]')
    (voice,) = (voice for voice in library.list("") if voice.name == "Spoken")
    assert voice.length > 3
    samples, rate = soundfile.read(voice.path)
    frequencies = np.fft.rfftfreq(len(samples), 1 / rate)
    loudest = frequencies[np.abs(np.fft.rfft(samples if samples.ndim == 1 else samples.mean(1))).argmax()]
    assert loudest == pytest.approx(1000 / (2 * np.pi), abs=3)


def test_a_cut_is_made_by_keyboard_and_all_fits_a_phone(page: Any, library: VoiceLibrary, tmp_path: Path) -> None:
    voice = library.add("", write_voice(tmp_path / "voice.wav"), "L" * 60, consent=True)
    page.set_viewport_size(PHONE)
    page.reload()
    card = f'{CARD}[data-voice="{voice.id}"]'
    page.wait_for_selector(card)
    page.focus(f"{card} summary")
    page.keyboard.press("Enter")
    page.focus(f"{card} [data-edge=start]")
    page.keyboard.press("End")  # not past the end of the cut
    page.keyboard.press("Home")
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    page.wait_for_selector(f"{card} rect.nava-unused")
    # The list is made anew, as when the model has heard a voice: what is not sent yet stays.
    page.click(f"{card} [data-action=recolour] >> nth=4")
    page.wait_for_selector(f'{card}[data-colour="5"] rect.nava-unused')
    page.focus(f"{card} [data-action=trim]")
    page.keyboard.press("Enter")
    page.wait_for_selector(f"{card}:has-text('3.5 s')")
    assert library.get("", voice.id).start == 0.5
    page.fill("#prompt :is(input, textarea)", "~~" + "x" * 200 + "~~ ~~" + "长" * 200 + "~~")
    page.wait_for_selector(".nava-lines li >> nth=1")
    page.click(".nava-receives summary")
    page.click("#cast-new > button")
    page.wait_for_selector("#cast-add")
    page.wait_for_function("document.querySelector('.nava-line')?.clientWidth > 200")
    come_to_rest(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert page.evaluate(UNNAMED) == []
