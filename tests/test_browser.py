"""The page in a real browser: a person's way from a prompt to a clip, on the golden bundle's pipeline."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from chromium import (
    DESKTOP,
    PHONE,
    PROMPT_IS,
    come_to_rest,
    fill_number,
    needs_chromium,
    opened,
    wait_for_value,
    wait_until_kept,
    write,
)
from PIL import Image
from studio_server import held_up, random_lora, slow_down, studio, tiny_pipeline

from nava_core.engine import InProcessEngine
from nava_core.media import read_recipe
from nava_core.request import GenerationRequest
from nava_core.speech import parse_speech
from ui.examples import examples_for

pytestmark = needs_chromium
UNNAMED_CONTROLS = """() => {
    const named = e => e.ariaLabel || e.title || e.innerText?.trim()
        || [...(e.labels || [])].some(label => label.innerText.trim());
    return [...document.querySelectorAll('main input, main textarea, main button')]
        .filter(e => e.checkVisibility() && !named(e)).map(e => e.outerHTML.slice(0, 200));
}"""
# Both places are read in one layout, and again until the page has come to rest: it scrolls to the message.
BESIDE_ITS_FIELD = """text => {
    const message = [...document.querySelectorAll('.nava-message[data-kind="error"]')]
        .find(e => e.innerText.includes(text))?.getBoundingClientRect();
    const field = document.querySelector('#seed')?.getBoundingClientRect();
    if (!message || !field) return false;
    const below = message.top - field.bottom;
    return below >= 0 && below < 60 && Math.abs(message.left - field.left) < 20;
}"""
PANELS = (
    "const [writing, stage] = ['#authoring', '#stage'].map(e => document.querySelector(e).getBoundingClientRect());"
)
BESIDE_EACH_OTHER = f"() => {{ {PANELS} return stage.left >= writing.right; }}"
BELOW_EACH_OTHER = f"() => {{ {PANELS} return stage.top >= writing.bottom; }}"
NO_RANDOM_SEED = "document.querySelector('#random-seed input')?.checked === false"
OUT_OF_SIGHT = """() => [...document.querySelectorAll('#bar :is(button, input, label)')]
    .filter(e => e.checkVisibility() && e.getBoundingClientRect().right > window.innerWidth)
    .map(e => e.outerHTML.slice(0, 120))"""
READ_AS_PYTHON = "texts => texts.map(text => nava.parseSpeech(text).map(span => [span.text, span.closed]))"
USABLE_WITHIN = 60.0  # seconds, on a machine that is busy with something else


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return tiny_pipeline()


@pytest.fixture(scope="module")
def engine(pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcessEngine]:
    engine = InProcessEngine(lambda: pipeline, tmp_path_factory.mktemp("outputs"))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def url(engine: InProcessEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    loras = tmp_path_factory.mktemp("loras")
    random_lora(tiny_pipeline(), loras).rename(loras / "pencil.safetensors")
    with studio(engine, engine.output_dir, lora_dir=loras) as url:
        yield url


def step_shown(page: Any) -> int:
    return int(page.get_attribute("[role=progressbar]", "aria-valuenow"))


def choose_seed(page: Any, seed: str) -> None:
    """With what follows from it in the browser."""
    page.fill("#seed input", seed)
    page.wait_for_function(NO_RANDOM_SEED)


def test_from_prompt_to_clip(context: Any, url: str, pipeline: Any, engine: InProcessEngine, tmp_path: Path) -> None:
    with opened(context, url) as page:
        write(page, "一个圆球落下。她说：~~你好~~ 他说：~~<img src=x onerror='window.bad=1'>~~")
        page.wait_for_selector("#prompt mark >> nth=1")
        assert page.locator("#prompt mark").all_inner_texts()[1] == "~~<img src=x onerror='window.bad=1'>~~"
        assert page.evaluate("window.bad") is None
        page.wait_for_selector("#tokens >> text=of 512 tokens")
        with held_up(pipeline, engine):
            page.click("#generate")
            page.wait_for_selector("[role=progressbar]")
            page.wait_for_selector(".nava-stage img")
            page.wait_for_selector("#generate:has-text('queue')")
        page.wait_for_function("document.querySelector('#clip video')?.videoWidth === 96")
        seed = str(engine.jobs()[0].request.seed)
        wait_for_value(page, "#seed input", seed)
        page.wait_for_selector(f"#recipe >> text={seed}")
        with page.expect_download() as download:
            page.click("#download")
        download.value.save_as(tmp_path / "clip.mp4")
        assert str(read_recipe(tmp_path / "clip.mp4")["seed"]) == seed
        page.wait_for_selector("#cancel", state="hidden")
        assert page.is_enabled("#generate") and page.is_checked("#random-seed input")


def test_an_error_stands_beside_its_field_and_nothing_typed_is_lost(context: Any, url: str) -> None:
    with opened(context, url) as page:
        write(page, "一个圆球")
        choose_seed(page, "seven")
        page.click("#generate")
        page.wait_for_selector('.nava-message[data-kind="error"]:has-text("seven")')
        page.wait_for_function(BESIDE_ITS_FIELD, arg="seven")
        assert page.input_value("#prompt textarea") == "一个圆球" and page.input_value("#seed input") == "seven"
        page.fill("#seed input", "7")
        page.click("#generate")
        page.wait_for_selector("#clip video")
        assert not page.is_visible('.nava-message[data-kind="error"]') and page.input_value("#seed input") == "7"


def test_shortcuts_and_loras_reach_the_clip_and_come_back_with_it(context: Any, url: str) -> None:
    with opened(context, url) as page:
        write(page, "一个圆球落下")
        page.click("#advanced > button")
        fill_number(page, "#lora-scale", "0.5")
        page.click("#loras input")
        page.click("text=pencil")
        page.keyboard.press("Escape")
        page.click("#faster > button")
        fill_number(page, "#step-cache", "0.2")
        fill_number(page, "#align-until", "50")
        page.click("#generate")
        page.wait_for_selector("#clip video")
        with page.expect_download() as download:
            page.click("#download")
        recipe = read_recipe(Path(download.value.path()))
        ((path, scale),) = recipe["loras"]
        assert (Path(path).name, scale) == ("pencil.safetensors", 0.5)
        assert (recipe["shortcuts"]["step_cache"], recipe["shortcuts"]["align"]) == (0.2, [0.0, 0.5])
        fill_number(page, "#step-cache", "0")
        wait_until_kept(page)
        page.reload()
        page.wait_for_selector("#generate:not([disabled])")
        page.click("#advanced > button")
        page.wait_for_selector("#loras >> text=pencil")
        page.click("#faster > button")
        wait_for_value(page, "#step-cache input[type=number]", "0")
        wait_for_value(page, "#align-until input[type=number]", "50")


def add_voice(page: Any, recording: Path, name: str) -> None:
    page.click("#cast-new > button")
    come_to_rest(page)
    page.set_input_files("#cast-recording input[type=file]", recording)
    page.wait_for_selector("#cast-recording input[type=file]", state="detached")
    page.fill("#cast-name :is(input, textarea)", name)
    page.check("#cast-consent input")
    page.click("#cast-add")


def test_a_voice_that_cannot_be_read_is_said_where_it_was_added(context: Any, url: str, tmp_path: Path) -> None:
    bad = tmp_path / "voice.wav"
    bad.write_bytes(b"RIFF no sound")
    with opened(context, url) as page:
        write(page, "圆球 ~~你好~~")
        add_voice(page, bad, "Ann")
        page.wait_for_selector('#cast-new-message .nava-message[data-kind="error"]')
        assert page.input_value("#prompt textarea") == "圆球 ~~你好~~"
        assert page.input_value("#cast-name :is(input, textarea)") == "Ann"


def test_first_frame_and_voices_reach_the_clip(context: Any, url: str, engine: InProcessEngine, tmp_path: Path) -> None:
    image, voice = tmp_path / "first.png", tmp_path / "voice.wav"
    Image.new("RGB", (96, 64), "red").save(image)
    soundfile.write(voice, np.sin(np.arange(24_000) / 13) * 0.3, 16_000)
    with opened(context, url) as page:
        write(page, "圆球 ~~你好~~ ~~再见~~ ~~走吧~~")
        page.set_input_files("#image input[type=file]", image)
        page.wait_for_selector("#image img")
        add_voice(page, voice, "Bo")
        page.wait_for_selector(".nava-lines select >> nth=1 >> option:has-text('Bo')", state="attached")
        page.select_option(".nava-lines select >> nth=1", label="Bo")
        page.wait_for_function("JSON.stringify(localStorage).includes('nava-studio-script')")
        page.click("#generate")
        page.wait_for_selector("#clip video")
    recipe = read_recipe(max(engine.output_dir.glob("*.mp4"), key=lambda path: path.stat().st_mtime))
    assert recipe["image"].endswith("first.png")
    assert [bool(speaker) for speaker in recipe["speakers"]] == [False, True, False]


def test_a_second_clip_waits_in_the_queue_is_changed_there_and_shown_from_it(
    context: Any, url: str, pipeline: Any, engine: InProcessEngine
) -> None:
    with opened(context, url) as page:
        with held_up(pipeline, engine):
            write(page, "一个圆球")
            page.click("#generate")
            page.wait_for_selector("#cancel")
            write(page, "一颗星星")
            page.click("#generate")
            page.wait_for_selector('#notice .nava-message[data-kind="hint"]')
            waiting = next(job for job in engine.jobs() if job.request.prompt == "一颗星星")
            row = f'#queue-rows [data-id="{waiting.id}"]'
            page.click(f'{row} [data-act="edit"]')
            page.wait_for_selector("#editing")
            page.wait_for_function(PROMPT_IS, arg="一颗星星")
            write(page, "两颗星星")
            page.click("#generate")
            page.wait_for_selector("#editing", state="hidden")
            assert engine.job(waiting.id).request.prompt == "两颗星星"
        page.wait_for_selector(f'#gallery-grid [data-id="{waiting.id}"]')
    assert engine.job(waiting.id).state == "done" and read_recipe(engine.job(waiting.id).result)["prompt"] == "两颗星星"


def test_a_clip_of_the_gallery_is_shown_and_its_recipe_used_again(
    context: Any, url: str, engine: InProcessEngine
) -> None:
    job_id = engine.submit(GenerationRequest("一个蓝色方块 ~~走吧~~", seed=77, num_inference_steps=3))
    (*_, last) = engine.events(job_id)
    assert last.state == "done"
    with opened(context, url) as page:
        card = f'#gallery-grid [data-id="{job_id}"]'
        page.wait_for_selector(card)
        page.click(f'{card} [data-action="open"] >> nth=0')
        page.wait_for_selector("#clip video")
        page.wait_for_function("document.querySelector('#recipe')?.innerText.includes('77')")
        page.click("#reuse")
        page.wait_for_function(PROMPT_IS, arg="一个蓝色方块 ~~走吧~~")
        wait_for_value(page, "#seed input", "77")
        page.wait_for_function(NO_RANDOM_SEED)


def test_variations_end_side_by_side(context: Any, url: str, engine: InProcessEngine) -> None:
    with opened(context, url) as page:
        write(page, "一个圆球")
        page.click("#variations label >> nth=1")
        page.click("#generate")
        page.wait_for_selector("#compare-grid figure >> nth=1")
        page.click("#compare-grid [data-take] >> nth=1")
        page.wait_for_selector("#compare", state="hidden")
        page.wait_for_selector("#clip video")
    group = {job.variations for job in engine.jobs()[:2]}
    assert len(group) == 1 and None not in group


def test_cancel_takes_a_step_at_most(context: Any, url: str, pipeline: Any) -> None:
    with opened(context, url) as page:
        write(page, "一个圆球")
        page.click("#advanced > button")
        fill_number(page, "#steps", "100")
        with slow_down(pipeline, 0.5):
            page.click("#generate")
            page.wait_for_function("+document.querySelector('[role=progressbar]')?.ariaValueNow >= 1")
            page.click("#cancel")
            page.wait_for_selector('.nava-stage[data-kind="cancelled"]')
        page.wait_for_selector("#picture >> text=Nothing was saved")
        assert page.is_enabled("#generate") and page.input_value("#prompt textarea") == "一个圆球"


def test_a_closed_tab_loses_nothing(context: Any, url: str, pipeline: Any, engine: InProcessEngine) -> None:
    with held_up(pipeline, engine) as go_on:
        with opened(context, url) as page:
            write(page, "一个圆球 ~~你好~~")
            page.click("#generate")
            page.wait_for_function("+document.querySelector('[role=progressbar]')?.ariaValueNow >= 1")
            before = step_shown(page)
        with opened(context, url) as page:
            page.wait_for_selector("#cancel")
            page.wait_for_function(
                "before => +document.querySelector('[role=progressbar]')?.ariaValueNow >= before", arg=before
            )
            go_on.set()
            page.wait_for_selector("#clip video")
            page.wait_for_function(PROMPT_IS, arg="一个圆球 ~~你好~~")
            seed = str(engine.jobs()[0].request.seed)
            wait_for_value(page, "#seed input", seed)
    with opened(context, url) as page:
        page.wait_for_selector("#clip video")
        wait_for_value(page, "#seed input", seed)


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_page_fits_and_every_control_has_a_name(context: Any, url: str, size: dict[str, int]) -> None:
    with opened(context, url) as page:
        page.set_viewport_size(size)
        write(page, "圆球 ~~" + "长" * 300 + "~~ " + "x" * 200)
        page.wait_for_selector("#prompt mark")
        page.click("#rewrite")
        page.wait_for_selector("#use-caption")
        page.click("#guidance > button")
        page.click("#advanced > button")
        page.click("#faster > button")
        if size is PHONE:
            page.click(".nava-disclosure")
        page.wait_for_selector("#negative-prompt textarea")
        page.wait_for_function("document.querySelector('#script-lines .nava-line')?.clientWidth > 120")
        come_to_rest(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        assert page.evaluate(OUT_OF_SIGHT) == [], "what is clipped does not make the page wider"
        unnamed = page.evaluate(UNNAMED_CONTROLS)
        assert unnamed == []
        page.wait_for_function(BESIDE_EACH_OTHER if size is DESKTOP else BELOW_EACH_OTHER)


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("language", ["", "zh"])
def test_axe_finds_nothing_serious(context: Any, url: str, size: dict[str, int], language: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    with opened(context, url + language) as page:
        page.set_viewport_size(size)
        write(page, "圆球 ~~你好~~ ~~再见")
        page.wait_for_selector("#prompt mark")
        page.click("#rewrite")
        page.wait_for_selector("#use-caption")
        page.click("#guidance > button")
        page.click("#advanced > button")
        page.click("#faster > button")
        page.wait_for_selector("#negative-prompt textarea")
        if size is PHONE:
            page.click(".nava-disclosure")
        page.add_style_tag(content="* { transition: none !important; animation: none !important; }")
        for theme in ("light", "dark"):
            page.evaluate("theme => localStorage.setItem('nava-studio-theme', theme)", theme)
            page.evaluate("nava.look()")
            page.wait_for_function("theme => document.documentElement.dataset.theme === theme", arg=theme)
            found = axe.run(page).response["violations"]
            grave = [
                (item["id"], node["failureSummary"], node["html"])
                for item in found
                if item["impact"] in ("serious", "critical")
                for node in item["nodes"]
            ]
            assert grave == []


def test_the_browser_reads_speech_as_the_model_is_told(context: Any, url: str) -> None:
    draw = random.Random(5)
    pieces = [*"ab 你\n\t", "~~", "~", "<S>", "<E>", "<extra_id_2>", "\u2028", "😀", "\x85"]
    texts = ["".join(draw.choices(pieces, k=draw.randrange(14))) for _ in range(1500)]
    expected = [[[span.text, span.closed] for span in parse_speech(text).spans] for text in texts]
    with opened(context, url) as page:
        assert page.evaluate(READ_AS_PYTHON, texts) == expected


def test_the_form_survives_a_reload_and_the_other_language(context: Any, url: str) -> None:
    with opened(context, url) as page:
        write(page, "一个圆球 ~~你好~~")
        choose_seed(page, "77")
        page.click("#size label:has-text('64×64')")  # and no size of before the model was known
        page.click("#variations label >> nth=1")
        page.click("#guidance > button")
        come_to_rest(page)
        page.click("#preset label >> nth=1")
        page.wait_for_function("document.querySelector('#guidance-video-align input[type=number]')?.value === '4.5'")
        page.wait_for_selector("#mixer-cost >> text=passes of the model")
        wait_until_kept(page)
        page.click(".nava-switch[lang=zh]")
        page.wait_for_selector(".nava-switch[lang=en]")
        page.wait_for_selector("#generate:not([disabled])")
        for _ in range(2):
            page.wait_for_function(PROMPT_IS, arg="一个圆球 ~~你好~~")
            page.wait_for_selector("#size label.selected >> text=64×64")
            page.wait_for_selector("#variations label.selected >> text=×2")
            page.click("#guidance > button")
            page.wait_for_function(
                "document.querySelector('#guidance-video-align input[type=number]')?.value === '4.5'"
            )
            wait_for_value(page, "#seed input", "77")
            page.wait_for_function(NO_RANDOM_SEED)
            page.wait_for_selector("#generate:has-text('生成')")
            page.wait_for_selector("html[lang=zh]", state="attached")
            page.reload()
            page.wait_for_selector("#generate:not([disabled])")


def test_the_theme_follows_the_system_until_somebody_chooses(context: Any, url: str) -> None:
    with opened(context, url) as page:
        page.emulate_media(color_scheme="dark")
        page.wait_for_selector("body.dark")
        page.click("[data-nava-theme]")
        page.wait_for_selector("body:not(.dark)")
        page.reload()
        page.wait_for_selector('[data-nava-theme][aria-pressed="false"]')
        page.wait_for_selector("body:not(.dark)")


def test_an_example_brings_its_clip_and_its_recipe(context: Any, url: str) -> None:
    with opened(context, url) as page:
        page.click(".nava-example >> nth=0")
        page.wait_for_selector("#clip video")
        page.wait_for_function("document.querySelector('#clip video')?.videoWidth === 128")
        recipe = read_recipe(examples_for("nava-nano")[0].clip)
        page.wait_for_function(PROMPT_IS, arg=recipe["prompt"])
        wait_for_value(page, "#seed input", str(recipe["seed"]))
        page.wait_for_function(NO_RANDOM_SEED)


def test_variations_are_one_group_of_consecutive_seeds(context: Any, url: str, engine: InProcessEngine) -> None:
    with opened(context, url) as page:
        write(page, "一个圆球")
        choose_seed(page, "40")
        page.click("#variations label >> nth=1")
        page.click("#generate")
        page.wait_for_function("document.querySelector('#recipe')?.innerText.includes('41')")
    made = engine.jobs()[:2]
    assert sorted(job.request.seed or 0 for job in made) == [40, 41]
    assert made[0].variations == made[1].variations is not None


def test_the_page_is_usable_soon(context: Any, url: str) -> None:
    began = time.monotonic()
    with opened(context, url):
        seconds = time.monotonic() - began
    print(f"from opening to usable: {seconds:.1f} s")
    assert seconds < USABLE_WITHIN


def test_an_idle_page_asks_without_events(context: Any, url: str) -> None:
    """An event costs the browser a tenth of a second, and a step of a small model takes as long on the same cores."""
    with opened(context, url) as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        ends = time.monotonic() + USABLE_WITHIN
        while True:  # until what opening began has come to its end: a question on a clock would never leave a gap
            asked.clear()
            page.wait_for_timeout(4_000)
            if asked and not [address for address in asked if "/queue/" in address]:
                break
            assert time.monotonic() < ends, asked


def test_a_prompt_outside_the_models_world_gets_a_hint(context: Any, url: str) -> None:
    with opened(context, url) as page:
        write(page, "a cat")
        page.wait_for_selector('#hint .nava-message[data-kind="hint"]')
        assert page.is_enabled("#generate")
        write(page, "a ball")
        page.wait_for_selector("#hint .nava-message", state="detached")
