"""The offline composer's words: its data, and what cuts a text into phrases with meanings."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

NOTE_SCENE = "composed by rule, without a language model"
MOST_UNKNOWN = 0.2
"""Share of a prompt's words that the lexicon may not know while the scene still counts as understood."""

_FOLDER = Path(__file__).parent
TIME = re.compile(r"(?:大?约|在?第)*(?P<seconds>\d+(?:\.\d+)?)\s*(?:秒钟?[时后]?|(?:s|secs?|seconds?)\b)")
_OTHER_TOKENS = r"[a-z]+(?:['-][a-z]+)*|\d+|[^\W_a-z\d]"
_CHINESE_CHARACTER = 0.5  # of a word

Wordings = dict[str, list[str]]  # by language


@lru_cache
def data(name: str) -> dict[str, Any]:
    """What a JSON file of this folder holds."""
    found: dict[str, Any] = json.loads((_FOLDER / name).read_text(encoding="utf-8"))
    return found


def both(names: Wordings) -> list[str]:
    """The wordings of both languages."""
    return [*names["zh"], *names["en"]]


def phrase_pattern(phrases: Iterable[str]) -> str:
    """A pattern that cuts a text into the longest of `phrases` and other words."""
    ordered = sorted(phrases, key=len, reverse=True)
    known = [rf"\b{re.escape(phrase)}(?:s\b|\b)" if phrase.isascii() else re.escape(phrase) for phrase in ordered]
    return "|".join([*known, _OTHER_TOKENS])


def singular(meanings: dict[str, Any], word: str) -> str:
    """`word` as `meanings` has it, if it does."""
    return word if word in meanings else word.removesuffix("s")


def word_count(words: Sequence[str]) -> float:
    """How many words these are, a Chinese character counting as a part of one."""
    return sum(1 if word.isascii() else _CHINESE_CHARACTER for word in words)


def unknown_share(unknown: Sequence[str], known_words: int) -> float:
    """Which part of a text's words the lexicon does not know."""
    amount = word_count(unknown)
    return amount / max(1e-9, amount + known_words)


def telling(chosen: str, unknown: Sequence[str]) -> tuple[str, ...]:
    """Notes on a composed caption: what was chosen where the prompt is silent, and what of it was left out."""
    notes = [NOTE_SCENE]
    if chosen:
        notes.append(f"chosen for you: {chosen}")
    if unknown:
        notes.append("left out, since the lexicon does not know them: " + ", ".join(dict.fromkeys(unknown)))
    return tuple(notes)
