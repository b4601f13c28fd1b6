"""Prompts to start from, by model: `assets/examples/examples.json` and the pictures beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "assets" / "examples"
ANY_MODEL = "*"


@dataclass(frozen=True)
class Example:
    """A prompt, perhaps with its first frame. titles: a few words by language."""

    titles: dict[str, str]
    prompt: str
    image: Path | None

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
            Example(item["title"], item["prompt"], FOLDER / item["image"] if item.get("image") else None)
            for item in items
        )
        for model, items in listed.items()
    }
