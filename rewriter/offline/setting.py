"""What a prompt says of nava-nano's cameras and of its places, read and taken out of the text.

Each is a pattern of `lexicon.json`, so that what is left is about people and things alone.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from rewriter.locking import LockedPrompt, join
from rewriter.offline.words import MOST_UNKNOWN, both, data, phrase_pattern, singular, telling, unknown_share

STILL = "still"


@dataclass(frozen=True)
class Setting:
    """camera, place: keys of the lexicon's `camera` and `place`, empty where the text names none. beyond: it names two
    of one kind. rest: the text without them.
    """

    camera: str
    place: str
    beyond: bool
    rest: str


def read_setting(text: str, kinds: tuple[str, ...] = ("camera", "place")) -> Setting:
    """What `text` says of these `kinds`; the rest of it is in lower case."""
    text = unicodedata.normalize("NFKC", text).casefold()
    found: dict[str, set[str]] = {kind: set() for kind in ("camera", "place")}
    for kind in kinds:
        for value, pattern in _patterns()[kind].items():
            text, count = pattern.subn(" ", text)
            if count:
                found[kind].add(value)
    beyond = any(len(values) > 1 for values in found.values())
    camera, place = (min(values, default="") for values in found.values())
    return Setting(camera, place, beyond, text)


def shown_camera(camera: str) -> str:
    """The wording of captions; without a camera it stands still."""
    shown: dict[str, str] = data("grammar.json")["setting"]["camera"]
    return shown[camera or STILL]


def shown_place(place: str) -> str:
    """What a caption says is behind people, and how it sounds."""
    grammar = data("grammar.json")["setting"]
    shown: str = grammar["opening"].format(place=grammar["place"][place], sound=grammar["sound"][place])
    return shown


def view_caption(locked: LockedPrompt, setting: Setting) -> tuple[str, tuple[str, ...]] | None:
    """A caption of a place alone, and notes on how it came about; None where the prompt is of something else."""
    if locked.spans or setting.beyond or not setting.place:
        return None
    pattern, known = _around_places()
    words = pattern.findall(setting.rest)
    unknown = [word for word in words if singular(known, word) not in known]
    if unknown_share(unknown, len(words) - len(unknown) + 1) > MOST_UNKNOWN:
        return None
    caption = f"{data('grammar.json')['scene']['style']}。{shown_place(setting.place)}{shown_camera(setting.camera)}。"
    return join([caption], locked), telling("" if setting.camera else "camera still", unknown)


@lru_cache
def _patterns() -> dict[str, dict[str, re.Pattern[str]]]:
    lexicon = data("lexicon.json")
    return {
        kind: {value: re.compile(pattern) for value, pattern in lexicon[kind].items()} for kind in ("camera", "place")
    }


@lru_cache
def _around_places() -> tuple[re.Pattern[str], dict[str, None]]:
    """A pattern that cuts a text into phrases, and those that may stand beside a place without saying anything else."""
    lexicon = data("lexicon.json")
    known = dict.fromkeys(phrase for kind in ("manner", "small_words", "view") for phrase in both(lexicon[kind]))
    return re.compile(phrase_pattern(known)), known
