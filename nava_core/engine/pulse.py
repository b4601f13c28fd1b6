"""A worker's signs of life: that its process runs, and that its main thread gets on with the work."""

from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import dataclass

from nava_core.engine.wire import Alive, Dying, Line
from nava_core.request import GenerationRequest

logger = logging.getLogger(__name__)

BEAT_SECONDS = 1.0


@dataclass
class Patience:
    """How long a rank may take from one mark to the next before it counts as hung. Times in seconds.

    first: while nothing was measured. least: afterwards, and `factor` times the longest that was seen, scaled by the
    square of the clips' sizes (attention), if that is more.
    """

    least: float = 60.0
    first: float = 7200.0
    factor: float = 20.0
    _longest: float = 0.0
    _size: float = 1.0

    def saw(self, seconds: float, size: float) -> None:
        if seconds * self._size**2 > self._longest * size**2:
            self._longest, self._size = seconds, size

    def limit(self, size: float) -> float:
        if not self._longest:
            return self.first
        return max(self.least, self.factor * self._longest * max(size / self._size, 1.0) ** 2)


def clip_size(request: GenerationRequest) -> float:
    """What the time of a step grows with: pixels of a resolved request; for sound alone, a token's worth a frame."""
    pixels = 32 * 32 if request.modality == "audio" else (request.width or 1) * (request.height or 1)
    return float(pixels * (request.num_frames or 1))


class Pulse:
    """Tells the app each second that this process lives, and ends it when its main thread hangs."""

    def __init__(self, line: Line, patience: Patience):
        self._line, self._patience = line, patience
        self._marked: float | None = None
        self._size = 1.0
        self._thread = threading.Thread(target=self._beat, name="nava-pulse", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def work(self, size: float) -> None:
        """A run begins; from now on there must be marks."""
        self._size, self._marked = size, time.monotonic()

    def mark(self) -> None:
        """The main thread got on."""
        now = time.monotonic()
        if self._marked is not None:
            self._patience.saw(now - self._marked, self._size)
            self._marked = now

    def skip(self) -> None:
        """What was done just now, such as waiting for the app to listen, says nothing of the work's pace."""
        if self._marked is not None:
            self._marked = time.monotonic()

    def rest(self) -> None:
        """The run ended; waiting for the next may take any time."""
        self._marked = None

    def _beat(self) -> None:
        while True:
            marked = self._marked
            stuck = 0.0 if marked is None else time.monotonic() - marked
            try:
                if stuck > self._patience.limit(self._size):
                    logger.critical("no progress for %.0f s: this rank hangs and ends", stuck)
                    self._line.send(Dying(f"it made no progress for {stuck:.0f} s"))
                    os._exit(1)
                self._line.send(Alive())
            except OSError:
                return  # the app is gone, which the thread that listens to it deals with
            time.sleep(BEAT_SECONDS)
