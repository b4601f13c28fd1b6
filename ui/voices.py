"""A slot for each spoken line's recording."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from ui import views
from ui.catalogue import Catalogue
from ui.scene import message_place
from ui.state import VOICE_SLOTS


@dataclass(frozen=True)
class VoicesPanel:
    slots: list[gr.Audio]
    note: gr.HTML
    error: gr.HTML


def build_voices(text: Catalogue) -> VoicesPanel:
    with gr.Column(elem_id="voices-card", elem_classes="nava-card"):
        gr.HTML(views.heading(text("voices.label")))
        note = gr.HTML(views.quiet(text("voices.info")))
        with gr.Row(elem_id="voices"):
            slots = [
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
        error = message_place(elem_id="speakers-error")
    return VoicesPanel(slots, note, error)
