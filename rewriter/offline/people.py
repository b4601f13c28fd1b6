"""One or two people who speak, understood in a prompt and described as nava-nano was trained on them.

A prompt is read from left to right. What is said of looks and places before a person is named belongs to the person
named next, what is said after belongs to that person; a line belongs to whoever is said to speak.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from rewriter.locking import LockedPrompt, join
from rewriter.offline.setting import read_setting, shown_camera, shown_place
from rewriter.offline.words import (
    MOST_UNKNOWN,
    TIME,
    both,
    data,
    phrase_pattern,
    singular,
    telling,
    unknown_share,
    word_count,
)

LOOKS = ("skin", "hair", "hair_style", "clothes", "column")
COLUMNS = ("left", "centre", "right")
FIRST_START, PAUSE = 0.2, 0.9
"""When the first of two people begins to speak, and how much later the second does, in seconds."""
LONE_START = 0.3
EARLIEST, LATEST = 0.1, 1.6
"""When people of nava-nano's world begin to speak, in seconds."""
LONGEST_LINE = 4
"""Words; longer lines are those of longer clips than nava-nano's."""

_LINE = "\0"
_STOPS, _PAUSES = ".。!?;\n", ",:、"
_LINE_WORDS = re.compile(r"[a-z\d]+(?:['-][a-z\d]+)*|[^\W_a-z\d]")


@dataclass
class Person:
    """Who a prompt speaks of. sex: "f" or "m"; start: when the line begins, in seconds; line: its number."""

    sex: str
    skin: str = ""
    hair: str = ""
    hair_style: str = ""
    clothes: str = ""
    column: str = ""
    start: float | None = None
    line: int | None = None


@dataclass
class PeopleReading:
    """What the lexicon found in a prompt.

    backdrop: the wall behind people. place, camera: see `setting.py`. beyond: whether it says what no caption of this
    world would.
    """

    people: list[Person] = field(default_factory=list)
    backdrop: str = ""
    place: str = ""
    camera: str = ""
    unknown: list[str] = field(default_factory=list)
    known_words: int = 0
    beyond: bool = False

    @property
    def is_scene(self) -> bool:
        """Whether the prompt tells of one or two people who speak once each, and of little else."""
        if self.beyond or not 1 <= len(self.people) <= 2 or any(person.line is None for person in self.people):
            return False
        if len(self.people) == 2 and not _places(self.people):
            return False
        starts = [start for _, start in self.turns]
        in_time = starts == sorted(set(starts)) and starts[-1] <= LATEST
        return in_time and unknown_share(self.unknown, self.known_words) <= MOST_UNKNOWN

    @property
    def turns(self) -> list[tuple[Person, float]]:
        """The people in the order of their lines, and when each begins."""
        speakers = sorted(self.people, key=lambda person: person.line or 0)
        timed: list[tuple[Person, float]] = []
        for person in speakers:
            usual = timed[-1][1] + PAUSE if timed else FIRST_START if len(speakers) > 1 else LONE_START
            timed.append((person, round(usual if person.start is None else person.start, 1)))
        return timed


def read_people(locked: LockedPrompt) -> PeopleReading:
    """Who speaks in the prompt, what they look like, and when they begin."""
    text = _LINE.join(gap.replace(_LINE, " ") for gap in locked.gaps)
    setting = read_setting(text)
    reader = _Reader(_tokens(setting.rest))
    reader.read()
    reader.found.place, reader.found.camera = setting.place, setting.camera
    too_long = any(word_count(_LINE_WORDS.findall(span.text.casefold())) > LONGEST_LINE for span in locked.spans)
    scenery = data("grammar.json")["any"]["sound"]["topics"]
    has_scenery = any(re.search(words, setting.rest) for words in scenery)
    has_two = setting.beyond or bool(setting.place and reader.found.backdrop)
    reader.found.beyond |= too_long or has_scenery or has_two
    return reader.found


def people_caption(locked: LockedPrompt, reading: PeopleReading) -> tuple[str, tuple[str, ...]]:
    """A caption of people who are understood, and notes on how it came about."""
    grammar, scene = data("grammar.json")["people"], data("grammar.json")["scene"]
    looks, chosen = _whole_looks(reading.people)
    backdrop = reading.backdrop or data("lexicon.json")["people"]["defaults"]["backdrop"]
    if not reading.backdrop and not reading.place:
        chosen.append(f"background {backdrop}")
    behind = grammar["wall"].format(backdrop=_shown("backdrop", backdrop))
    gap = f"{scene['style']}。{shown_place(reading.place) if reading.place else behind}"
    for facts in sorted(looks.values(), key=lambda facts: COLUMNS.index(facts["column"])):
        gap += grammar["introduction"].format(**_all_shown(facts))
    gaps = []
    for number, (person, start) in enumerate(reading.turns):
        facts = looks[number]
        who = grammar["who"].format(**_all_shown(facts)) if len(looks) == 2 else grammar["pronoun"][person.sex]
        gaps.append(gap + grammar["saying"].format(who=who, start=start))
        if person.start is None:
            chosen.append(f"line {number + 1} at {start:.1f} s")
        gap = grammar["sounding"].format(voice=grammar["voice"][person.sex], side=scene["side"][facts["column"]])
    gaps.append(gap + grammar["ending"].format(camera=shown_camera(reading.camera)))
    return join(gaps, locked), telling("; ".join(chosen), reading.unknown)


def _whole_looks(people: list[Person]) -> tuple[dict[int, dict[str, str]], list[str]]:
    """Sex and every look of each person by the number of the line, and what of it was chosen here."""
    columns = _places(people) if len(people) == 2 else [people[0].column or "centre"]
    whole, chosen = {}, []
    taken = {_worn(person.clothes) for person in people}
    for person, column in zip(people, columns, strict=True):
        defaults = _defaults(person, column, taken)
        asked = {look: getattr(person, look) for look in LOOKS}
        looks = {look: asked[look] or defaults[look] for look in LOOKS}
        looks["clothes"] = _worn(looks["clothes"])
        taken.add(looks["clothes"])
        whole[person.line or 0] = {"sex": person.sex, **looks}
        others = [
            f"{look.replace('_', ' ')} {looks[look]}" + (f" for {asked[look]}" if asked[look] else "")
            for look in LOOKS
            if looks[look] != asked[look]
        ]
        if others:
            chosen.append((f"{column} person " if len(people) == 2 else "") + ", ".join(others))
    return whole, chosen


def _places(people: list[Person]) -> list[str]:
    """Where two people are: one on the left and one on the right; empty where the prompt wants it otherwise."""
    first, second = (person.column for person in people)
    for columns in (["left", "right"], ["right", "left"]):
        if first in ("", columns[0]) and second in ("", columns[1]):
            return columns
    return []


def _defaults(person: Person, column: str, taken: set[str]) -> dict[str, str]:
    """Looks where the prompt names none; clothes that nobody else wears."""
    lexicon = data("lexicon.json")["people"]
    clothes = next(colour for colour in lexicon["default_clothes"] if colour not in taken)
    style = lexicon["default_hair_style"][person.sex]
    return {**lexicon["defaults"], "hair_style": style, "clothes": clothes, "column": column}


def _worn(colour: str) -> str:
    """The colour of clothes for one that is asked for: shades are of shapes alone, and people wear the nearest."""
    nearest: dict[str, str] = data("lexicon.json")["people"]["clothes_of_shades"]
    return nearest.get(colour, colour)


def _is_of_hair(means: dict[str, str]) -> bool:
    """Whether a word without a noun tells of hair, as in "a blond woman": it means nothing else that people have.

    A shade, as in "a silver woman", is a colour that their clothes do not have.
    """
    return {look for look, value in means.items() if look != "clothes" or value == _worn(value)} == {"hair"}


def _shown(fact: str, value: str) -> str:
    """The wording of a fact that captions use."""
    people = data("lexicon.json")["people"]
    if fact in people["shown"]:
        shown: str = people["shown"][fact][value]
        return shown
    return _looks()[fact][value]["zh"][0]


def _all_shown(facts: dict[str, str]) -> dict[str, str]:
    return {fact: _shown(fact, value) for fact, value in facts.items()}


@lru_cache
def _looks() -> dict[str, dict[str, dict[str, list[str]]]]:
    """Look -> value -> its words. A shape's colours are those of clothes, and its backgrounds those behind people."""
    lexicon = data("lexicon.json")
    looks: dict[str, dict[str, dict[str, list[str]]]] = dict(lexicon["people"]["looks"])
    backdrop = lexicon["facts"]["background"] | looks["backdrop"]
    return looks | {"clothes": lexicon["facts"]["colour"], "column": lexicon["facts"]["column"], "backdrop": backdrop}


@lru_cache
def _matcher() -> tuple[re.Pattern[str], dict[str, tuple[str, str]], dict[str, dict[str, str]]]:
    """A pattern of a text's tokens; phrase -> kind and value; and describing word -> what it means of which look."""
    lexicon = data("lexicon.json")
    people = lexicon["people"]
    meanings: dict[str, tuple[str, str]] = {}
    describing: dict[str, dict[str, str]] = {}
    for look, values in _looks().items():
        for value, names in values.items():
            for phrase in both(names):
                if look == "column":
                    meanings[phrase] = ("column", value)
                else:
                    describing.setdefault(phrase, {})[look] = value
    for phrase, colour in lexicon["colour_of_things"].items():
        describing.setdefault(phrase, {}).setdefault("clothes", colour)
    for kind in ("nouns", "sex", "pronoun"):
        for value, names in people[kind].items():
            meanings.update((phrase, (kind, value)) for phrase in both(names))
    meanings.update((phrase, ("describing", "")) for phrase in describing)
    groups = [(kind, people[kind]) for kind in ("another", "saying", "addressing", "joining", "known", "small_words")]
    groups += [("beyond", people["beyond"]), ("known", lexicon["manner"]), ("beyond", lexicon["beyond"])]
    groups += [("beyond", names) for names in (*lexicon["facts"]["shape"].values(), lexicon["falling"])]
    groups.append(("small_words", lexicon["small_words"]))
    for kind, names in groups:
        for phrase in both(names):
            meanings.setdefault(phrase, (kind, ""))
    pattern = f"{TIME.pattern}|[{re.escape(_LINE + _STOPS + _PAUSES)}]|{phrase_pattern(meanings)}"
    return re.compile(pattern), meanings, describing


def _tokens(text: str) -> list[tuple[str, str, str]]:
    """Words, each with its kind and value, without those that say nothing."""
    return [token for token in _all_tokens(text) if token[1] != "small_words"]


def _all_tokens(text: str) -> Iterator[tuple[str, str, str]]:
    pattern, meanings, _ = _matcher()
    for match in pattern.finditer(text):
        word = match[0]
        if match["seconds"]:
            yield word, "time", match["seconds"]
        elif word == _LINE:
            yield word, "line", ""
        elif word in _STOPS or word in _PAUSES:
            yield word, "stop" if word in _STOPS else "pause", ""
        else:
            known = singular(meanings, word)
            yield (known, *meanings[known]) if known in meanings else (word, "unknown", "")


class _Reader:
    """Goes through the tokens once. Each method `_<kind>` takes a word of that kind and its value."""

    def __init__(self, tokens: list[tuple[str, str, str]]) -> None:
        self.found = PeopleReading()
        self._tokens = tokens
        self._at = 0
        self._lines = 0
        self._spoken_of: Person | None = None  # whose looks follow
        self._subject: Person | None = None
        self._speaker: Person | None = None  # of the next line, once a word such as "says" has settled it
        self._waiting: dict[str, str] = {}  # looks of the person to be named next
        self._words: list[str] = []  # words whose noun has not come
        self._noun = ""
        self._is_another = self._is_addressed = False
        self._awaits_person = True  # at the beginning of a sentence, and after a line's own clause
        self._has_just_spoken = False

    def read(self) -> None:
        while self._at < len(self._tokens):
            word, kind, value = self._tokens[self._at]
            if kind in ("unknown", "beyond"):
                self.found.unknown.append(word)
                self.found.beyond |= kind == "beyond"
            elif kind not in ("line", "stop", "pause", "another", "joining", "addressing"):
                self.found.known_words += 1
            if kind not in ("describing", "nouns", "known", "unknown", "joining"):
                self._settle()
            if kind not in ("another", "addressing", "sex", "pronoun"):
                self._is_addressed = False
            getattr(self, f"_{kind}", lambda word, value: None)(word, value)
            self._at += 1
        self._settle()
        self._stop("", "")

    def _describe(self, look: str, value: str) -> None:
        """Give `look` to whom it belongs; other than what was said before, the prompt is not understood."""
        if look == "backdrop":
            self.found.beyond |= self.found.backdrop not in ("", value)
            self.found.backdrop = value
        elif self._spoken_of is None or self._awaits_person or self._is_person_ahead():
            self.found.beyond |= self._waiting.get(look, value) != value
            self._waiting[look] = value
        else:
            self._give(self._spoken_of, {look: value})

    def _give(self, person: Person, looks: dict[str, str]) -> None:
        for look, value in looks.items():
            given = float(value) if look == "start" else value
            self.found.beyond |= getattr(person, look) not in ("", None, given)
            setattr(person, look, given)

    def _is_person_ahead(self) -> bool:
        """Whether somebody is named before the clause ends."""
        for word, kind, _ in self._tokens[self._at :]:
            if kind in ("line", "stop", "joining", "saying") or (kind == "pause" and word != "、"):
                return False
            if kind == "sex":
                return True
        return False

    def _settle(self, noun: str = "") -> None:
        """Let the describing words before `noun`, or after the one before it, say what they mean of it."""
        _, _, describing = _matcher()
        alone = data("lexicon.json")["background_alone"]
        words, self._words = self._words, []
        for word in words:
            means = describing[word]
            about = noun or self._noun or ("hair" if _is_of_hair(means) else "")
            if about not in means and "backdrop" in means and word in alone:
                about = "backdrop"
            looks = [look for look in ("hair", "hair_style") if look in means] if about == "hair" else [about]
            looks = [look for look in looks if look in means]
            for look in looks:
                self._describe(look, means[look])
            if not looks:
                self.found.known_words -= 1
                self.found.unknown.append(word)

    def _describing(self, word: str, value: str) -> None:
        self._words.append(word)

    def _nouns(self, word: str, value: str) -> None:
        self._settle(value)
        self._noun = value
        self._is_another = self._is_another and not word.isascii()  # it was the article of this noun

    def _column(self, word: str, value: str) -> None:
        self._describe("column", value)

    def _time(self, word: str, value: str) -> None:
        if not EARLIEST <= float(value) <= LATEST:
            self.found.unknown.append(word)
            self.found.known_words -= 1
        else:
            self._describe("start", value)

    def _another(self, word: str, value: str) -> None:
        self._is_another, self._noun = True, ""

    def _addressing(self, word: str, value: str) -> None:
        self._is_addressed = True

    def _saying(self, word: str, value: str) -> None:
        self._speaker, self._noun = self._subject, ""

    def _sex(self, word: str, value: str) -> None:
        column = self._waiting.get("column", "")
        known = [person for person in self.found.people if person.sex == value]
        there = [person for person in known if person.column == column]
        same = (column and there) or [person for person in known if not (person.column and column)]
        if self._is_another or not same:
            same = [Person(value)]
            self.found.people += same
        self._name(same)

    def _pronoun(self, word: str, value: str) -> None:
        self._name([person for person in self.found.people if person.sex == value])

    def _name(self, persons: list[Person]) -> None:
        """The text speaks of the one of `persons` that it can mean."""
        if len(persons) != 1:
            persons = [person for person in persons if person is self._subject]
        if not persons:
            self.found.beyond = True
            return
        (self._spoken_of,) = persons
        if not self._is_addressed:
            self._subject = self._spoken_of
        self._give(self._spoken_of, self._waiting)
        self._waiting = {}
        self._noun = ""
        self._is_another = self._is_addressed = self._awaits_person = self._has_just_spoken = False

    def _line(self, word: str, value: str) -> None:
        speaker = self._speaker or self._subject
        self._stop(word, value)
        if speaker is None or speaker.line is not None:
            self.found.beyond = True
        else:
            speaker.line = self._lines
        self._lines += 1
        self._spoken_of = self._subject = speaker
        self._speaker = None
        self._awaits_person, self._has_just_spoken = False, True

    def _pause(self, word: str, value: str) -> None:
        self._noun = ""
        self._awaits_person |= self._has_just_spoken

    def _stop(self, word: str, value: str) -> None:
        if self._spoken_of is not None:
            self._give(self._spoken_of, self._waiting)
            self._waiting = {}
        self._noun = ""
        self._is_another = False
        self._awaits_person = True
