"""Text for people, by key and language: the files in `texts/` hold every word that the page shows."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import yaml

TEXTS = Path(__file__).with_name("texts")
LANGUAGES = {"en": "English", "zh": "中文"}


class Catalogue:
    """The page's words in one language: `text("seed.label")`, with `{placeholders}` filled from keyword arguments."""

    def __init__(self, language: str = "en"):
        if language not in LANGUAGES:
            raise ValueError(f"language is {language!r}; choose one of {', '.join(LANGUAGES)}")
        self.language = language
        self._entries = {key: words[language] for key, words in entries().items()}

    def __call__(self, key: str, **values: object) -> str:
        return self._entries[key].format(**values)


@lru_cache
def entries() -> dict[str, dict[str, str]]:
    """Every key with its text in every language, from all files. Raises ValueError for a key that stands in two."""
    merged: dict[str, dict[str, str]] = {}
    for path in sorted(TEXTS.glob("*.yaml")):
        texts = yaml.safe_load(path.read_text(encoding="utf-8"))
        if twice := merged.keys() & texts.keys():
            raise ValueError(f"{path.name} repeats {', '.join(sorted(twice))}; a key stands in one file")
        merged |= texts
    return merged
