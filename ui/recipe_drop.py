"""A clip of ours, dropped on the page: its recipe is read and, if wanted, restored."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from nava_core.media import probe, read_recipe
from nava_core.request import RequestError
from ui import gallery_views
from ui.catalogue import Catalogue
from ui.gallery_handlers import asked
from ui.library.gallery import SUFFIXES
from ui.owners import owner_of
from ui.reuse import PARTS
from ui.service import QUIET, Service, Updates, note
from ui.state import uploaded_path
from ui.views import quiet

logger = logging.getLogger(__name__)

NEW_SEED: list[str] = [part if part != "seed" else "new_seed" for part in PARTS]


@dataclass(frozen=True)
class RecipeDrop:
    """recipe: what the dropped file holds, until something is done with it."""

    file: gr.File
    found: gr.HTML
    notice: gr.HTML
    choices: gr.Row
    keep: gr.Button
    new: gr.Button
    recipe: gr.State


def build_recipe_drop(text: Catalogue) -> RecipeDrop:
    with gr.Accordion(text("gallery.drop_title"), open=False, elem_id="recipe-drop"):
        gr.HTML(quiet(text("gallery.drop_info")))
        file = gr.File(
            label=text("gallery.drop_label"), file_types=list(SUFFIXES), height=120, elem_id="recipe-drop-file"
        )
        notice = gr.HTML(visible=False, elem_id="recipe-drop-notice", elem_classes="nava-message-place")
        found = gr.HTML(visible=False, elem_id="recipe-drop-found")
        with gr.Row(visible=False, elem_id="recipe-drop-choices") as choices:
            keep = gr.Button(text("gallery.drop_keep"), variant="primary", elem_id="recipe-keep-seed", min_width=160)
            new = gr.Button(text("gallery.drop_new"), elem_id="recipe-new-seed", min_width=160)
    return RecipeDrop(file, found, notice, choices, keep, new, gr.State(None))


def connect_recipe_drop(service: Service, drop: RecipeDrop, reuse: gr.State) -> None:
    """reuse: gets {"recipe", "parts", "at"} when somebody has chosen."""

    def dropped(payload: Any, request: gr.Request) -> Updates:
        return read_dropped(service, drop, owner_of(request), payload)

    def restore(recipe: dict[str, Any] | None, parts: list[str]) -> Updates:
        emptied = empty(drop) | {drop.file: None}
        return emptied if recipe is None else emptied | {reuse: asked(recipe=recipe, parts=parts)}

    places = [drop.found, drop.notice, drop.choices, drop.recipe]
    drop.file.upload(dropped, drop.file, places, **QUIET)
    drop.file.clear(lambda: empty(drop), None, places, **QUIET)
    outputs = [*places, drop.file, reuse]
    drop.keep.click(lambda recipe: restore(recipe, list(PARTS)), drop.recipe, outputs, **QUIET)
    drop.new.click(lambda recipe: restore(recipe, NEW_SEED), drop.recipe, outputs, **QUIET)


def read_dropped(service: Service, drop: RecipeDrop, owner: str, payload: Any) -> Updates:
    """What the file holds and what can be done with it, or why it holds nothing."""
    updates = empty(drop)
    try:
        path = uploaded_path("recipe", payload)
        if path is None:
            return updates
        name = _name(payload, path)
        recipe = dropped_recipe(service.text, path, name)
    except RequestError as error:
        return updates | {drop.notice: note(service.text.said(error), "error")}
    if service.gallery is not None:
        recipe = service.gallery.own_recipe(owner, recipe)
    found = gallery_views.found_recipe(service.text, recipe)
    return updates | {
        drop.found: gr.update(value=found, visible=True),
        drop.choices: gr.update(visible=True),
        drop.recipe: recipe,
    }


def dropped_recipe(text: Catalogue, path: str, name: str) -> dict[str, Any]:
    """The recipe in a file. Raises RequestError with what is wrong with the file, in words for people."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise RequestError("recipe", text("gallery.drop_kind", name=name))
    try:
        probe(path)
    except ValueError as error:
        logger.info("a dropped file cannot be read: %s", error)
        raise RequestError("recipe", text("gallery.drop_broken", name=name)) from error
    try:
        recipe = read_recipe(path)
    except ValueError as error:
        raise RequestError("recipe", text("gallery.drop_foreign", name=name)) from error
    if not isinstance(recipe.get("prompt"), str):
        raise RequestError("recipe", text("gallery.drop_foreign", name=name))
    return recipe


def empty(drop: RecipeDrop) -> Updates:
    return {
        drop.found: gr.update(value="", visible=False),
        drop.notice: note(""),
        drop.choices: gr.update(visible=False),
        drop.recipe: None,
    }


def _name(payload: Any, path: str) -> str:
    name = payload.get("orig_name") if isinstance(payload, dict) else None
    return name if isinstance(name, str) and name else Path(path).name
