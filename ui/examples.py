"""Prompts to start from, by model: `assets/examples/examples.json` and the pictures beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from pathlib import Path

from ui import views
from ui.catalogue import Catalogue

FOLDER = Path(__file__).parent.parent / "assets" / "examples"
ANY_MODEL = "*"


@dataclass(frozen=True)
class Example:
    """A prompt, perhaps with its first frame and its clip. titles: a few words by language."""

    titles: dict[str, str]
    prompt: str
    image: Path | None
    clip: Path | None = None

    @property
    def poster(self) -> Path | None:
        """The picture that stands for the clip."""
        return None if self.clip is None else self.clip.with_suffix(".jpg")

    def title(self, language: str) -> str:
        return self.titles[language]


def examples_for(model: str) -> tuple[Example, ...]:
    """The examples made for `model`, or those for any model."""
    known = _examples()
    return known.get(model, known.get(ANY_MODEL, ()))


@lru_cache
def _examples() -> dict[str, tuple[Example, ...]]:
    listed = json.loads((FOLDER / "examples.json").read_text(encoding="utf-8"))
    return {
        model: tuple(
            Example(item["title"], item["prompt"], _file(item.get("image")), _file(item.get("clip"), ".mp4"))
            for item in items
        )
        for model, items in listed.items()
    }


def _file(name: str | None, ending: str = "") -> Path | None:
    return FOLDER / f"{name}{ending}" if name else None


def examples_view(text: Catalogue, examples: Sequence[Example]) -> str:
    """A row of posters, or of words without clips; scripts/page.js plays them and tells which is chosen."""
    cards = "".join(_card(text, index, example) for index, example in enumerate(examples))
    return f'<h2>{escape(text("example.label"))}</h2><div class="nava-examples">{cards}</div>' if cards else ""


def _card(text: Catalogue, index: int, example: Example) -> str:
    title = escape(example.title(text.language))
    clip = ""
    if example.clip is not None and example.poster is not None:
        clip = (
            f'<video muted loop playsinline preload="none" tabindex="-1" aria-hidden="true" '
            f'poster="{views.file_address(example.poster)}" src="{views.file_address(example.clip)}"></video>'
        )
    label = escape(text("example.load", title=example.title(text.language)))
    return (
        f'<button type="button" class="nava-example" data-index="{index}" aria-label="{label}">{clip}'
        f"<span>{title}</span></button>"
    )
