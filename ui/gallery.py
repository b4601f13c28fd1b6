"""The gallery's panel: its components, and which handler answers which event.

What it asks of the rest of the page stands in states; each is a dictionary with a time in `at`, so that asking for the
same again is a change too, or None at first:
opened {"id"}, reuse {"recipe", "parts"}, compare {"ids"}, continued {"image", "recipe"}.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from ui import gallery_handlers as handlers
from ui.catalogue import Catalogue
from ui.library.gallery import Gallery
from ui.owners import owner_of
from ui.recipe_drop import RecipeDrop, build_recipe_drop, connect_recipe_drop
from ui.service import BROWSER_SECRET, QUIET, Service, Updates

SCRIPT = Path(__file__).with_name("scripts") / f"{Path(__file__).stem}.js"
PRESS_LINK = "() => document.querySelector('#gallery-download a')?.click()"
# Gradio's own `change` comes with every letter too, but also when the value was set by an event.
TYPED = {"trigger_mode": "always_last", **QUIET}


@dataclass(frozen=True)
class GalleryPanel:
    """All components. view, removed: how much is drawn, and what Undo would bring back."""

    search: gr.Textbox
    shown: gr.Radio
    grid: gr.HTML
    more: gr.Button
    notice: gr.HTML
    undo_bar: gr.Row
    undo_words: gr.HTML
    undo: gr.Button
    undo_close: gr.Button
    private: gr.Checkbox
    private_kept: gr.BrowserState
    download: gr.HTML
    drop: RecipeDrop
    view: gr.State
    removed: gr.State
    opened: gr.State
    reuse: gr.State
    compare: gr.State
    continued: gr.State


def build_gallery(text: Catalogue, gallery: Gallery | None) -> GalleryPanel:
    """Build the panel, elem_id "gallery", in the Blocks at hand. gallery: what its cards are drawn of."""

    def gallery_version(_asked: Any) -> int:
        return 0 if gallery is None else gallery.version

    with gr.Column(elem_id="gallery", elem_classes="nava-card"):
        with gr.Row(elem_id="gallery-bar"):
            gr.HTML(f"<h2>{text('gallery.title')}</h2>", elem_id="gallery-title")
            shown = gr.Radio(
                [(text(f"gallery.show_{name}"), name) for name in ("all", "favourites", "deleted")],
                value="all",
                label=text("gallery.show"),
                show_label=False,
                container=False,
                elem_id="gallery-shown",
            )
            search = gr.Textbox(
                label=text("gallery.search"),
                placeholder=text("gallery.search_hint"),
                show_label=False,
                container=False,
                max_lines=1,
                elem_id="gallery-search",
                html_attributes=gr.InputHTMLAttributes(autocomplete="off", spellcheck=False, enterkeyhint="search"),
            )
        notice = gr.HTML(visible=False, elem_id="gallery-notice", elem_classes="nava-message-place")
        grid = gr.HTML(
            js_on_load=SCRIPT.read_text(encoding="utf-8"),
            apply_default_css=False,
            elem_id="gallery-grid",
            # Asked now and then: an event for as long as the tab is open would hold one of the server's places, and one
            # for each question would cost the browser far more than the answer is worth.
            server_functions=[gallery_version],
        )
        more = gr.Button("", visible=False, elem_id="gallery-more")
        with gr.Row(elem_id="gallery-undo", visible=False) as undo_bar:
            undo_words = gr.HTML(elem_id="gallery-undo-words")
            undo = gr.Button(text("gallery.undo"), size="sm", elem_id="gallery-undo-button", min_width=72)
            close = gr.Button(text("gallery.undo_close"), size="sm", variant="huggingface", min_width=72)
        with gr.Row(elem_id="gallery-foot"):
            private = gr.Checkbox(
                False,
                label=text("gallery.private"),
                info=text("gallery.private_info"),
                container=False,
                elem_id="gallery-private",
            )
            drop = build_recipe_drop(text)
        download = gr.HTML(elem_id="gallery-download", visible="hidden")
    kept = gr.BrowserState(False, storage_key="nava-studio-private", secret=BROWSER_SECRET)
    states = [gr.State(None) for _ in range(4)]
    return GalleryPanel(
        search,
        shown,
        grid,
        more,
        notice,
        undo_bar,
        undo_words,
        undo,
        close,
        private,
        kept,
        download,
        drop,
        gr.State(handlers.FIRST_VIEW),
        gr.State([]),
        *states,
    )


def connect_gallery(service: Service, panel: GalleryPanel) -> None:
    """Inside the page's Blocks. Without a gallery in the service the panel stays empty."""
    gallery = service.gallery
    if gallery is None:
        return
    filters = [panel.search, panel.shown, panel.view]

    def show(search: Any, shown: Any, view: Any, request: gr.Request) -> Updates:
        return handlers.show(service, panel, owner_of(request), handlers.Filters.read(search, shown, view))

    def narrow(search: Any, shown: Any, view: Any, request: gr.Request) -> Updates:
        """Other clips are asked for: from the first one on, with what is unfolded left so."""
        filters = handlers.Filters.read(search, shown, view | {"limit": handlers.FIRST_VIEW["limit"]})
        return handlers.show(service, panel, owner_of(request), filters) | {panel.view: filters.view}

    def show_more(search: Any, shown: Any, view: Any, request: gr.Request) -> Updates:
        filters = handlers.Filters.read(search, shown, view).longer()
        return handlers.show(service, panel, owner_of(request), filters) | {panel.view: filters.view}

    def act(search: Any, shown: Any, view: Any, private: Any, request: gr.Request, event: gr.EventData) -> Updates:
        filters = handlers.Filters.read(search, shown, view)
        action = handlers.Action.read(event._data, private)
        return handlers.act(service, panel, owner_of(request), filters, action)

    def undo(search: Any, shown: Any, view: Any, removed: Any, request: gr.Request) -> Updates:
        filters = handlers.Filters.read(search, shown, view)
        return handlers.undo(service, panel, owner_of(request), filters, removed)

    cards = [panel.grid, panel.more]
    panel.grid.stale(show, filters, cards, **TYPED)
    gr.on([panel.search.change, panel.shown.change], narrow, filters, [*cards, panel.view], **TYPED)
    panel.more.click(show_more, filters, [*cards, panel.view], **QUIET)
    asked = [panel.opened, panel.reuse, panel.compare, panel.continued]
    said = [panel.notice, panel.undo_bar, panel.undo_words, panel.removed]
    acted = panel.grid.act(act, [*filters, panel.private], [*cards, panel.view, *said, *asked, panel.download], **QUIET)
    acted.then(None, js=PRESS_LINK, **QUIET).then(lambda: "", None, panel.download, **QUIET)
    panel.undo.click(undo, [*filters, panel.removed], [*cards, *said], **QUIET)
    panel.undo_close.click(lambda: gr.update(visible=False), None, panel.undo_bar, **QUIET)
    # The switch is a person's, not a visit's.
    panel.private.input(None, panel.private, panel.private_kept, js="value => value", **QUIET)
    gr.on(None, lambda kept: bool(kept), panel.private_kept, panel.private, **QUIET)
    connect_recipe_drop(service, panel.drop, panel.reuse)
