"""The scene: the prompt with its speech coloured as one types, its rewriting beside it, and the first frame."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from ui import views
from ui.catalogue import Catalogue


@dataclass(frozen=True)
class ScenePanel:
    """speech: how many spoken lines there are, and the colours that scripts/scene.js draws them in."""

    prompt: gr.Textbox
    prompt_error: gr.HTML
    speech: gr.HTML
    tokens: gr.HTML
    suggestion: gr.Button
    hint: gr.HTML
    rewrite: gr.Button
    image: gr.Image
    image_error: gr.HTML


@dataclass(frozen=True)
class CaptionPanel:
    """The rewritten prompt beside what it was made of, and the way back once it has taken the prompt's place."""

    section: gr.Column
    status: gr.HTML
    stale: gr.HTML
    changes: gr.HTML
    text: gr.Textbox
    use: gr.Button
    make: gr.Button
    stop: gr.Button
    used: gr.Row
    undo: gr.Button


def build_scene(text: Catalogue) -> tuple[ScenePanel, CaptionPanel]:
    with gr.Column(elem_id="scene", elem_classes="nava-card"):
        gr.HTML(views.heading(text("scene.title")))
        with gr.Row(elem_id="scene-parts"):
            with gr.Column(elem_id="scene-words", min_width=260, scale=3):
                prompt = gr.Textbox(
                    label=text("prompt.label"),
                    info=text("prompt.info"),
                    placeholder=text("prompt.placeholder"),
                    lines=6,
                    max_lines=14,
                    elem_id="prompt",
                )
                prompt_error = message_place()
                with gr.Row(elem_id="scene-counts"):
                    speech = gr.HTML(views.speech(text, None), elem_id="speech")
                    tokens = gr.HTML(elem_id="tokens", visible=False)
                    rewrite = gr.Button(text("rewrite.button"), size="sm", elem_id="rewrite", min_width=0)
            with gr.Column(elem_id="scene-frame", min_width=140, scale=1):
                image = gr.Image(
                    label=text("image.label"),
                    type="filepath",
                    sources=["upload", "clipboard"],
                    height=150,
                    buttons=[],
                    placeholder=text("image.placeholder"),
                    elem_id="image",
                )
                image_error = message_place()
                gr.HTML(views.quiet(text("image.info")), elem_id="image-info")
        suggestion = gr.Button(text("speech.suggestion"), size="sm", visible=False, elem_id="suggestion")
        hint = message_place(elem_id="hint")
        caption = _caption_panel(text)
    scene = ScenePanel(prompt, prompt_error, speech, tokens, suggestion, hint, rewrite, image, image_error)
    return scene, caption


def _caption_panel(text: Catalogue) -> CaptionPanel:
    with gr.Column(elem_id="caption-section", visible=False) as section:
        status = gr.HTML(elem_id="caption-status", elem_classes="nava-message-place")
        stale = message_place(elem_id="caption-stale")
        changes = gr.HTML(elem_id="caption-changes", visible=False)
        caption = gr.Textbox(
            label=text("caption.label"), info=text("caption.info"), lines=4, max_lines=12, elem_id="caption"
        )
        with gr.Row(elem_id="caption-actions"):
            make = gr.Button(
                text("caption.make"), size="md", visible=False, elem_id="make-caption", min_width=120, variant="primary"
            )
            use = gr.Button(text("caption.use"), size="md", visible=False, elem_id="use-caption", min_width=120)
            stop = gr.Button(text("caption.stop"), size="md", visible=False, elem_id="stop-rewriting", min_width=96)
    with gr.Row(elem_id="caption-used", visible=False) as used:
        gr.HTML(views.quiet(text("caption.used")), elem_id="caption-used-note")
        undo = gr.Button(text("caption.undo"), size="sm", elem_id="undo-caption", min_width=96)
    return CaptionPanel(section, status, stale, changes, caption, use, make, stop, used, undo)


def message_place(elem_id: str | None = None) -> gr.HTML:
    """A place for a message beside what it is about; it takes no room while it is empty."""
    return gr.HTML(visible=False, elem_id=elem_id, elem_classes="nava-message-place")
