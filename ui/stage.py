"""The stage: the clip in the making, the clip itself with its sound and its lines, and what one does with it next."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from nava_core.engine.jobs import Job
from nava_core.speech import parse_speech
from ui import stage_views, views, waveform
from ui.catalogue import Catalogue
from ui.service import QUIET, Service, Updates

logger = logging.getLogger(__name__)

SCRIPT = Path(__file__).with_name("scripts") / f"{Path(__file__).stem}.js"
# What kept these from being made may be gone by now.
WORTH_ANOTHER_TRY = ("lost", "disk", "model", "interrupted")


@dataclass(frozen=True)
class StagePanel:
    """What is on the stage, and what it asks of the page.

    made: the clip on it, {"job", "clip", "recipe"}, or None while there is none; its `change` says that there is one.
    reuse: what `made` has, "parts": ["all"] and "asked", when somebody wants this clip's settings again. continue_from:
    what `made` has and "asked", when a clip shall begin with this one's last frame. "asked" only makes each press a
    change.
    """

    picture: gr.HTML
    clip: gr.HTML
    sound: gr.HTML
    progress: gr.HTML
    timeline: gr.HTML
    again: gr.Button
    download: gr.DownloadButton
    continue_button: gr.Button
    reuse_button: gr.Button
    notice: gr.HTML
    recipe_section: gr.Column
    recipe: gr.HTML
    recipe_json: gr.JSON
    made: gr.State
    reuse: gr.State
    continue_from: gr.State

    @property
    def outputs(self) -> list[Any]:
        """What `stage_updates` changes."""
        return [
            self.picture,
            self.clip,
            self.sound,
            self.progress,
            self.again,
            self.continue_button,
            self.reuse_button,
            self.recipe_section,
            self.recipe,
            self.recipe_json,
            self.made,
        ]


def build_stage(text: Catalogue) -> StagePanel:
    with gr.Column(elem_id="stage", elem_classes="nava-card"):
        picture = gr.HTML(stage_views.empty(text), elem_id="picture")
        clip = gr.HTML(visible=False, elem_id="clip")
        sound = gr.HTML(visible=False, elem_id="sound")
        with gr.Column(elem_id="stage-under"):
            progress = gr.HTML(elem_id="progress", visible=False)
            timeline = gr.HTML(elem_id="timeline", visible=False, js_on_load=SCRIPT.read_text(encoding="utf-8"))
        with gr.Row(elem_id="stage-actions"):
            again = _button(text("again.go_on"), "again", variant="primary")
            download = gr.DownloadButton(
                text("download.button"), visible=False, elem_id="download", size="md", variant="primary", min_width=80
            )
            continue_button = _button(text("stage.continue_from"), "continue-from")
            reuse_button = _button(text("stage.reuse"), "reuse")
        notice = gr.HTML(visible=False, elem_id="stage-notice", elem_classes="nava-message-place")
        with gr.Column(visible=False, elem_id="recipe") as recipe_section:
            recipe = gr.HTML()
            with gr.Accordion(text("recipe.json"), open=False):
                recipe_json = gr.JSON(show_label=False, container=False)
    return StagePanel(
        picture,
        clip,
        sound,
        progress,
        timeline,
        again,
        download,
        continue_button,
        reuse_button,
        notice,
        recipe_section,
        recipe,
        recipe_json,
        *(gr.State(None) for _ in range(3)),
    )


def _button(words: str, elem_id: str, **options: Any) -> gr.Button:
    return gr.Button(words, visible=False, elem_id=elem_id, size="md", min_width=80, **options)


def stage_updates(service: Service, panel: StagePanel, job: Job) -> Updates:
    """Everything on the stage that follows from the job alone."""
    text, engine = service.text, service.engine
    path = job.result if job.state == "done" else None
    heard_only = job.request.modality == "audio"
    paused = job.state == "queued" and engine.paused
    left = None if job.finished else engine.remaining(job.id)
    progress = stage_views.progress(text, job, left, engine.status.message if paused else None)
    film = stage_views.film(text, path, stage_views.size_of(job)) if path and not heard_only else ""
    sound = stage_views.sound(text, path) if path and heard_only else ""
    return {
        panel.picture: gr.update(value=stage_views.picture(text, job, paused), visible=job.state != "done"),
        panel.clip: gr.update(value=film, visible=bool(film)),
        panel.sound: gr.update(value=sound, visible=bool(sound)),
        panel.progress: gr.update(value=progress, visible=bool(progress)),
        panel.again: _again_button(text, job, paused),
        panel.continue_button: gr.update(visible=bool(film)),
        panel.reuse_button: gr.update(visible=path is not None),
        panel.recipe_section: gr.update(visible=path is not None),
        panel.recipe: views.recipe(text, job.recipe) if job.recipe else "",
        panel.recipe_json: job.recipe,
        panel.made: _made(job, path) if path is not None else None,
    }


def _made(job: Job, path: Path) -> dict[str, Any]:
    """The clip, for those who work on it: also where the engine does not know the job, as with an example."""
    return {"job": job.id, "clip": str(path), "recipe": job.recipe or job.request.to_recipe()}


def _again_button(text: Catalogue, job: Job, paused: bool) -> Any:
    if paused:
        return gr.update(value=text("again.resume"), visible=True)
    if job.state == "interrupted":
        return gr.update(value=text("again.go_on"), visible=True)
    worth_it = job.state == "failed" and job.error is not None and job.error.kind in WORTH_ANOTHER_TRY
    return gr.update(value=text("again.try"), visible=worth_it)


def connect_stage(
    service: Service,
    panel: StagePanel,
    *,
    leave_out_recipe: gr.State | gr.Checkbox | gr.BrowserState | None = None,
    without_recipe: Callable[[Path], Path] | None = None,
    colours: Callable[[dict[str, Any]], Sequence[int]] | None = None,
) -> None:
    """Attach what the stage does by itself; who shows a job on it yields `stage_updates`.

    leave_out_recipe: holds whether a downloaded file shall tell nothing of how it was made. without_recipe: makes such
    a copy of a clip. colours: of a recipe's spoken lines, one for each span; by default by the spans' numbers.
    """
    made, outputs = panel.made, [panel.timeline]
    made.change(partial(show_timeline, service, panel, colours or span_colours), made, outputs, **QUIET)
    wish = leave_out_recipe if leave_out_recipe is not None else gr.State(False)
    offer = partial(offer_download, service, panel, without_recipe)
    changes = [made.change] if isinstance(wish, gr.State) and leave_out_recipe is None else [made.change, wish.change]
    gr.on(changes, offer, [made, wish], [panel.download, panel.notice], trigger_mode="always_last", **QUIET)
    panel.reuse_button.click(reuse, made, panel.reuse, **QUIET)
    panel.continue_button.click(continue_from, made, panel.continue_from, **QUIET)


def show_timeline(
    service: Service,
    panel: StagePanel,
    colours: Callable[[dict[str, Any]], Sequence[int]],
    made: dict[str, Any] | None,
) -> Updates:
    """The sound of a clip and its lines, once the clip is there. Reads the file: not for an event loop."""
    if made is None:
        return {panel.timeline: gr.update(value="", visible=False)}
    path, recipe = Path(made["clip"]), made["recipe"]
    sound = waveform.read_sound(path)
    spans = parse_speech(recipe["prompt"]).spans
    lines = waveform.cues(spans, sound, colours(recipe)) if sound else []
    seconds = sound.seconds if sound else recipe.get("seconds") or 1.0
    shown = waveform.timeline(service.text, sound, lines, seconds=seconds, fps=recipe.get("fps") or 24, name=path.stem)
    return {panel.timeline: gr.update(value=shown, visible=True)}


def span_colours(recipe: dict[str, Any]) -> list[int]:
    """The colours of a recipe's lines as the script shows them: by number."""
    return [views.colour(number) for number, _ in enumerate(parse_speech(recipe["prompt"]).spans, start=1)]


def offer_download(
    service: Service,
    panel: StagePanel,
    without_recipe: Callable[[Path], Path] | None,
    made: dict[str, Any] | None,
    leave_out: bool | None,
) -> Updates:
    """The file behind the download button: the clip itself, or a copy of it that holds no recipe."""
    text, nothing = service.text, gr.update(value=None, visible=False)
    if made is None:
        return {panel.download: nothing, panel.notice: gr.update(value="", visible=False)}
    path = Path(made["clip"])
    problem = "" if path.is_file() else text("stage.no_file")
    if leave_out and without_recipe is not None and not problem:
        try:
            path = without_recipe(path)
        except (ValueError, RuntimeError, OSError) as error:
            logger.warning("%s could not be copied without its recipe: %s", path.name, error)
            problem = text("stage.export_failed", message=error)
    note = views.message(problem, "error") if problem else ""
    return {
        panel.download: nothing if problem else gr.update(value=str(path), visible=True),
        panel.notice: gr.update(value=note, visible=bool(note)),
    }


def reuse(made: dict[str, Any] | None) -> Any:
    return gr.skip() if made is None else made | {"parts": ["all"], "asked": time.time_ns()}


def continue_from(made: dict[str, Any] | None) -> Any:
    return gr.skip() if made is None else made | {"asked": time.time_ns()}
