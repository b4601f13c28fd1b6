"""Captions by the offline composer and by the training, and what is asked of them."""

from __future__ import annotations

from collections.abc import Sequence

from rewriter.locking import lock
from rewriter.offline import words
from rewriter.offline.composer import compose_caption


class FirstWording:
    """A random generator that always draws the first: training's plainest caption of a scene."""

    def random(self) -> float:
        return 0.0

    def integers(self, high: int) -> int:
        return 0


def caption_of(prompt: str) -> str:
    return compose_caption(lock(prompt))[0]


def assert_understood(prompt: str, parts: Sequence[str]) -> None:
    """The composer takes `prompt` for one of nava-nano's world, and its caption holds all `parts`."""
    caption, notes = compose_caption(lock(prompt))
    for part in parts:
        assert part in caption
    assert notes[0] == words.NOTE_SCENE
