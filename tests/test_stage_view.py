"""The stage and the comparison without a browser: what is drawn of a job, and what the panels hand on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
from stage_server import LINES, PROMPT, SECONDS, SPOKEN, Engine, make_clip, service_of

from nava_core.engine.jobs import Job, JobError
from nava_core.request import GenerationRequest
from nava_core.speech import parse_speech
from ui import compare, stage, stage_views, waveform
from ui.catalogue import Catalogue
from ui.compare import ComparePanel, build_compare
from ui.handover import comparable_clips
from ui.stage import StagePanel, build_stage

TEXT = Catalogue("en")
REQUEST = GenerationRequest(PROMPT, width=96, height=64, fps=24, seconds=SECONDS, seed=7)
RUNNING = Job("1", REQUEST, "running", "denoise", step=1, steps=4, seconds=3)
RATIO = 'style="--ratio:96/64"'


@pytest.fixture(scope="module")
def panel() -> StagePanel:
    with gr.Blocks():
        return build_stage(TEXT)


@pytest.fixture(scope="module")
def compare_panel() -> ComparePanel:
    with gr.Blocks():
        return build_compare(TEXT)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Job]]:
    folder = tmp_path_factory.mktemp("clips")
    yield {
        "film": make_clip(folder, "a film"),
        "other": make_clip(folder, "other", seed=2),
        "silent": make_clip(folder, "silent", modality="video"),
        "sound": make_clip(folder, "sound", modality="audio"),
    }


def shown(panel: StagePanel, job: Job, engine: Engine | None = None) -> dict[Any, Any]:
    updates = stage.stage_updates(service_of(engine or Engine(job)), panel, job)
    assert set(updates) == set(panel.outputs)
    return updates


def made(panel: StagePanel, job: Job) -> dict[str, Any]:
    return shown(panel, job)[panel.made]


# The stage


def test_the_box_has_the_clips_proportions_in_every_state(panel: StagePanel, clips: dict[str, Job]) -> None:
    preview = replace(RUNNING, preview=np.zeros((8, 12, 3), np.uint8))
    moments = [
        Job("1", REQUEST),
        RUNNING,
        preview,
        replace(RUNNING, state="failed"),
        replace(RUNNING, state="cancelled"),
    ]
    assert all(RATIO in shown(panel, moment)[panel.picture]["value"] for moment in moments)
    done = shown(panel, clips["film"])
    assert RATIO in done[panel.clip]["value"] and not done[panel.picture]["visible"]
    sound = shown(panel, clips["sound"])
    assert 'data-shape="sound"' in sound[panel.sound]["value"] and not sound[panel.clip]["visible"]
    assert 'data-shape="tall"' in stage_views.picture(TEXT, replace(RUNNING, request=replace(REQUEST, height=128)))


def states(job: Job) -> list[str]:
    return re.findall(r'data-state="(\w+)" style="flex-grow', stage_views.progress(TEXT, job))


def test_the_rail_shows_the_phases_and_how_far_the_steps_are() -> None:
    assert states(Job("1", REQUEST)) == ["todo"] * 4
    assert states(replace(RUNNING, phase="encode")) == ["now", "todo", "todo", "todo"]
    assert states(RUNNING) == ["done", "now", "todo", "todo"]
    assert states(replace(RUNNING, phase="mux", step=4)) == ["done", "done", "done", "now"]
    rail = stage_views.progress(TEXT, RUNNING, 12)
    assert 'aria-valuenow="1"' in rail and 'aria-valuemax="4"' in rail and "width:25.0%" in rail
    assert "Step 1 of 4" in rail and "3 s · about 12 s left" in rail
    assert stage_views.progress(TEXT, replace(RUNNING, state="failed")) == ""


def test_what_can_be_done_follows_the_state(panel: StagePanel, clips: dict[str, Job]) -> None:
    assert shown(panel, RUNNING)[panel.made] is None
    done = shown(panel, clips["film"])
    assert done[panel.made]["job"] == "a film"
    assert done[panel.continue_button]["visible"] and done[panel.reuse_button]["visible"]
    assert not shown(panel, clips["sound"])[panel.continue_button]["visible"], "sound has no last frame"
    failed = replace(RUNNING, state="failed", error=JobError("no", kind="lost"))
    assert shown(panel, failed)[panel.again]["visible"] and not shown(panel, failed)[panel.reuse_button]["visible"]


def test_a_files_address_is_safe_in_html() -> None:
    html = stage_views.film(TEXT, Path('/clips/a "b" <c> #1?.mp4'), (96, 64))
    assert "/clips/a%20%22b%22%20%3Cc%3E%20%231%3F.mp4#t=" in html


# The sound and the lines below it


def test_a_sound_is_drawn_in_its_speakers_colours(panel: StagePanel, clips: dict[str, Job]) -> None:
    service, film = service_of(Engine()), made(panel, clips["film"])
    html = stage.show_timeline(service, panel, stage.span_colours, film)[panel.timeline]["value"]
    paths = dict(re.findall(r'<path data-colour="(\d)" d="([^"]*)"', html))
    assert set(paths) == {"0", "1", "2"} and sum(path.count("M") for path in paths.values()) == waveform.BARS
    starts = [float(start) for start in re.findall(r'data-start="([\d.]+)"', html)]
    assert starts == [pytest.approx(start, abs=0.2) for start, _ in SPOKEN]
    assert "<b>there" not in html and "Hello &lt;b&gt;there" in html
    assert 'download="a film.srt"' in html and "data-vtt=" in html and "estimated" in html
    one_voice = stage.show_timeline(service, panel, lambda recipe: [3, 3], film)[panel.timeline]["value"]
    assert 'data-colour="3"' in one_voice and 'data-colour="1"' not in one_voice


def test_a_clip_without_sound_has_no_lines(panel: StagePanel, clips: dict[str, Job], tmp_path: Path) -> None:
    service, silent = service_of(Engine()), made(panel, clips["silent"])
    html = stage.show_timeline(service, panel, stage.span_colours, silent)[panel.timeline]["value"]
    assert "nava-wave" not in html and "nava-cue" not in html and 'data-toggle="loop"' in html
    assert not stage.show_timeline(service, panel, stage.span_colours, None)[panel.timeline]["visible"]
    broken = tmp_path / "broken.mp4"
    assert waveform.read_sound(broken) is None
    broken.write_bytes(b"no clip")
    assert waveform.read_sound(broken) is None


def test_peaks_are_bounded_and_silence_stays_flat() -> None:
    assert len(waveform.peaks(np.ones((100_000, 2)))) == waveform.BARS and len(waveform.peaks(np.ones(3))) == 3
    assert max(waveform.peaks(np.full(1000, 0.5))) == 1 and max(waveform.peaks(np.full(1000, 1e-4))) < 0.01
    assert waveform.peaks(np.array([np.nan, 0.5])) == (0.0, 1.0)


def test_cues_leave_empty_lines_out() -> None:
    sound = waveform.Sound(4.0, (1.0,) * 10, (0.1,) * 100)
    spans = parse_speech("~~one~~ ~~ ~~ ~~two~~").spans
    assert [(cue.text, cue.colour) for cue in waveform.cues(spans, sound, [1, 2, 3])] == [("one", 1), ("two", 3)]


# What the stage hands on


def test_the_download_is_the_clip_or_a_copy_that_tells_nothing(
    panel: StagePanel, clips: dict[str, Job], tmp_path: Path
) -> None:
    service, copy, film = service_of(Engine()), tmp_path / "copy.mp4", made(panel, clips["film"])

    def offered(leave_out: bool, result: Any = copy) -> dict[Any, Any]:
        def without_recipe(path: Path) -> Path:
            if isinstance(result, Exception):
                raise result
            return result

        return stage.offer_download(service, panel, without_recipe, film, leave_out)

    assert offered(False)[panel.download]["value"] == str(clips["film"].result)
    assert offered(True)[panel.download]["value"] == str(copy)
    failed = offered(True, OSError("<full>"))
    assert failed[panel.download]["value"] is None, "never the file that tells all"
    assert "&lt;full&gt;" in failed[panel.notice]["value"]
    assert stage.offer_download(service, panel, None, None, False)[panel.download]["value"] is None
    gone = film | {"clip": str(tmp_path / "gone.mp4")}
    assert "gone" in stage.offer_download(service, panel, None, gone, False)[panel.notice]["value"]


def test_each_press_hands_the_clip_on(panel: StagePanel, clips: dict[str, Job]) -> None:
    film = made(panel, clips["film"])
    first, second = stage.reuse(film), stage.reuse(film)
    assert first != second and first["recipe"]["seed"] == 1 and first["parts"] == ["all"]
    following = stage.continue_from(film)
    assert following["clip"] == str(clips["film"].result) and following["recipe"]["prompt"] == PROMPT
    assert stage.reuse(None) == stage.continue_from(None) == gr.skip()


# The comparison


def test_clips_that_are_there_are_compared(compare_panel: ComparePanel, clips: dict[str, Job]) -> None:
    gone = replace(clips["film"], id="gone", result=Path("nowhere.mp4"))
    another = replace(clips["film"], id="another", owner="somebody else")
    service = service_of(Engine(*clips.values(), RUNNING, gone, another))
    group = ["1", "a film", "gone", "forgotten", "another", "other"]
    jobs = comparable_clips(service, group, "")
    assert [job.id for job in jobs] == ["a film", "other"]
    html = compare.show_group(TEXT, compare_panel, jobs)[compare_panel.grid]["value"]
    assert html.count("<video") == 2 and "Seed 1" in html and "Seed 2" in html and 'data-id="a film"' in html
    assert "At least two" in compare.show_group(TEXT, compare_panel, jobs[:1])[compare_panel.grid]["value"]
    assert not compare.show_group(TEXT, compare_panel, None)[compare_panel.section]["visible"]
    many = compare.show_group(TEXT, compare_panel, jobs[1:] * 6)[compare_panel.grid]["value"]
    assert many.count("<video") == compare.MOST


def test_only_one_of_the_group_can_be_taken(compare_panel: ComparePanel) -> None:
    assert compare.take(compare_panel, ["a", "b"], {"id": "b"}) == {compare_panel.taken: "b", compare_panel.group: []}
    for sent in ({"id": "c"}, {}, None, "a"):
        assert compare.take(compare_panel, ["a", "b"], sent)[compare_panel.taken] == gr.skip()


def test_lines_of_the_prompt_are_those_of_the_tests() -> None:
    assert tuple(span.text for span in parse_speech(PROMPT).spans) == LINES
