"""The disk as something that can be full: telling so from an error, and saying so to people."""

from __future__ import annotations

import errno
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nava_core.engine.jobs import DiskFullError, JobError

# Below this no job is started: it would spend its minutes and fail at the end.
MIN_FREE_BYTES = 64 * 2**20
_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_disk_full(error: BaseException) -> bool:
    """Whether a full disk (or a spent quota) is behind an error: Python's, SQLite's or, in its words, ffmpeg's."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _FULL:
            return True
        if isinstance(seen, sqlite3.Error) and getattr(seen, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            return True
        if "No space left on device" in str(seen) or "Disk quota exceeded" in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def disk_full_words(folder: Path, what: str) -> str:
    """A sentence: the disk of `folder` is full, so that `what` cannot be written, and the way out."""
    return (
        f"the disk that holds {folder} is full ({_free(folder)} left), so {what} cannot be written; make room there, "
        "then resume the queue and try again"
    )


def disk_full(folder: Path, what: str) -> JobError:
    return JobError(disk_full_words(folder, what), kind="disk")


@contextmanager
def disk_full_explained(folder: Path, what: str) -> Iterator[None]:
    """Turns whatever a full disk raises inside into DiskFullError."""
    try:
        yield
    except Exception as error:
        if isinstance(error, DiskFullError) or not is_disk_full(error):
            raise
        raise DiskFullError(disk_full_words(folder, what)) from error


def has_room(folder: Path) -> bool:
    """Whether a clip can be expected to fit into `folder`, which need not exist yet."""
    free = _free_bytes(folder)
    return free is None or free >= MIN_FREE_BYTES


def _free(folder: Path) -> str:
    free = _free_bytes(folder)
    return "little" if free is None else f"{free / 2**20:.0f} MB"


def _free_bytes(folder: Path) -> int | None:
    existing = next((place for place in (folder, *folder.parents) if place.exists()), None)
    if existing is None:
        return None
    try:
        return shutil.disk_usage(existing).free
    except OSError:
        return None
