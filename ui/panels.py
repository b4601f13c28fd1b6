"""All of the page's components: its panels, and the orders and places that handlers need."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import gradio as gr

from nava_core.request import ModelSpec
from ui.cast import CastPanel
from ui.catalogue import Catalogue
from ui.compare import ComparePanel
from ui.faster import FasterPanel, build_faster
from ui.footer import FooterPanel, footer_settings
from ui.gallery import GalleryPanel
from ui.mixer import MixerPanel
from ui.queue import QueuePanel
from ui.scene import CaptionPanel, ScenePanel, message_place
from ui.script import ScriptPanel
from ui.stage import StagePanel

MOST_STEPS = 100


@dataclass(frozen=True)
class AdvancedPanel:
    section: gr.Accordion
    modality: gr.Radio
    steps: gr.Slider
    negative_prompt: gr.Textbox
    faster: FasterPanel
    errors: dict[str, gr.HTML]


@dataclass(frozen=True)
class Page:
    """All components, and the orders and places that handlers need.

    editing: the job in the queue that the form's next clip replaces, and the way out of that.

    links: the header's, to the page in other languages. examples: clips to start from.
    job, draft, saved: what the browser keeps of its last job, its last rewriting and the form. watched, followed,
    handed: ids that one event leaves for the next: the job to watch, the rewriting to follow, the job that a rewriting
    led to.
    """

    links: dict[str, str]
    header: gr.HTML
    scene: ScenePanel
    caption: CaptionPanel
    script: ScriptPanel
    speakers_error: gr.HTML
    cast: CastPanel
    mixer: MixerPanel
    advanced: AdvancedPanel
    stage: StagePanel
    compare: ComparePanel
    examples: gr.HTML
    queue: QueuePanel
    gallery: GalleryPanel
    bar: FooterPanel
    job: gr.BrowserState
    draft: gr.BrowserState
    saved: gr.BrowserState
    watched: gr.State
    followed: gr.State
    handed: gr.State
    editing: gr.State

    @property
    def form(self) -> dict[str, Any]:
        """The form's components by `Form`'s field names and in their order; who speaks which line is apart."""
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
            **self.mixer.switches,
            **self.advanced.faster.controls,
        }

    @property
    def errors(self) -> dict[str, gr.HTML]:
        """Where a RequestError's message stands, by the request's field."""
        bar, advanced = self.bar.errors, self.advanced.errors
        return {
            "prompt": self.scene.prompt_error,
            "image": self.scene.image_error,
            "speakers": self.speakers_error,
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
            "shortcuts": self.advanced.faster.error,
            "loras": self.advanced.faster.loras_error,
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
        faster = build_faster(text)
    return AdvancedPanel(section, modality, steps, negative_prompt, faster, errors)


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
        **{name: {"value": value} for name, value in asdict(guidance).items()},
        "negative_prompt": {"value": spec.negative_prompt},
    }
