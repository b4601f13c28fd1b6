"""One owner for a queue on disk, however the last one ended."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import IO

from nava_core.engine.jobs import EngineError

if sys.platform == "win32":
    import msvcrt

    def _seize(file: IO[str]) -> None:
        file.seek(1024)  # beyond the words, so that they can still be read
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _seize(file: IO[str]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


_HELD = (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)


class OwnerLock:
    """Holds `path` until `release`, or until the process is gone: the operating system lets go then, kill -9 included.

    Raises EngineError while another process, or another engine of this one, holds it.
    """

    def __init__(self, path: Path):
        self._file = path.open("a+", encoding="utf-8")
        try:
            _seize(self._file)
        except OSError as error:
            self._file.seek(0)
            owner = self._file.read().strip() or "unknown"
            self._file.close()
            if error.errno not in _HELD:
                raise EngineError(f"{path.parent} cannot hold a queue: its disk knows no locks ({error})") from error
            raise EngineError(
                f"another NAVA Studio (process {owner}) already works on the queue in {path.parent}; close it, or "
                "choose another folder for the output"
            ) from None
        self._file.seek(0)
        self._file.truncate()
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self) -> None:
        self._file.close()
