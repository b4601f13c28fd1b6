"""The bar at the page's foot: how long, how large, how well, from which seed, how often; and the buttons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import gradio as gr

from nava_core.request import ModelSpec
from ui import views
from ui.catalogue import Catalogue
from ui.scene import message_place
from ui.state import VARIATIONS, size_value

Quality = Literal["draft", "standard", "best"]
SHARES: dict[Quality, float] = {"draft": 0.4, "standard": 1.0, "best": 1.5}


@dataclass(frozen=True)
class FooterPanel:
    seconds: gr.Slider
    size: gr.Radio
    quality: gr.Radio
    seed: gr.Textbox
    random_seed: gr.Checkbox
    variations: gr.Radio
    review: gr.Checkbox
    generate: gr.Button
    cancel: gr.Button
    rewrite_and_generate: gr.Button
    estimate: gr.HTML
    editing: gr.Row
    stop_editing: gr.Button
    notice: gr.HTML
    errors: dict[str, gr.HTML]


def build_footer(text: Catalogue) -> FooterPanel:
    errors: dict[str, gr.HTML] = {}
    blank = footer_settings(text, ModelSpec(""))
    with gr.Column(elem_id="bar"):
        with gr.Row(elem_id="bar-settings"):
            with gr.Column(elem_id="bar-length", min_width=0):
                seconds = gr.Slider(
                    label=text("seconds.label"), elem_id="seconds", step=0.5, buttons=[], **blank["seconds"]
                )
                errors["seconds"] = message_place()
            with gr.Column(elem_id="bar-size", min_width=0):
                size = gr.Radio(label=text("size.label"), elem_id="size", **blank["size"])
                errors["size"] = message_place()
            with gr.Column(elem_id="bar-quality", min_width=0):
                quality = gr.Radio(
                    label=text("quality.label"),
                    choices=[(text(f"quality.{name}"), name) for name in get_args(Quality)],
                    value="standard",
                    elem_id="quality",
                )
            with gr.Column(elem_id="bar-seed", min_width=0):
                seed = gr.Textbox(
                    label=text("seed.label"),
                    placeholder=text("seed.placeholder"),
                    max_lines=1,
                    elem_id="seed",
                    html_attributes=gr.InputHTMLAttributes(autocomplete="off", spellcheck=False),
                )
                random_seed = gr.Checkbox(True, label=text("seed.random"), container=False, elem_id="random-seed")
                errors["seed"] = message_place()
            with gr.Column(elem_id="bar-variations", min_width=0):
                variations = gr.Radio(
                    label=text("variations.label"),
                    choices=[(f"×{number}", number) for number in VARIATIONS],
                    value=1,
                    elem_id="variations",
                )
                errors["variations"] = message_place()
        with gr.Column(elem_id="bar-run", min_width=0):
            with gr.Row(elem_id="actions"):
                gr.HTML(views.disclosure(text("bar.settings"), "bar-settings"), elem_id="bar-more")
                cancel = gr.Button(text("cancel.button"), size="lg", visible=False, elem_id="cancel", min_width=0)
                rewrite_and_generate = gr.Button(
                    text("rewrite.generate"), size="lg", interactive=False, elem_id="rewrite-and-generate", min_width=0
                )
                generate = gr.Button(
                    text("generate.loading"),
                    variant="primary",
                    size="lg",
                    interactive=False,
                    elem_id="generate",
                    min_width=0,
                )
            with gr.Row(elem_id="bar-words"):
                review = gr.Checkbox(False, label=text("rewrite.review"), container=False, elem_id="review")
                estimate = gr.HTML(elem_id="estimate", visible=False)
            with gr.Row(elem_id="editing", visible=False) as editing:
                gr.HTML(views.quiet(text("editing.note")), elem_id="editing-note")
                stop_editing = gr.Button(text("editing.stop"), size="sm", elem_id="stop-editing", min_width=96)
            notice = message_place(elem_id="notice")
    return FooterPanel(
        seconds,
        size,
        quality,
        seed,
        random_seed,
        variations,
        review,
        generate,
        cancel,
        rewrite_and_generate,
        estimate,
        editing,
        stop_editing,
        notice,
        errors,
    )


def footer_settings(text: Catalogue, spec: ModelSpec) -> dict[str, dict[str, Any]]:
    """What a model's spec makes of the bar: choices, limits and values, by the form's field names."""
    return {
        "size": {
            "choices": [(f"{width}×{height}", size_value(width, height)) for width, height in spec.sizes],
            "value": size_value(spec.width, spec.height),
        },
        "seconds": {"minimum": min(0.5, spec.max_seconds), "maximum": spec.max_seconds, "value": spec.seconds},
    }


def steps_of(quality: Quality, spec: ModelSpec) -> int:
    """The denoising steps that a quality means for a model."""
    return max(1, round(spec.num_inference_steps * SHARES[quality]))


def quality_of(steps: float | None, spec: ModelSpec) -> Quality | None:
    """The quality that so many steps are, if they are one."""
    return next((name for name in SHARES if steps_of(name, spec) == steps), None)
