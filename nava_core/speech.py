"""Prompt -> speech spans -> the text the model reads, and spans bound to speakers.

What a person types is read as follows (the text alone decides, and every text has a reading):

- `~~` opens a span and the next `~~` closes it; `<S>` opens one and the next `<E>` closes it. One prompt may use both.
  Inside a span the other kind's closing mark is letters, as are `~~` inside `<S>...<E>`.
- `<S>` is the model's own opening mark, so it always opens: a span that meets one before its closing mark is unclosed.
- An unclosed span ends with its line, or at the `<S>` that it met when that stands on the same line.
- Marks put around marks, `~~<S>...<E>~~`, are one pair.
- `<extra_id_2>` directly after an opening mark belongs to the mark: prompts written for the model carry it already.
  Anywhere else it is letters, and never a speaker position.
- Every opening mark makes a span, also an empty one, so that references keep their places while somebody types.
- `<E>` without a span is letters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SENTINEL = "<extra_id_2>"
OPENING = f"<S>{SENTINEL}"
CLOSING = "<E>"
MARK = "~~"

_OPENING_MARK = re.compile(r"(~~<S>|~~|<S>)(?:[ \t]*<extra_id_2>)*")
_NEXT_MARK = {
    "~~": re.compile(r"~~|<S>"),
    "<S>": re.compile(r"<E>|<S>"),
    "~~<S>": re.compile(r"<E>(?:~~)?|~~|<S>"),
}
_LINE_END = re.compile(r"[\n\v\f\r\x1c-\x1e\x85\u2028\u2029]")


@dataclass(frozen=True)
class SpeechSpan:
    """One line of speech. `source[start:end]` is `text`; `source[mark_start:mark_end]` is the same with its marks."""

    text: str
    start: int
    end: int
    closed: bool
    mark_start: int
    mark_end: int


@dataclass(frozen=True)
class SpeechPrompt:
    """A prompt as typed, with its speech spans in order."""

    source: str
    spans: tuple[SpeechSpan, ...]

    @property
    def model_text(self) -> str:
        """What the text encoder is given, before its cleaning: `<S><extra_id_2>` and `<E>` around each span."""
        return self.marked(OPENING, CLOSING)

    def marked(self, opening: str, closing: str) -> str:
        """The source with each span's marks, as typed, replaced by `opening` and `closing`."""
        parts, position = [], 0
        for span in self.spans:
            parts += [self.source[position : span.mark_start], opening, span.text, closing]
            position = span.mark_end
        return "".join([*parts, self.source[position:]])


def parse_speech(text: str) -> SpeechPrompt:
    """The speech spans of `text` by the rules at the top of this module. Never raises."""
    spans: list[SpeechSpan] = []
    position = 0
    while opening := _OPENING_MARK.search(text, position):
        start = opening.end()
        following = _NEXT_MARK[opening[1]].search(text, start)
        if following and following[0] != "<S>":
            end, mark_end, closed = following.start(), following.end(), True
        else:
            limit = following.start() if following else len(text)
            line_end = _LINE_END.search(text, start, limit)  # no further: many unclosed spans take linear time
            end = mark_end = line_end.start() if line_end else limit
            closed = False
        spans.append(SpeechSpan(text[start:end], start, end, closed, opening.start(), mark_end))
        position = mark_end
    return SpeechPrompt(text, tuple(spans))


def open_slots(references: Sequence[Any]) -> tuple[Any, ...]:
    """References in their places; a blank string is an empty slot, None."""
    return tuple(None if isinstance(item, str) and not item.strip() else item for item in references)


def bind_speakers(spans: Sequence[SpeechSpan], references: Sequence[Any]) -> tuple[Any, ...]:
    """One entry for each span: the i-th reference for the i-th span, None where there is none.

    A reference is whatever the caller uses (a path, samples, an embedding); None and "" are empty slots, which stay
    empty. Raises RequestError (a ValueError) when a reference has no span.
    """
    slots = [*open_slots(references)]
    while slots and slots[-1] is None:
        slots.pop()
    if len(slots) > len(spans):
        from nava_core.request import RequestError  # request.py reads prompts with this module

        raise RequestError(
            "speakers",
            f"{_count(len(slots), 'voice reference')} for {_count(len(spans), 'speech span')}: the i-th reference "
            "belongs to the i-th span. Mark each spoken line as ~~line~~, or remove the surplus references",
        )
    return (*slots, *[None] * (len(spans) - len(slots)))


def read_jsonl_prompt(text: str, num_references: int) -> tuple[str, str | None]:
    """A prompt from a JSONL file, and a note where its marks were read in another way than `parse_speech` would.

    One published form writes two spoken lines as `~~Hello~~Hi there` with two references: each `~~` opens a line. That
    reading is taken only where the references are exactly as many as the `~~` marks, pairs give fewer spans, and each
    reference gets a line that is not empty. The text returned has closed spans, so that `parse_speech` finds them.
    """
    num_spans = len(parse_speech(text).spans)
    pieces = text.split(MARK)
    if len(pieces) - 1 != num_references or num_spans >= num_references:
        return text, None
    closed, lines = [pieces[0]], []
    for piece in pieces[1:]:
        line_end = _LINE_END.search(piece)
        end = line_end.start() if line_end else len(piece)
        closed += [MARK, piece[:end], MARK, piece[end:]]
        lines.append(piece[:end])
    reading = "".join(closed)
    if not all(line.strip() for line in lines) or [span.text for span in parse_speech(reading).spans] != lines:
        return text, None
    quoted = ", ".join(f"“{line}”" for line in lines)
    return reading, (
        f"{num_references} references and {num_references} ~~ marks, which as pairs would make "
        f"{_count(num_spans, 'span')}: each ~~ was read as the start of a spoken line: {quoted}"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
