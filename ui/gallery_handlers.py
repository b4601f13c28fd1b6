"""What happens in the gallery. Plain functions of the service, the panel, the owner and what was asked for."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import gradio as gr

from nava_core.ffmpeg import MediaError
from ui import gallery_views
from ui.library.clips import Clip, Shown, UnknownClip
from ui.library.gallery import Gallery
from ui.service import Service, Updates, note

if TYPE_CHECKING:
    from ui.gallery import GalleryPanel

logger = logging.getLogger(__name__)

STACKS_A_PAGE = 24
FIRST_VIEW: dict[str, Any] = {"limit": STACKS_A_PAGE, "unfolded": []}
# What a person may meet: the clip went in the meantime, its file is broken, or the disk is full.
_EXPECTED = (UnknownClip, OSError, ValueError, MediaError)


@dataclass(frozen=True)
class Filters:
    """Which clips are asked for. limit: how many stacks. unfolded: ids of stacks that are shown clip by clip."""

    search: str
    shown: Shown
    limit: int
    unfolded: tuple[str, ...]

    @classmethod
    def read(cls, search: Any, shown: Any, view: Any) -> Filters:
        """From what a browser hands over."""
        shown = shown if shown in ("all", "favourites", "deleted") else "all"
        view = FIRST_VIEW | (view if isinstance(view, dict) else {})
        return cls(search if isinstance(search, str) else "", shown, int(view["limit"]), tuple(view["unfolded"]))

    @property
    def view(self) -> dict[str, Any]:
        return {"limit": self.limit, "unfolded": list(self.unfolded)}

    def longer(self) -> Filters:
        return replace(self, limit=self.limit + STACKS_A_PAGE)

    def folding(self, stack: str, unfolded: bool) -> Filters:
        others = tuple(other for other in self.unfolded if other != stack)
        return replace(self, unfolded=(*others, stack) if unfolded else others)


@dataclass(frozen=True)
class Action:
    """What was pressed on which card. private: exported files are to hold no recipe."""

    name: str
    clip: str
    stack: str
    on: bool
    private: bool

    @classmethod
    def read(cls, data: Any, private: Any) -> Action:
        """From what a browser hands over, which may be anything."""
        given = data if isinstance(data, dict) else {}
        name, clip, stack = (str(given.get(key) or "") for key in ("action", "id", "stack"))
        return cls(name, clip, stack, on=given.get("on") is True, private=private is True)


def show(service: Service, panel: GalleryPanel, owner: str, filters: Filters) -> Updates:
    """The cards, and the button for those that are not shown yet."""
    text, gallery = service.text, _gallery(service)
    stacks, total = gallery.stacks(owner, filters.search, filters.shown, 0, filters.limit)
    cards = (
        gallery_views.grid(text, stacks, filters.shown, filters.unfolded)
        if stacks
        else gallery_views.empty(text, filters.shown, filters.search)
    )
    left = total - len(stacks)
    return {panel.grid: cards, panel.more: gr.update(value=text("gallery.load_more", left=left), visible=left > 0)}


def act(service: Service, panel: GalleryPanel, owner: str, filters: Filters, action: Action) -> Updates:
    """The one boundary between a card's buttons and what can go wrong behind them."""
    handler = _ACTIONS.get(action.name)
    if handler is None:
        logger.info("a browser asked the gallery for %r, which it does not do", action.name)
        return {panel.notice: gr.skip()}
    if action.name in ("fold", "unfold"):
        filters = filters.folding(action.stack, action.name == "unfold")
    try:
        updates = {panel.notice: note("")} | handler(service, panel, owner, action)
    except _EXPECTED as error:
        updates = {panel.notice: note(service.text("gallery.failed", reason=error), "error")}
    return updates | show(service, panel, owner, filters) | {panel.view: filters.view}


def undo(service: Service, panel: GalleryPanel, owner: str, filters: Filters, removed: Any) -> Updates:
    """Bring back what was deleted last."""
    updates: Updates = {panel.undo_bar: gr.update(visible=False), panel.removed: [], panel.notice: note("")}
    try:
        for clip_id in removed if isinstance(removed, list) else ():
            _gallery(service).undo(owner, clip_id)
    except _EXPECTED as error:
        updates[panel.notice] = note(service.text("gallery.failed", reason=error), "error")
    return updates | show(service, panel, owner, filters)


def asked(**values: Any) -> dict[str, Any]:
    """What a state hands on: never the same twice, so that asking again is a change."""
    return values | {"at": time.time_ns()}


def _open(service: Service, panel: GalleryPanel, owner: str, action: Action) -> Updates:
    _gallery(service).file_of(owner, action.clip)
    return {panel.opened: asked(id=action.clip)}


def _reuse(service: Service, panel: GalleryPanel, owner: str, action: Action) -> Updates:
    clip = _gallery(service).clip(owner, action.clip)
    return {panel.reuse: asked(recipe=clip.recipe, parts=list(gallery_views.REUSE[action.name]))}


def _continue(service: Service, panel: GalleryPanel, owner: str, action: Action) -> Updates:
    clip = _gallery(service).clip(owner, action.clip)
    image = _gallery(service).last_frame(owner, action.clip)
    return {panel.continued: asked(image=str(image), recipe=clip.recipe)}


def _compare(service: Service, panel: GalleryPanel, owner: str, action: Action) -> Updates:
    clips = _gallery(service).stack(owner, action.stack).clips
    return {panel.compare: asked(ids=[clip.id for clip in clips if not clip.missing])}


def _download(service: Service, panel: GalleryPanel, owner: str, action: Action) -> Updates:
    path = _gallery(service).export_copy(owner, action.clip, with_recipe=not action.private)
    return {panel.download: gallery_views.download_link(path, path.name)}


def _favourite(service: Service, panel: GalleryPanel, owner: str, action: Action) -> Updates:
    _gallery(service).favourite(owner, action.clip, action.on)
    return {}


def _delete(service: Service, panel: GalleryPanel, owner: str, action: Action) -> Updates:
    return _deleted(service, panel, owner, [_gallery(service).clip(owner, action.clip)])


def _delete_all(service: Service, panel: GalleryPanel, owner: str, action: Action) -> Updates:
    return _deleted(service, panel, owner, list(_gallery(service).stack(owner, action.stack).clips))


def _deleted(service: Service, panel: GalleryPanel, owner: str, clips: list[Clip]) -> Updates:
    for clip in clips:
        _gallery(service).delete(owner, clip.id)
    return {
        panel.removed: [clip.id for clip in clips],
        panel.undo_bar: gr.update(visible=True),
        panel.undo_words: gallery_views.undo_words(service.text, len(clips)),
    }


def _restore(service: Service, panel: GalleryPanel, owner: str, action: Action) -> Updates:
    _gallery(service).undo(owner, action.clip)
    return {}


def _nothing(service: Service, panel: GalleryPanel, owner: str, action: Action) -> Updates:
    return {}


def _gallery(service: Service) -> Gallery:
    return cast(Gallery, service.gallery)


_ACTIONS: dict[str, Callable[[Service, GalleryPanel, str, Action], Updates]] = {
    "open": _open,
    "continue": _continue,
    "compare": _compare,
    "download": _download,
    "favourite": _favourite,
    "delete": _delete,
    "delete_all": _delete_all,
    "restore": _restore,
    "fold": _nothing,
    "unfold": _nothing,
    **dict.fromkeys(gallery_views.REUSE, _reuse),
}
