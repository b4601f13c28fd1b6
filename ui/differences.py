"""What a rewriting changed, token by token, with its spoken lines as they are. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from html import escape
from typing import Literal

from nava_core.speech import parse_speech
from ui import views
from ui.catalogue import Catalogue

Kind = Literal["same", "removed", "added", "speech"]
# A word of letters and digits, one character of a script without spaces, a run of blanks, or any other character.
_TOKEN = re.compile(r"[a-zA-Z0-9À-ɏ'’]+|\s+|.", re.DOTALL)
# Where less is the same (a translation), marks would only be noise.
WORTH_MARKING = 0.25


@dataclass(frozen=True)
class Piece:
    """A stretch of one text. number: which spoken line it is, counted from 1; 0 for other text."""

    kind: Kind
    text: str
    number: int = 0


@dataclass(frozen=True)
class Differences:
    """Both texts in pieces; put together they are the texts. alike: whether enough is the same for marks to help."""

    before: tuple[Piece, ...]
    after: tuple[Piece, ...]
    alike: bool


def differences(before: str, after: str) -> Differences:
    """Compare two prompts. Spoken lines are compared whole, and never marked inside."""
    old, new = _tokens(before), _tokens(after)
    matcher = SequenceMatcher(None, [token.text for token in old], [token.text for token in new], autojunk=False)
    words = [token for token in (*old, *new) if not token.number and token.text.strip()]
    same = sum(
        len(token.text)
        for match in matcher.get_matching_blocks()
        for token in old[match.a : match.a + match.size]
        if not token.number and token.text.strip()
    )
    alike = not words or 2 * same >= WORTH_MARKING * sum(len(token.text) for token in words)
    left: list[Piece] = []
    right: list[Piece] = []
    for tag, i1, i2, j1, j2 in matcher.get_opcodes():
        changed = tag != "equal" and alike
        left += _marked(old[i1:i2], "removed" if changed else "same")
        right += _marked(new[j1:j2], "added" if changed else "same")
    return Differences(_joined(left), _joined(right), alike)


def _tokens(text: str) -> list[Piece]:
    tokens, position = [], 0
    for number, span in enumerate(parse_speech(text).spans, start=1):
        tokens += [Piece("same", token) for token in _TOKEN.findall(text[position : span.mark_start])]
        tokens.append(Piece("speech", text[span.mark_start : span.mark_end], number))
        position = span.mark_end
    return [*tokens, *(Piece("same", token) for token in _TOKEN.findall(text[position:]))]


def _marked(tokens: list[Piece], kind: Kind) -> list[Piece]:
    return [token if token.number else Piece(kind, token.text) for token in tokens]


def _joined(pieces: list[Piece]) -> tuple[Piece, ...]:
    joined: list[Piece] = []
    for piece in pieces:
        if joined and not piece.number and joined[-1].kind == piece.kind:
            joined[-1] = Piece(piece.kind, joined[-1].text + piece.text)
        else:
            joined.append(piece)
    return tuple(joined)


def differences_view(text: Catalogue, before: str, after: str) -> str:
    """Both texts beside each other; what was taken out and put in is marked, spoken lines carry a lock."""
    found = differences(before, after)
    note = "" if found.alike else views.quiet(text("caption.anew"))
    columns = "".join(
        f'<section class="nava-version" tabindex="0" aria-label="{escape(text(key))}"><h3>{escape(text(key))}</h3>'
        f"<p>{''.join(_piece(text, piece) for piece in pieces)}</p></section>"
        for key, pieces in (("caption.before", found.before), ("caption.after", found.after))
    )
    return f'<div class="nava-versions">{columns}</div>{note}'


def _piece(text: Catalogue, piece: Piece) -> str:
    words = escape(piece.text)
    if piece.number:
        title = escape(text("caption.locked"))
        return f'<mark data-colour="{views.colour(piece.number)}" data-locked title="{title}">{words}</mark>'
    tag = {"removed": "del", "added": "ins"}.get(piece.kind)
    return f"<{tag}>{words}</{tag}>" if tag else words
