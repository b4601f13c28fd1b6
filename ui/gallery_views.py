"""The gallery as HTML. Pure functions; every word a person wrote passes through `escape`.

What a button does is in its data-action; scripts/gallery.js hands it on with the id of its card.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ui.catalogue import Catalogue
from ui.library.clips import Clip, Shown, Stack
from ui.views import file_address, message

FIRST_LETTERS = 90
# Outlines of 20 by 20, drawn in the colour of the text around them.
_ICONS = {
    "star": '<path d="M10 2.6l2.3 4.7 5.1.7-3.7 3.6.9 5.1-4.6-2.4-4.6 2.4.9-5.1L2.6 8l5.1-.7z"/>',
    "more": '<circle cx="4.5" cy="10" r="1.5"/><circle cx="10" cy="10" r="1.5"/><circle cx="15.5" cy="10" r="1.5"/>',
    "film": '<rect x="2.5" y="4" width="15" height="12" rx="2"/><path d="M6 4v12M14 4v12M2.5 10h15"/>',
    "sound": '<path d="M4 8v4M7 5.5v9M10 3v14M13 6.5v7M16 8.5v3"/>',
    "gone": '<rect x="2.5" y="4" width="15" height="12" rx="2"/><path d="M3 16L17 4"/>',
}
REUSE = {
    "reuse": ("prompt", "voices", "frame", "seed", "settings"),
    "prompt": ("prompt",),
    "voices": ("voices",),
    "frame": ("frame",),
    "seed": ("seed",),
}
"""What a menu's entry puts back into the form."""


def grid(text: Catalogue, stacks: Sequence[Stack], shown: Shown = "all", unfolded: Collection[str] = ()) -> str:
    """The cards, the newest first. unfolded: ids of stacks whose clips are shown one by one."""
    cards: list[str] = []
    for stack in stacks:
        if shown == "deleted" or len(stack.clips) == 1:
            cards += [_card(text, clip, _menu(text, clip, shown), shown=shown) for clip in stack.clips]
        elif stack.id in unfolded:
            cards += [_member(text, stack, number) for number in range(1, len(stack.clips) + 1)]
        else:
            cards.append(_card(text, stack.cover, _stack_menu(text, stack), stack=stack))
    label = escape(text("gallery.list"))
    return f'<ul class="nava-clips" role="list" aria-label="{label}">{"".join(cards)}</ul>'


def empty(text: Catalogue, shown: Shown, search: str) -> str:
    """What stands in the place of cards where there are none."""
    if search.strip():
        title, hint = text("gallery.none_found", search=search.strip()), text("gallery.none_found_hint")
    else:
        title, hint = text(f"gallery.empty_{shown}"), text(f"gallery.empty_{shown}_hint")
    return f'<div class="nava-clips-empty">{_icon("film")}<p>{escape(title)}</p><small>{escape(hint)}</small></div>'


def first_words(clip: Clip) -> str:
    """What a person wrote, if it was rewritten, else the prompt; on one line and not too long."""
    words = " ".join((clip.original_prompt or clip.prompt).split())
    return words if len(words) <= FIRST_LETTERS else f"{words[:FIRST_LETTERS].rstrip()}…"


def undo_words(text: Catalogue, count: int) -> str:
    words = text("gallery.deleted_one") if count == 1 else text("gallery.deleted_many", count=count)
    return f'<p class="nava-undo" role="status">{escape(words)}</p>'


def download_link(path: Path, name: str) -> str:
    """A link that the page presses by itself; nobody sees it."""
    address, name = escape(file_address(path)), escape(name)
    return f'<a href="{address}" download="{name}" tabindex="-1" aria-hidden="true"></a>'


def found_recipe(text: Catalogue, recipe: dict[str, Any]) -> str:
    """What a dropped file holds."""
    words = " ".join(str(recipe.get("original_prompt") or recipe.get("prompt")).split())
    facts = [text("gallery.seed", seed=recipe.get("seed"))] if recipe.get("seed") is not None else []
    facts += [str(recipe["model"])] if recipe.get("model") else []
    shown = words if len(words) <= FIRST_LETTERS else f"{words[:FIRST_LETTERS].rstrip()}…"
    return (
        f'<div class="nava-found" role="status"><p>{escape(shown)}</p><small>{escape(" · ".join(facts))}</small></div>'
    )


def notes(messages: Sequence[str]) -> str:
    return "".join(message(words, "warning") for words in messages)


def _member(text: Catalogue, stack: Stack, number: int) -> str:
    clip, count = stack.clips[number - 1], len(stack.clips)
    badge = f'<span class="nava-clip-badge">{number}/{count}</span>'
    fold = _entry(text, "fold") + _entry(text, "compare") + "<hr>"
    return _card(text, clip, _menu(text, clip, "all", before=fold), badge=badge, member_of=stack)


def _card(
    text: Catalogue,
    clip: Clip,
    menu: str,
    *,
    stack: Stack | None = None,
    member_of: Stack | None = None,
    badge: str = "",
    shown: Shown = "all",
) -> str:
    words = first_words(clip) or text("gallery.no_prompt")
    group = stack or member_of
    marks = [f'data-id="{escape(clip.id)}"', f'data-kind="{clip.kind}"']
    marks += [f'data-stack="{escape(group.id)}"'] if group else []
    marks += ["data-folded"] if stack else ["data-member"] if member_of else []
    if clip.missing and shown != "deleted":
        marks.append("data-missing")
    elif shown != "deleted":
        marks.append(f'data-src="{escape(file_address(clip.path))}"')
    if stack:
        badge = (
            f'<span class="nava-clip-badge" data-count>{escape(text("gallery.stack", count=len(stack.clips)))}</span>'
        )
    return (
        f'<li class="nava-clip" {" ".join(marks)}>{_frame(text, clip, words, badge, shown)}'
        '<div class="nava-clip-foot"><div class="nava-clip-text">'
        f'<p title="{escape(clip.original_prompt or clip.prompt)}">{escape(words)}</p>'
        f"<small>{escape(_facts(text, clip))}</small></div>"
        f'<div class="nava-clip-tools">{_star(text, clip, words, shown)}'
        f'<details class="nava-clip-menu"><summary aria-label="{escape(text("gallery.menu", words=words))}" '
        f'aria-haspopup="menu" title="{escape(text("gallery.more"))}">{_icon("more", filled=True)}</summary>'
        f'<div role="menu">{menu}</div></details></div></div></li>'
    )


def _frame(text: Catalogue, clip: Clip, words: str, badge: str, shown: Shown) -> str:
    usable = not clip.missing and shown != "deleted"
    picture = (
        f'<img src="{escape(file_address(clip.poster))}" alt="" loading="lazy" decoding="async">'
        if clip.poster is not None
        else _icon("sound" if clip.kind == "wav" else "film")
    )
    if clip.missing and shown != "deleted":
        picture = f'{_icon("gone")}<span class="nava-clip-gone">{escape(text("gallery.missing"))}</span>'
    length = f'<span class="nava-clip-length">{_length(text, clip)}</span>' if clip.seconds else ""
    inside = f"{picture}{badge}{length}"
    if not usable:
        return f'<div class="nava-clip-frame">{inside}</div>'
    label = escape(text("gallery.open_label", words=words))
    return f'<button type="button" class="nava-clip-frame" data-action="open" aria-label="{label}">{inside}</button>'


def _star(text: Catalogue, clip: Clip, words: str, shown: Shown) -> str:
    if shown == "deleted":
        return ""
    label = escape(text("gallery.favourite", words=words))
    return (
        f'<button type="button" class="nava-clip-star" data-action="favourite" aria-label="{label}" '
        f'title="{escape(text("gallery.star"))}" aria-pressed="{str(clip.favourite).lower()}">{_icon("star")}</button>'
    )


def _menu(text: Catalogue, clip: Clip, shown: Shown, before: str = "") -> str:
    if shown == "deleted":
        return _entry(text, "restore")
    parts = [before]
    if not clip.missing:
        parts.append(_entry(text, "open"))
    parts += ["<hr>" if before == "" and not clip.missing else "", _entry(text, "reuse")]
    parts += [_entry(text, name) for name in ("prompt", "voices", "frame", "seed") if _has(clip, name)]
    if not clip.missing:
        parts.append("<hr>")
        if clip.kind == "mp4":
            parts.append(_entry(text, "continue", note=text("gallery.experimental")))
        parts.append(_entry(text, "download"))
    return "".join(parts) + _entry(text, "delete")


def _stack_menu(text: Catalogue, stack: Stack) -> str:
    count = len(stack.clips)
    return (
        _entry(text, "compare")
        + _entry(text, "unfold", count=count)
        + "<hr>"
        + _entry(text, "reuse")
        + _entry(text, "prompt")
        + "<hr>"
        + _entry(text, "delete_all", count=count)
    )


def _entry(text: Catalogue, action: str, note: str = "", **values: Any) -> str:
    small = f"<small>{escape(note)}</small>" if note else ""
    key = f"do_{action}"
    words = escape(text(f"gallery.{key}", **values))
    return f'<button type="button" role="menuitem" data-action="{action}"><span>{words}</span>{small}</button>'


def _has(clip: Clip, part: str) -> bool:
    """Whether the clip was made with such a thing."""
    speakers = clip.recipe.get("speakers")
    if part == "voices":
        return isinstance(speakers, list) and any(speakers)
    return part == "prompt" or clip.recipe.get("image" if part == "frame" else "seed") is not None


def _facts(text: Catalogue, clip: Clip) -> str:
    facts = [text("gallery.seed", seed=clip.seed)] if clip.seed is not None else []
    if clip.kind == "wav":
        facts.append(text("gallery.sound"))
    elif clip.size:
        facts.append(f"{clip.size[0]} × {clip.size[1]}")
    return " · ".join(facts)


def _length(text: Catalogue, clip: Clip) -> str:
    return escape(text("gallery.length", seconds=f"{clip.seconds:.1f}"))


def _icon(name: str, filled: bool = False) -> str:
    kind = "nava-icon-filled" if filled else "nava-icon"
    return f'<svg class="{kind}" viewBox="0 0 20 20" aria-hidden="true" focusable="false">{_ICONS[name]}</svg>'
