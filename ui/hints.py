"""Whether a prompt is outside what a small model has learned, and the words for it.

A model's `hint` lists what it knows after colons, as in "Shapes: ball, star. Colours: red, blue." or in Chinese.
"""

from __future__ import annotations

import re

from nava_core.request import ModelSpec
from ui.catalogue import Catalogue

_LIST = re.compile(r"[:：]([^:：.。;；\n]+)")
_SEPARATOR = re.compile(r"[,，、/|()（）]|\bor\b|\band\b")


def known_words(hint: str) -> tuple[str, ...]:
    """The words that a hint lists, in lower case."""
    items = (item.strip().lower() for listed in _LIST.findall(hint) for item in _SEPARATOR.split(listed))
    return tuple(item for item in items if item)


def outside_hint(text: Catalogue, spec: ModelSpec, prompt: str) -> str:
    """What the model knows, where the prompt names none of it; empty where there is nothing to say."""
    words = known_words(spec.hint)
    if not words or not prompt.strip() or any(_names(prompt.lower(), word) for word in words):
        return ""
    return f"{text('hint.outside', model=spec.name)} {spec.hint}"


def _names(prompt: str, word: str) -> bool:
    if word.isascii():
        return re.search(rf"\b{re.escape(word)}s?\b", prompt) is not None
    return word in prompt
