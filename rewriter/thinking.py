"""A streamed reply told apart into thinking and text."""

from __future__ import annotations

import re

_MARK = re.compile(r"<(/?)think(?:ing)?>", re.IGNORECASE)
_LONGEST_MARK = len("</thinking>")


class ThinkingSplitter:
    """Cuts a stream at `<think>` and `</think>`, for showing it while it runs.

    inside: whether the stream is inside the thinking now; a chat template may have opened it already.
    """

    def __init__(self, inside: bool = False) -> None:
        self.inside = inside
        self._held = ""

    def feed(self, delta: str) -> list[tuple[bool, str]]:
        """Pieces as (is thinking, text); what may be the beginning of a mark waits."""
        text = self._held + delta
        start = text.rfind("<", max(0, len(text) - _LONGEST_MARK + 1))
        cut = start if start >= 0 and ">" not in text[start:] else len(text)
        self._held = text[cut:]
        return self._split(text[:cut])

    def finish(self) -> list[tuple[bool, str]]:
        """What was held back."""
        held, self._held = self._held, ""
        return self._split(held)

    def _split(self, text: str) -> list[tuple[bool, str]]:
        pieces, position = [], 0
        for mark in _MARK.finditer(text):
            pieces.append((self.inside, text[position : mark.start()]))
            self.inside, position = not mark[1], mark.end()
        pieces.append((self.inside, text[position:]))
        return [(thinking, piece) for thinking, piece in pieces if piece]
