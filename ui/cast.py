"""The cast: the voices that a person keeps, as cards, and the form that adds one."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.context import Context

from nava_core.engine.jobs import Engine, EngineError
from nava_core.request import RequestError
from ui import cast_views, views
from ui.catalogue import Catalogue
from ui.library.voices import Voice, VoiceLibrary
from ui.owners import owner_of
from ui.service import QUIET, Service, Updates, note
from ui.state import uploaded_path

logger = logging.getLogger(__name__)

SCRIPTS = Path(__file__).with_name("scripts")
SOUND_IS_THERE = "watch('value', () => document.dispatchEvent(new CustomEvent('nava-sound')));"
HEARING_INTERVAL = 0.5


@dataclass(frozen=True)
class CastPanel:
    """changed: a number that is another one after every change of the voices; the script and the page listen to it."""

    root: gr.Column
    cards: gr.HTML
    player: gr.HTML
    message: gr.HTML
    new: gr.Accordion
    recording: gr.Audio
    name: gr.Textbox
    consent: gr.Checkbox
    add: gr.Button
    new_message: gr.HTML
    changed: gr.State


def script_of(*names: str) -> str:
    """The scripts of a list, for `js_on_load`."""
    return "\n".join((SCRIPTS / f"{name}.js").read_text(encoding="utf-8") for name in names)


def build_cast(text: Catalogue) -> CastPanel:
    with gr.Column(elem_id="cast", elem_classes="nava-card") as root:
        gr.HTML(f"<h2>{text('cast.title')}</h2>")
        message = gr.HTML(visible=False, elem_classes="nava-message-place")
        cards = gr.HTML(
            cast_views.cards(text, []),
            elem_id="cast-cards",
            js_on_load=script_of("rows", "cast"),
            apply_default_css=False,
        )
        player = gr.HTML("", elem_id="cast-player", js_on_load=SOUND_IS_THERE, apply_default_css=False)
        with gr.Accordion(text("cast.new"), open=False, elem_id="cast-new") as new:
            recording = gr.Audio(
                label=cast_views.recording_label(text),
                type="filepath",
                sources=["upload", "microphone"],
                elem_id="cast-recording",
            )
            name = gr.Textbox(
                label=text("cast.new_name"), placeholder=text("cast.new_name_hint"), max_lines=1, elem_id="cast-name"
            )
            consent = gr.Checkbox(False, label=text("cast.consent"), container=False, elem_id="cast-consent")
            new_message = gr.HTML(visible=False, elem_classes="nava-message-place", elem_id="cast-new-message")
            add = gr.Button(text("cast.add"), elem_id="cast-add")
        changed = gr.State(0.0)
    return CastPanel(root, cards, player, message, new, recording, name, consent, add, new_message, changed)


def connect_cast(service: Service, panel: CastPanel) -> None:
    """Show the voices of whoever looks, let them be changed, and have new ones heard by the model."""
    # Functions of their own, for Gradio reads from their annotations what it hands over.

    def opened(request: gr.Request) -> Updates:
        return show_voices(service, panel, owner_of(request))

    def pressed(event: gr.EventData, request: gr.Request) -> Updates:
        return change(service, panel, owner_of(request), event._data or {})

    def added(recording: Any, name: str, consent: bool, request: gr.Request) -> Updates:
        return add(service, panel, owner_of(request), recording, name, consent)

    async def heard(request: gr.Request) -> Updates:
        return await hear(service, panel, owner_of(request))

    page = Context.root_block
    assert page is not None, "events are attached while the page is being built"
    shown = [panel.cards, panel.message, panel.changed, panel.player]
    form = [panel.recording, panel.name, panel.consent]
    load = page.load(opened, None, [*shown, panel.new], **QUIET)
    select = panel.cards.select(pressed, None, shown, **QUIET)
    click = gr.on([panel.add.click, panel.name.submit], added, form, [*shown, *form, panel.new_message], **QUIET)
    for before in (load, select, click):
        before.then(heard, None, [panel.cards, panel.changed], concurrency_limit=None, **QUIET)


def voices_of(service: Service, owner: str) -> list[Voice]:
    """Raises EngineError where the library cannot be used."""
    return [] if service.voices is None else service.voices.list(owner)


def show_voices(service: Service, panel: CastPanel, owner: str, undo: Voice | None = None) -> Updates:
    """The library as it is now."""
    try:
        voices = voices_of(service, owner)
    except EngineError as error:
        return {panel.message: note(service.text.said(error)), panel.cards: ""}
    spec = service.spec
    html = cast_views.cards(
        service.text, voices, spec.name if spec else "", spec is None or spec.accepts_speakers, undo
    )
    return {panel.cards: html, panel.message: note(""), panel.changed: time.time(), panel.player: gr.skip()}


def change(service: Service, panel: CastPanel, owner: str, asked: dict[str, Any]) -> Updates:
    """What was pressed on a card. It comes from a browser, so it may be anything."""
    library = service.voices
    actions: dict[str, Callable[[VoiceLibrary, str, str, dict[str, Any]], Voice | None]] = {
        "rename": lambda library, owner, voice, asked: library.rename(owner, voice, asked.get("name", "")),
        "recolour": lambda library, owner, voice, asked: library.recolour(owner, voice, asked.get("colour", 0)),
        "trim": lambda library, owner, voice, asked: library.trim(
            owner, voice, asked.get("start", 0), asked.get("end", 0)
        ),
        "undelete": lambda library, owner, voice, asked: library.undelete(owner, voice),
    }
    action, voice_id = str(asked.get("action")), str(asked.get("voice"))
    if library is None:
        return {panel.cards: gr.skip()}
    undo = None
    try:
        if action == "play":
            return {panel.player: cast_views.sound(library.get(owner, voice_id))}
        if action == "delete":
            undo = library.get(owner, voice_id)
            library.delete(owner, voice_id)
        elif action in actions:
            actions[action](library, owner, voice_id, asked)
    except (RequestError, EngineError) as error:
        return show_voices(service, panel, owner) | {panel.message: note(service.text.said(error))}
    return show_voices(service, panel, owner, undo)


def add(service: Service, panel: CastPanel, owner: str, recording: Any, name: str, consent: bool) -> Updates:
    """Keep a new voice; what was filled in stays where it cannot be."""
    library = service.voices
    if library is None:
        return {panel.cards: gr.skip()}
    missing = {
        "no_recording": recording is None,
        "no_name": not (name or "").strip(),
        "no_consent": consent is not True,
    }
    for key, applies in missing.items():
        if applies:
            return {panel.new_message: note(service.text(f"cast.{key}"))}
    try:
        path = uploaded_path("voice", recording)
        assert path is not None
        voice = library.add(owner, path, name, consent=consent is True)
    except (RequestError, EngineError) as error:
        return {panel.new_message: note(service.text.said(error))}
    words = service.text("cast.added", name=voice.name)
    return show_voices(service, panel, owner) | {
        panel.recording: None,
        panel.name: "",
        panel.consent: False,
        panel.new_message: gr.update(value=views.message(words, "hint"), visible=True),
    }


async def hear(service: Service, panel: CastPanel, owner: str) -> Updates:
    """Have the model hear the voices that it has not heard yet; then they can be compared."""
    while service.engine.status.state == "loading":
        await asyncio.sleep(HEARING_INTERVAL)
    library, spec = service.voices, service.spec
    if library is None or spec is None:
        return {panel.cards: gr.skip()}
    if not spec.accepts_speakers:
        return {panel.cards: show_voices(service, panel, owner)[panel.cards]}
    fresh = [voice for voice in await asyncio.to_thread(library.list, owner) if voice.encoder != spec.name]
    for voice in fresh:
        await asyncio.to_thread(_hear_one, service.engine, library, voice, spec.name)
    if not fresh:
        return {panel.cards: gr.skip()}
    return {panel.cards: show_voices(service, panel, owner)[panel.cards], panel.changed: time.time()}


def _hear_one(engine: Engine, library: VoiceLibrary, voice: Voice, model: str) -> None:
    """In one piece, so that what was heard is kept also where the page that asked is closed meanwhile."""
    try:
        embedding = engine.speaker_embedding(voice.path)
        library.set_embedding(voice.owner, voice.id, embedding, model, voice.path)
    except (RequestError, EngineError) as error:
        logger.warning("the voice %s was not heard: %s", voice.id, error)
