"""The page's panels. They only build components and return them; what happens on an event is in handlers.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from nava_core.request import ModelSpec
from ui import views
from ui.catalogue import Catalogue
from ui.stage import StagePanel
from ui.state import VOICE_SLOTS, size_value

EXAMPLE_SLOTS = 4
MOST_STEPS = 100


@dataclass(frozen=True)
class WritingPanel:
    prompt: gr.Textbox
    speech: gr.HTML
    tokens: gr.HTML
    suggestion: gr.Button
    hint: gr.HTML
    prompt_error: gr.HTML
    examples: list[gr.Button]
    generate: gr.Button
    cancel: gr.Button
    rewrite: gr.Button
    rewrite_and_generate: gr.Button
    estimate: gr.HTML
    notice: gr.HTML


@dataclass(frozen=True)
class CaptionPanel:
    """The rewritten prompt, and the way back from it once it has taken the prompt's place."""

    section: gr.Column
    status: gr.HTML
    stale: gr.HTML
    text: gr.Textbox
    use: gr.Button
    stop: gr.Button
    used: gr.Row
    undo: gr.Button


@dataclass(frozen=True)
class MaterialPanel:
    image: gr.Image
    image_error: gr.HTML
    voices: list[gr.Audio]
    voices_note: gr.HTML
    speakers_error: gr.HTML


@dataclass(frozen=True)
class SettingsPanel:
    modality: gr.Radio
    size: gr.Dropdown
    seconds: gr.Slider
    steps: gr.Slider
    seed: gr.Textbox
    random_seed: gr.Checkbox
    guidance_section: gr.Accordion
    guidance: dict[str, gr.Slider]
    align: gr.Checkbox
    advanced_section: gr.Accordion
    negative_prompt: gr.Textbox
    errors: dict[str, gr.HTML]


@dataclass(frozen=True)
class Page:
    """All components, and the orders and places that handlers need.

    job, draft: what the browser keeps of its last job and its last rewriting. watched, followed, handed: ids that one
    event leaves for the next: the job to watch, the rewriting to follow, the job that a rewriting led to.
    """

    header: gr.HTML
    writing: WritingPanel
    caption: CaptionPanel
    material: MaterialPanel
    settings: SettingsPanel
    stage: StagePanel
    job: gr.BrowserState
    draft: gr.BrowserState
    watched: gr.State
    followed: gr.State
    handed: gr.State

    @property
    def form(self) -> dict[str, Any]:
        """The form's components by `Form`'s field names and in their order; voices are apart."""
        settings = self.settings
        return {
            "prompt": self.writing.prompt,
            "negative_prompt": settings.negative_prompt,
            "image": self.material.image,
            "modality": settings.modality,
            "size": settings.size,
            "seconds": settings.seconds,
            "steps": settings.steps,
            "seed": settings.seed,
            "random_seed": settings.random_seed,
            **settings.guidance,
            "align": settings.align,
        }

    @property
    def errors(self) -> dict[str, gr.HTML]:
        """Where a RequestError's message stands, by the request's field."""
        settings = self.settings.errors
        return {
            "prompt": self.writing.prompt_error,
            "image": self.material.image_error,
            "speakers": self.material.speakers_error,
            "negative_prompt": settings["negative_prompt"],
            "modality": settings["modality"],
            "width": settings["size"],
            "height": settings["size"],
            "seconds": settings["seconds"],
            "num_frames": settings["seconds"],
            "fps": settings["seconds"],
            "num_inference_steps": settings["steps"],
            "seed": settings["seed"],
            "guidance": settings["guidance"],
        }


def writing_panel(text: Catalogue) -> tuple[WritingPanel, CaptionPanel]:
    with gr.Column(elem_id="writing", elem_classes="nava-card"):
        prompt = gr.Textbox(
            label=text("prompt.label"),
            info=text("prompt.info"),
            placeholder=text("prompt.placeholder"),
            lines=5,
            max_lines=14,
            elem_id="prompt",
        )
        prompt_error = _message()
        tokens = gr.HTML(elem_id="tokens", visible=False)
        speech = gr.HTML(elem_id="speech", visible=False)
        suggestion = gr.Button(text("speech.suggestion"), size="sm", visible=False, elem_id="suggestion")
        hint = _message(elem_id="hint")
        caption = _caption_panel(text)
        with gr.Row(elem_id="examples", visible=True):
            gr.HTML(f"<span class='nava-quiet'>{text('example.label')}</span>", elem_id="examples-label")
            examples = [gr.Button("", size="sm", visible=False, min_width=0) for _ in range(EXAMPLE_SLOTS)]
        with gr.Row(elem_id="actions"):
            generate = gr.Button(
                text("generate.loading"), variant="primary", size="lg", interactive=False, elem_id="generate", scale=3
            )
            cancel = gr.Button(text("cancel.button"), size="lg", visible=False, elem_id="cancel", scale=1, min_width=96)
            rewrite_and_generate = gr.Button(
                text("rewrite.generate"),
                size="lg",
                interactive=False,
                elem_id="rewrite-and-generate",
                scale=2,
                min_width=96,
            )
            rewrite = gr.Button(text("rewrite.button"), size="lg", elem_id="rewrite", scale=1, min_width=96)
        estimate = gr.HTML(elem_id="estimate", visible=False)
        notice = _message(elem_id="notice")
    writing = WritingPanel(
        prompt,
        speech,
        tokens,
        suggestion,
        hint,
        prompt_error,
        examples,
        generate,
        cancel,
        rewrite,
        rewrite_and_generate,
        estimate,
        notice,
    )
    return writing, caption


def _caption_panel(text: Catalogue) -> CaptionPanel:
    with gr.Column(elem_id="caption-section", visible=False) as section:
        status = gr.HTML(elem_id="caption-status", elem_classes="nava-message-place")
        stale = _message(elem_id="caption-stale")
        caption = gr.Textbox(
            label=text("caption.label"), info=text("caption.info"), lines=4, max_lines=12, elem_id="caption"
        )
        with gr.Row(elem_id="caption-actions"):
            use = gr.Button(text("caption.use"), size="md", visible=False, elem_id="use-caption", min_width=120)
            stop = gr.Button(text("caption.stop"), size="md", visible=False, elem_id="stop-rewriting", min_width=96)
    with gr.Row(elem_id="caption-used", visible=False) as used:
        gr.HTML(views.quiet(text("caption.used")), elem_id="caption-used-note")
        undo = gr.Button(text("caption.undo"), size="sm", elem_id="undo-caption", min_width=96)
    return CaptionPanel(section, status, stale, caption, use, stop, used, undo)


def material_panel(text: Catalogue) -> MaterialPanel:
    with gr.Column(elem_classes="nava-card"):
        gr.HTML(f"<h2>{text('material.title')}</h2>")
        image = gr.Image(
            label=text("image.label"),
            type="filepath",
            sources=["upload", "clipboard"],
            height=200,
            elem_id="image",
        )
        image_error = _message()
        gr.HTML(views.quiet(text("image.info")))
        with gr.Row(elem_id="voices"):
            voices = [
                gr.Audio(
                    label=text("voice.slot", number=number),
                    type="filepath",
                    sources=["upload", "microphone"],
                    visible=number <= 2,
                    elem_classes=["nava-voice", f"nava-colour-{views.colour(number)}"],
                    elem_id=f"voice-{number}",
                    min_width=220,
                )
                for number in range(1, VOICE_SLOTS + 1)
            ]
        speakers_error = _message(elem_id="speakers-error")
        voices_note = gr.HTML(views.quiet(text("voices.info")))
    return MaterialPanel(image, image_error, voices, voices_note, speakers_error)


def settings_panel(text: Catalogue) -> SettingsPanel:
    blank = settings_of(text, ModelSpec(""))
    errors = {}
    with gr.Column(elem_classes="nava-card"):
        gr.HTML(f"<h2>{text('settings.title')}</h2>")
        modality = gr.Radio(label=text("modality.label"), elem_id="modality", **blank["modality"])
        errors["modality"] = _message()
        with gr.Row():
            with gr.Column(min_width=200):
                size = gr.Dropdown(label=text("size.label"), elem_id="size", **blank["size"])
                errors["size"] = _message()
            with gr.Column(min_width=200):
                seconds = gr.Slider(label=text("seconds.label"), elem_id="seconds", step=0.5, **blank["seconds"])
                errors["seconds"] = _message()
        with gr.Row():
            with gr.Column(min_width=200):
                steps = gr.Slider(label=text("steps.label"), elem_id="steps", step=1, **blank["steps"])
                errors["steps"] = _message()
            with gr.Column(min_width=200):
                seed = gr.Textbox(
                    label=text("seed.label"),
                    max_lines=1,
                    elem_id="seed",
                    html_attributes=gr.InputHTMLAttributes(autocomplete="off", spellcheck=False),
                )
                errors["seed"] = _message()
                random_seed = gr.Checkbox(True, label=text("seed.random"), container=False, elem_id="random-seed")
        with gr.Accordion(text("guidance.title"), open=False, elem_id="guidance") as guidance_section:
            guidance, align = _guidance_controls(text, blank)
            errors["guidance"] = _message()
        with gr.Accordion(text("advanced.title"), open=False, elem_id="advanced") as advanced_section:
            negative_prompt = gr.Textbox(
                label=text("negative.label"),
                info=text("negative.info"),
                lines=3,
                max_lines=8,
                elem_id="negative-prompt",
            )
            errors["negative_prompt"] = _message()
    return SettingsPanel(
        modality,
        size,
        seconds,
        steps,
        seed,
        random_seed,
        guidance_section,
        guidance,
        align,
        advanced_section,
        negative_prompt,
        errors,
    )


def _guidance_controls(text: Catalogue, blank: dict[str, dict[str, Any]]) -> tuple[dict[str, gr.Slider], gr.Checkbox]:
    def axis(name: str) -> gr.Slider:
        return gr.Slider(0, 10, step=0.1, label=text(f"guidance.{name}"), elem_id=f"guidance-{name}", **blank[name])

    gr.HTML(views.quiet(text("guidance.info")))
    with gr.Row():
        sliders = {"video": axis("video"), "audio": axis("audio")}
    align = gr.Checkbox(label=text("guidance.align"), elem_id="guidance-align", **blank["align"])
    with gr.Row():
        sliders |= {"video_align": axis("video_align"), "audio_align": axis("audio_align")}
    sliders["timbre"] = axis("timbre")
    return sliders, align


def settings_of(text: Catalogue, spec: ModelSpec) -> dict[str, dict[str, Any]]:
    """What a model's spec makes of the settings: choices, limits and values, by the form's field names."""
    guidance = spec.guidance
    return {
        "modality": {
            "choices": [(text(f"modality.{name}"), name) for name in spec.modalities],
            "value": spec.modalities[0],
        },
        "size": {
            "choices": [(f"{width} × {height}", size_value(width, height)) for width, height in spec.sizes],
            "value": size_value(spec.width, spec.height),
        },
        "seconds": {"minimum": min(0.5, spec.max_seconds), "maximum": spec.max_seconds, "value": spec.seconds},
        "steps": {
            "minimum": 1,
            "maximum": max(MOST_STEPS, spec.num_inference_steps),
            "value": spec.num_inference_steps,
        },
        "video": {"value": guidance.video},
        "audio": {"value": guidance.audio},
        "video_align": {"value": guidance.video_align},
        "audio_align": {"value": guidance.audio_align},
        "timbre": {"value": guidance.timbre},
        "align": {"value": guidance.align},
        "negative_prompt": {"value": spec.negative_prompt},
    }


def _message(elem_id: str | None = None) -> gr.HTML:
    """A place for a message beside what it is about; it takes no room while it is empty."""
    return gr.HTML(visible=False, elem_id=elem_id, elem_classes="nava-message-place")
