"""The script: the spoken lines of the prompt, who speaks them, and whether there is time for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from nava_core.engine.jobs import EngineError
from ui import script_views
from ui.assignments import Assignments
from ui.cast import CastPanel, script_of, voices_of
from ui.catalogue import Catalogue
from ui.owners import owner_of
from ui.service import BROWSER_SECRET, QUIET, Service, Updates

STORAGE_KEY = "nava-studio-script"


@dataclass(frozen=True)
class ScriptPanel:
    """assignments: which voice speaks which line, as `Assignments.to_json` writes it; may be set from outside."""

    root: gr.Column
    lines: gr.HTML
    assignments: gr.BrowserState


def build_script(text: Catalogue) -> ScriptPanel:
    with gr.Column(elem_id="script", elem_classes="nava-card") as root:
        gr.HTML(f"<h2>{text('script.title')}</h2>")
        lines = gr.HTML(
            script_views.script(text, "", Assignments(), []),
            elem_id="script-lines",
            js_on_load=script_of("rows", "script"),
            apply_default_css=False,
        )
        assignments = gr.BrowserState(None, storage_key=STORAGE_KEY, secret=BROWSER_SECRET)
    return ScriptPanel(root, lines, assignments)


def connect_script(service: Service, panel: ScriptPanel, prompt: Any, seconds: Any, cast: CastPanel) -> None:
    """Follow the prompt, the clip's length and the cast; take what is chosen."""

    def follow(prompt: str, seconds: Any, stored: Any, request: gr.Request) -> Updates:
        return show_script(service, panel, owner_of(request), prompt or "", seconds, stored)

    def chosen(prompt: str, seconds: Any, stored: Any, event: gr.EventData, request: gr.Request) -> Updates:
        return assign(service, panel, owner_of(request), prompt or "", seconds, stored, event._data or {})

    inputs, outputs = [prompt, seconds, panel.assignments], [panel.lines, panel.assignments]
    changes = [prompt.change, seconds.change, panel.assignments.change, cast.changed.change]
    gr.on(changes, follow, inputs, outputs, trigger_mode="always_last", **QUIET)
    panel.lines.select(chosen, inputs, outputs, trigger_mode="multiple", **QUIET)


def show_script(service: Service, panel: ScriptPanel, owner: str, prompt: str, seconds: Any, stored: Any) -> Updates:
    """The lines of the prompt, each with the voice that it had."""
    assignments = Assignments.read(stored)
    kept = assignments.settled(prompt).to_json()
    return {
        panel.lines: _lines(service, owner, prompt, seconds, assignments.follow(prompt)),
        panel.assignments: gr.skip() if kept == stored else kept,
    }


def assign(
    service: Service, panel: ScriptPanel, owner: str, prompt: str, seconds: Any, stored: Any, asked: dict[str, Any]
) -> Updates:
    """Another voice for one line. It comes from a browser, so it may be anything."""
    assignments = Assignments.read(stored).follow(prompt)
    line, voice = asked.get("line"), asked.get("voice")
    if isinstance(line, int) and (voice is None or isinstance(voice, str)):
        assignments = assignments.assign(line, voice)
    lines = _lines(service, owner, prompt, seconds, assignments)
    return {panel.lines: lines, panel.assignments: assignments.to_json()}


def _lines(service: Service, owner: str, prompt: str, seconds: Any, assignments: Assignments) -> str:
    try:
        voices = voices_of(service, owner)
    except EngineError:
        voices = []  # the cast says so
    spec = service.spec
    length = float(seconds) if isinstance(seconds, int | float) and seconds > 0 else None
    hears, places = (True, True) if spec is None else (spec.accepts_speakers, spec.places_speakers)
    return script_views.script(service.text, prompt, assignments, voices, length, hears, places)
