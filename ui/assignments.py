"""Which voice speaks which line. Pure: a voice stays with its line while the prompt around it changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from nava_core.request import RequestError
from nava_core.speech import parse_speech
from ui.library.voices import COLOURS, Voice, VoiceLibrary, voice_id_of

# Two texts with so much in common are one line that was changed; as much of them is looked at.
ALIKE, COMPARED = 0.6, 300


@dataclass(frozen=True)
class Assignments:
    """The voices' ids by span, None for no voice, and the lines that they were given to.

    A browser keeps those of the last prompt whose marks were all closed: while somebody types a new line into the
    middle, its marks pair up with those of others, and every line is another one for a moment.
    """

    lines: tuple[str, ...] = ()
    voices: tuple[str | None, ...] = ()

    @classmethod
    def read(cls, stored: Any) -> Assignments:
        """From what a browser keeps, which may be nothing, or of another version."""
        given = stored if isinstance(stored, dict) else {}
        lines, voices = given.get("lines"), given.get("voices")
        if not isinstance(lines, list | tuple) or not isinstance(voices, list | tuple) or len(lines) != len(voices):
            return cls()
        return cls(
            tuple(str(line) for line in lines), tuple(voice if isinstance(voice, str) else None for voice in voices)
        )

    def to_json(self) -> dict[str, Any]:
        return {"lines": list(self.lines), "voices": list(self.voices)}

    def follow(self, prompt: str) -> Assignments:
        """The same voices for the lines of a changed prompt."""
        lines = tuple(span.text for span in parse_speech(prompt).spans)
        return self if lines == self.lines else Assignments(lines, carry_over(self.lines, self.voices, lines))

    def settled(self, prompt: str) -> Assignments:
        """What to keep of `follow`."""
        spans = parse_speech(prompt).spans
        return self.follow(prompt) if spans and all(span.closed for span in spans) else self

    def assign(self, index: int, voice_id: str | None) -> Assignments:
        """With another voice for one line; unchanged where there is no such line."""
        if not 0 <= index < len(self.voices):
            return self
        return Assignments(self.lines, (*self.voices[:index], voice_id, *self.voices[index + 1 :]))


def carry_over(old: Sequence[str], voices: Sequence[str | None], new: Sequence[str]) -> tuple[str | None, ...]:
    """The voices of the lines `new`, where those of `old` had `voices`.

    A line that is there letter for letter keeps its voice, in its place or in another one. The others follow, between
    the same neighbours, those that they are like, and else in order. A line that is new has none.
    """
    blocks = SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks()
    source = {block.b + step: block.a + step for block in blocks for step in range(block.size)}
    taken = set(source.values())
    for place, line in enumerate(new):
        moved = next((at for at, text in enumerate(old) if at not in taken and text == line), None)
        if place not in source and moved is not None:
            source[place] = moved
            taken.add(moved)
    a = b = 0
    for block in blocks:  # the last one is empty and stands at the end
        changed = [at for at in range(a, block.a) if at not in taken]
        places = [place for place in range(b, block.b) if place not in source]
        source.update(_paired(changed, places, old, new))
        a, b = block.a + block.size, block.b + block.size
    return tuple(voices[source[place]] if place in source else None for place in range(len(new)))


def _paired(changed: list[int], places: list[int], old: Sequence[str], new: Sequence[str]) -> dict[int, int]:
    """New places by what stood there: the most alike first, the rest in order."""
    changed, places, pairs = list(changed), list(places), {}
    if len(changed) != len(places):
        alike = sorted(
            ((_likeness(old[at], new[place]), -at, -place) for at in changed for place in places), reverse=True
        )
        for likeness, at, place in alike:
            if likeness >= ALIKE and -at in changed and -place in places:
                pairs[-place] = -at
                changed.remove(-at)
                places.remove(-place)
    return pairs | dict(zip(places, changed, strict=False))


def _likeness(one: str, other: str) -> float:
    return SequenceMatcher(None, one[:COMPARED], other[:COMPARED], autojunk=False).ratio()


# What the page asks of it


def speakers_of(library: VoiceLibrary | None, owner: str, prompt: str, stored: Any) -> tuple[Path | None, ...]:
    """A recording for each speech span of `prompt`, as `GenerationRequest.speakers` has them.

    stored: what the script panel's `assignments` holds; of an earlier prompt, too. Raises RequestError ("speakers")
    where a voice has been deleted since.
    """
    assignments = Assignments.read(stored).follow(prompt)
    if library is None:
        return (None,) * len(assignments.lines)
    voices = {voice.id: voice for voice in library.list(owner)}
    for number, voice_id in enumerate(assignments.voices, start=1):
        if voice_id is not None and voice_id not in voices:
            raise RequestError(
                "speakers", f"the voice of line {number} was deleted; choose another one for it, or none, in the script"
            )
    return tuple(None if voice_id is None else voices[voice_id].path for voice_id in assignments.voices)


def assignments_of(library: VoiceLibrary | None, owner: str, prompt: str, speakers: Iterable[Any]) -> dict[str, Any]:
    """The way back, for a recipe's prompt and speakers: what `assignments` must hold to have these voices again.

    Recordings that are of no voice in the owner's library are left out.
    """
    known = set() if library is None else {voice.id for voice in library.list(owner)}
    ids = [voice_id_of(speaker) if isinstance(speaker, str | Path) else None for speaker in speakers]
    lines = [span.text for span in parse_speech(prompt).spans]
    found = [voice_id if voice_id in known else None for voice_id in ids][: len(lines)]
    return {"lines": lines, "voices": [*found, *[None] * (len(lines) - len(found))]}


def colours_of(voices: Sequence[Voice], prompt: str, stored: Any) -> tuple[int, ...]:
    """The colour of each span, 1 to 8: its voice's, or that of its number where it has none."""
    assignments = Assignments.read(stored).follow(prompt)
    colours = {voice.id: voice.colour for voice in voices}
    return tuple(
        colours.get(voice_id or "", (number - 1) % COLOURS + 1)
        for number, voice_id in enumerate(assignments.voices, start=1)
    )
