"""Text for people, by key and language: the files in `texts/` hold every word that the page shows."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import yaml

TEXTS = Path(__file__).with_name("texts")
LANGUAGES = {"en": "English", "zh": "中文"}
_NAME = re.compile(r"\{(\w+)\}")


class Catalogue:
    """The page's words in one language: `text("seed.label")`, with `{placeholders}` filled from keyword arguments."""

    def __init__(self, language: str = "en"):
        if language not in LANGUAGES:
            raise ValueError(f"language is {language!r}; choose one of {', '.join(LANGUAGES)}")
        self.language = language
        self._entries = {key: words[language] for key, words in entries().items()}

    def __call__(self, key: str, **values: object) -> str:
        return self._entries[key].format(**values)

    def said(self, message: object) -> str:
        """A message of the parts below the page, which speak English; one that nobody has translated stays as it is."""
        words = str(message)
        for pattern, translation in _translations(self.language):
            if found := pattern.fullmatch(words):
                return "".join(found[part] if at % 2 else part for at, part in enumerate(_NAME.split(translation)))
        return words


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


@lru_cache
def _translations(language: str) -> list[tuple[re.Pattern[str], str]]:
    """Whole messages, with what is filled in for each {name}, and the same in `language`."""
    path = TEXTS / "messages" / f"{language}.yaml"
    if not path.is_file():
        return []
    pairs = yaml.safe_load(path.read_text(encoding="utf-8")).items()
    return [(_pattern(english), translation) for english, translation in pairs]


def _pattern(template: str) -> re.Pattern[str]:
    parts = _NAME.split(template)  # words and names in turn
    found = "".join(f"(?P<{part}>.*?)" if at % 2 else re.escape(part) for at, part in enumerate(parts))
    return re.compile(found, re.DOTALL)
