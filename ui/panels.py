"""All of the page's components: its panels, and the orders and places that handlers need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from nava_core.request import ModelSpec
from ui import views
from ui.catalogue import Catalogue
from ui.footer import FooterPanel, footer_settings
from ui.mixer import AXES, MixerPanel
from ui.scene import CaptionPanel, ScenePanel, message_place
from ui.voices import VoicesPanel

MOST_STEPS = 100


@dataclass(frozen=True)
class AdvancedPanel:
    section: gr.Accordion
    modality: gr.Radio
    steps: gr.Slider
    negative_prompt: gr.Textbox
    errors: dict[str, gr.HTML]


@dataclass(frozen=True)
class StagePanel:
    picture: gr.HTML
    clip: gr.Video
    sound: gr.Audio
    progress: gr.HTML
    again: gr.Button
    download: gr.DownloadButton
    recipe_section: gr.Column
    recipe: gr.HTML
    recipe_json: gr.JSON


@dataclass(frozen=True)
class Page:
    """All components, and the orders and places that handlers need.

    links: the header's, to the page in other languages. examples: clips to start from.
    job, draft, saved: what the browser keeps of its last job, its last rewriting and the form. watched, followed,
    handed: ids that one event leaves for the next: the job to watch, the rewriting to follow, the job that a rewriting
    led to.
    """

    links: dict[str, str]
    header: gr.HTML
    scene: ScenePanel
    caption: CaptionPanel
    voices: VoicesPanel
    mixer: MixerPanel
    advanced: AdvancedPanel
    stage: StagePanel
    examples: gr.HTML
    bar: FooterPanel
    job: gr.BrowserState
    draft: gr.BrowserState
    saved: gr.BrowserState
    watched: gr.State
    followed: gr.State
    handed: gr.State

    @property
    def form(self) -> dict[str, Any]:
        """The form's components by `Form`'s field names and in their order; voices are apart."""
        return {
            "prompt": self.scene.prompt,
            "negative_prompt": self.advanced.negative_prompt,
            "image": self.scene.image,
            "modality": self.advanced.modality,
            "size": self.bar.size,
            "seconds": self.bar.seconds,
            "steps": self.advanced.steps,
            "seed": self.bar.seed,
            "random_seed": self.bar.random_seed,
            "variations": self.bar.variations,
            **self.mixer.axes,
            "align": self.mixer.align,
        }

    @property
    def errors(self) -> dict[str, gr.HTML]:
        """Where a RequestError's message stands, by the request's field."""
        bar, advanced = self.bar.errors, self.advanced.errors
        return {
            "prompt": self.scene.prompt_error,
            "image": self.scene.image_error,
            "speakers": self.voices.error,
            "negative_prompt": advanced["negative_prompt"],
            "modality": advanced["modality"],
            "width": bar["size"],
            "height": bar["size"],
            "seconds": bar["seconds"],
            "num_frames": bar["seconds"],
            "fps": bar["seconds"],
            "num_inference_steps": advanced["steps"],
            "seed": bar["seed"],
            "variations": bar["variations"],
            "guidance": self.mixer.error,
        }


def build_advanced(text: Catalogue) -> AdvancedPanel:
    blank = settings_of(text, ModelSpec(""))
    errors = {}
    with gr.Accordion(text("advanced.title"), open=False, elem_id="advanced", elem_classes="nava-card") as section:
        modality = gr.Radio(label=text("modality.label"), elem_id="modality", **blank["modality"])
        errors["modality"] = message_place()
        steps = gr.Slider(
            label=text("steps.label"), info=text("steps.info"), elem_id="steps", step=1, buttons=[], **blank["steps"]
        )
        errors["steps"] = message_place()
        negative_prompt = gr.Textbox(
            label=text("negative.label"), info=text("negative.info"), lines=3, max_lines=8, elem_id="negative-prompt"
        )
        errors["negative_prompt"] = message_place()
    return AdvancedPanel(section, modality, steps, negative_prompt, errors)


def settings_of(text: Catalogue, spec: ModelSpec) -> dict[str, dict[str, Any]]:
    """What a model's spec makes of the settings: choices, limits and values, by the form's field names."""
    guidance = spec.guidance
    return {
        "modality": {
            "choices": [(text(f"modality.{name}"), name) for name in spec.modalities],
            "value": spec.modalities[0],
        },
        **footer_settings(text, spec),
        "steps": {
            "minimum": 1,
            "maximum": max(MOST_STEPS, spec.num_inference_steps),
            "value": spec.num_inference_steps,
        },
        **{name: {"value": getattr(guidance, name)} for name in AXES},
        "align": {"value": guidance.align},
        "negative_prompt": {"value": spec.negative_prompt},
    }


def build_stage(text: Catalogue) -> StagePanel:
    with gr.Column(elem_id="stage", elem_classes="nava-card"):
        gr.HTML(views.heading(text("stage.title")), elem_classes="nava-unseen")
        picture = gr.HTML(views.stage_empty(text), elem_id="picture")
        clip = gr.Video(
            label=text("stage.clip"), interactive=False, visible=False, elem_id="clip", show_label=False, buttons=[]
        )
        sound = gr.Audio(label=text("stage.sound"), interactive=False, visible=False, elem_id="sound", buttons=[])
        progress = gr.HTML(elem_id="progress", visible=False)
        again = gr.Button(text("again.go_on"), visible=False, elem_id="again", variant="primary", size="lg")
        download = gr.DownloadButton(text("download.button"), visible=False, elem_id="download", size="lg")
        with gr.Column(visible=False, elem_id="recipe") as recipe_section:
            recipe = gr.HTML()
            with gr.Accordion(text("recipe.json"), open=False):
                recipe_json = gr.JSON(show_label=False, container=False)
    return StagePanel(picture, clip, sound, progress, again, download, recipe_section, recipe, recipe_json)
