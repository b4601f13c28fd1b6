"""Text for people, by key and language: `catalogue.yaml` holds every word that the page shows."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import yaml

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
    """Every key with its text in every language."""
    return yaml.safe_load(Path(__file__).with_name("catalogue.yaml").read_text(encoding="utf-8"))
