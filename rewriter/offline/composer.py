"""A dense caption by lexicon and grammar alone: transparent, deterministic, and no model at all.

A prompt about nava-nano's world (one coloured shape that falls, one or two people who speak: `people.py`, or a place:
`setting.py`), in English, Chinese or a mixture, becomes a caption of the form that nava-nano was trained on; what the
prompt leaves open gets the lexicon's plain defaults. Any other prompt keeps its own words, in its own language, and
gains sentences about camera and sound. The words and forms are in `lexicon.json` and `grammar.json`.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from rewriter.locking import LockedPrompt, clean_gap, join
from rewriter.offline.people import people_caption, read_people
from rewriter.offline.setting import read_setting, shown_camera, view_caption
from rewriter.offline.words import MOST_UNKNOWN, TIME, both, data, phrase_pattern, singular, telling, unknown_share

NOTE_WORDS = "composed by rule, without a language model: your words are kept as they are and not translated"
FACTS = ("shape", "colour", "size", "column", "drop", "release", "background")

EARLIEST, LATEST = 0.3, 1.6
"""When a shape of nava-nano's world first touches the floor, in seconds."""

_SENTENCE_ENDS = tuple("。！？!?.…；;")


@dataclass
class Reading:
    """What the lexicon found in a text.

    facts: fact -> its values in order. moment: the seconds at which the shape lands, if the text names one such time.
    unknown: words that the lexicon does not know. beyond: whether the text counts things or denies something, so that a
    caption of one falling thing would be untrue.
    """

    facts: dict[str, list[str]] = field(default_factory=dict)
    moment: float | None = None
    unknown: list[str] = field(default_factory=list)
    known_words: int = 0
    falls: bool = False
    beyond: bool = False

    @property
    def is_scene(self) -> bool:
        """Whether the text tells of one thing of nava-nano's world, and of little else."""
        if self.beyond or any(len(values) > 1 for values in self.facts.values()):
            return False
        named = "shape" in self.facts or ("colour" in self.facts and self.falls and not self.unknown)
        return named and unknown_share(self.unknown, self.known_words) <= MOST_UNKNOWN


def compose_caption(locked: LockedPrompt) -> tuple[str, tuple[str, ...]]:
    """A caption of a locked prompt, and notes on how it came about."""
    people = read_people(locked)
    if people.is_scene:
        return people_caption(locked, people)
    if not people.people:
        view = view_caption(locked, read_setting(locked.description))
        if view is not None:
            return view
        setting = read_setting(locked.description, kinds=("camera",))
        reading = understand(setting.rest)
        if reading.is_scene and not setting.beyond:
            return _scene_caption(locked, reading, shown_camera(setting.camera))
    return _worded_caption(locked), (NOTE_WORDS,)


def understand(text: str) -> Reading:
    """What of nava-nano's world `text` speaks of."""
    pattern, meanings = _matcher()
    moment, rest, other_times = _moment(unicodedata.normalize("NFKC", text).casefold())
    words = pattern.findall(rest)
    tokens = [(word, *_meaning(meanings, word)) for word in words]
    beyond = any(
        kind == "beyond" and following not in data("lexicon.json")["times"]  # "three times" counts no things
        for (_, kind, _), following in zip(tokens, [*words, ""][1:], strict=True)
    )
    tokens = [token for token in tokens if token[1] != "small word"]
    reading = Reading(moment=moment, unknown=other_times, known_words=int(moment is not None), beyond=beyond)
    for index, (word, kind, value) in enumerate(tokens):
        if kind == "background":
            beside = [other for other, *_ in tokens[max(0, index - 1) : index + 2]]
            kind, value = _background_or_colour(word, value, beside)
        reading.falls = reading.falls or kind == "falling"
        if kind in ("unknown", "beyond"):
            reading.unknown.append(word)
            continue
        reading.known_words += 1
        if kind in {*FACTS, "contacts"} and value not in (values := reading.facts.setdefault(kind, [])):
            values.append(value)
    return reading


def _moment(text: str) -> tuple[float | None, str, list[str]]:
    """The one time that `text` names, in seconds, if a fall can end then; the text without times; other times."""
    found = list(TIME.finditer(text))
    times = {float(match["seconds"]) for match in found}
    rest = TIME.sub(" ", text)
    if len(times) == 1 and EARLIEST <= min(times) <= LATEST:
        return min(times), rest, []
    return None, rest, [match[0] for match in found]


def _meaning(meanings: dict[str, tuple[str, str]], word: str) -> tuple[str, str]:
    return meanings.get(singular(meanings, word), ("unknown", ""))


def _background_or_colour(word: str, value: str, beside: list[str]) -> tuple[str, str]:
    """A background's colour only counts as one beside "background" or "wall": a dark blue ball is a blue thing."""
    lexicon = data("lexicon.json")
    if word in lexicon["background_alone"] or not set(beside).isdisjoint(lexicon["background_nouns"]):
        return "background", value
    colour = lexicon["colour_of_things"].get(word)
    return ("colour", colour) if colour else ("unknown", "")


def _scene_caption(locked: LockedPrompt, reading: Reading, camera: str) -> tuple[str, tuple[str, ...]]:
    lexicon, grammar = data("lexicon.json"), data("grammar.json")["scene"]
    named = {fact: values[0] for fact, values in reading.facts.items()}
    missing = [fact for fact in FACTS if fact not in named]
    facts = {fact: named.get(fact, lexicon["defaults"][fact]) for fact in FACTS}
    fall = lexicon["fall_seconds"][facts["drop"]]
    if reading.moment is not None and "release" in missing:
        facts["release"] = next(
            value for value, until in lexicon["release_until"].items() if reading.moment - fall < until
        )
    moment = fall + lexicon["usual_release"][facts["release"]] if reading.moment is None else reading.moment
    contacts = named.get("contacts", str(lexicon["usual_contacts"][facts["shape"]][facts["drop"]]))
    words = {fact: lexicon["facts"][fact][value]["zh"][0] for fact, value in facts.items()}
    caption = grammar["caption"].format(
        style=grammar["style"],
        background=grammar["background"].format(**words),
        hanging=grammar["hanging"].format(**words),
        falling=grammar["falling"].format(**words),
        landing=grammar["landing"].format(moment=f"{moment:.1f}"),
        bouncing=grammar["bouncing"][contacts],
        sounding=grammar["sounding"].format(
            sound=grammar["sound"][facts["shape"]], side=grammar["side"][facts["column"]]
        ),
        camera=camera,
    )
    chosen = [f"{fact} {facts[fact]}" for fact in missing]
    if reading.moment is None:
        chosen.append(f"landing at {moment:.1f} s")
    notes = telling(", ".join(chosen), reading.unknown)
    if not locked.spans:
        return join([caption], locked), notes
    speech = grammar["speech"]
    gaps = [caption + speech["opening"], *[speech["between"]] * (len(locked.spans) - 1), speech["closing"]]
    return join(gaps, locked), notes


def _worded_caption(locked: LockedPrompt) -> str:
    """The prompt's own words and speech in their places, then camera and sound where it names none."""
    grammar = data("grammar.json")["any"]
    description = unicodedata.normalize("NFKC", locked.description)
    gaps = [clean_gap(" ".join(gap.splitlines())) for gap in locked.gaps]
    if locked.spans and not any(gap.strip() for gap in gaps):
        gaps[0] = grammar["speech_alone"]
    additions = []
    if not re.search(grammar["camera"]["named"], description, re.IGNORECASE):
        additions.append(grammar["camera"]["sentence"])
    if not re.search(grammar["sound"]["named"], description, re.IGNORECASE):
        additions.append(_sound_sentence(grammar["sound"], description, bool(locked.spans)))
    if additions:
        gaps[-1] = _as_sentence(gaps[-1].rstrip()) + "".join(additions)
    return join(gaps, locked)


def _as_sentence(text: str) -> str:
    """`text` (empty after a span) with an end, so that a Chinese sentence can follow."""
    if not text.endswith(_SENTENCE_ENDS):
        text += "." if text[-1:].isalnum() and text[-1:].isascii() else "。"
    return f"{text} " if text[-1].isascii() else text


def _sound_sentence(grammar: dict[str, Any], description: str, with_speech: bool) -> str:
    topics = [sound for words, sound in grammar["topics"].items() if re.search(words, description, re.IGNORECASE)]
    ambience = "、".join(topics[:2]) or grammar["ambience"]

    def names(what: str) -> bool:
        return re.search(grammar[what], description, re.IGNORECASE) is not None

    # People who talk without a line of their own are not said to be silent, nor do lips move for a narrator.
    if with_speech:
        kind = "with_narrator" if names("narrator") else "with_speech"
    else:
        kind = "with_talk" if names("talk") else "without_speech"
    sentence: str = grammar[kind]
    return sentence.format(ambience=ambience)


@lru_cache
def _matcher() -> tuple[re.Pattern[str], dict[str, tuple[str, str]]]:
    """A pattern that cuts a text into the longest known phrases and other words, and what each phrase means."""
    lexicon = data("lexicon.json")
    meanings: dict[str, tuple[str, str]] = {}
    groups = [(fact, value, names) for fact, values in lexicon["facts"].items() for value, names in values.items()]
    groups += [
        (kind, "", lexicon[name])
        for kind, name in (
            ("falling", "falling"),
            ("known", "thing"),
            ("known", "known"),
            ("known", "manner"),
            ("small word", "small_words"),
            ("beyond", "beyond"),
        )
    ]
    for kind, value, names in groups:
        for phrase in both(names):
            meanings.setdefault(phrase, (kind, value))
    return re.compile(phrase_pattern(meanings)), meanings
