"""What every panel works with, and the words for what went wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from nava_core.engine.jobs import Engine, JobError
from nava_core.request import ModelSpec
from ui import views
from ui.catalogue import Catalogue
from ui.faster import LoraFolder
from ui.library.gallery import Gallery
from ui.library.voices import VoiceLibrary
from ui.rewriting import RewriteDesk

Updates = dict[Any, Any]
WATCH_INTERVAL = 0.2
# A moment of the stage costs a browser as much as a step costs a small model: no more of them than one can follow.
STAGE_INTERVAL = 0.6
# Gradio tells every component that was ever an event's output of each message of any event, and lets a clock run on
# each while one is awaited: 80 ms a message, and frame after frame, on the cores that make the clip where there is no
# GPU. Our events show on no component how far they are: the stage, the queue and the notices say it.
SILENT: dict[str, Any] = {"show_progress": "hidden", "show_progress_on": []}
# The page's own events: no API, and values as they were sent (see state.py).
QUIET: dict[str, Any] = SILENT | {"api_visibility": "private", "preprocess": False}
# Gradio would draw one at each start, and a page could not find its job again after the server's. It hides nothing
# from anybody who may read the browser's storage.
BROWSER_SECRET = "nava-studio"


@dataclass(frozen=True)
class Service:
    """What handlers work with: the engine that runs requests, the desk that rewrites prompts, and the page's words.

    voices, gallery: what people keep; None where the page has no such panel. watching: the job that is on the stage of
    each open tab, by its session, while it is followed there. loras: those that people may choose from.
    """

    engine: Engine
    desk: RewriteDesk
    text: Catalogue
    voices: VoiceLibrary | None = None
    gallery: Gallery | None = None
    watching: dict[str, str] = field(default_factory=dict)
    loras: LoraFolder = field(default_factory=LoraFolder)

    @property
    def spec(self) -> ModelSpec | None:
        """The model's spec, or None while there is none; never waits."""
        return self.engine.spec if self.engine.status.state == "ready" else None


def error_words(text: Catalogue, error: JobError) -> str:
    said = text.said(error.message)
    return said if error.kind == "request" else text(f"error.{error.kind}", message=said)


def note(words: str, kind: str = "error") -> Any:
    return gr.update(value=views.message(words, kind) if words else "", visible=bool(words))
