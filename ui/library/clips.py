"""The index of finished clips: one row each, on disk, found by owner, words and favourites.

SQLite in WAL mode. Paths are kept relative to the folder of the clips, so that it can be moved as a whole.
"""

from __future__ import annotations

import json
import math
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nava_core.engine.database import Migrations, NewerDatabase, open_database

Kind = Literal["mp4", "wav"]
Shown = Literal["all", "favourites", "deleted"]

MIGRATIONS: Migrations = (
    (
        """CREATE TABLE clips (
            id TEXT PRIMARY KEY,
            owner TEXT NOT NULL,
            path TEXT NOT NULL,
            recipe TEXT NOT NULL,
            words TEXT NOT NULL,
            created REAL NOT NULL,
            favourite INTEGER NOT NULL DEFAULT 0,
            deleted REAL,
            variations TEXT,
            poster INTEGER NOT NULL DEFAULT 0
        )""",
        "CREATE INDEX clips_by_owner ON clips (owner, created)",
        "CREATE INDEX clips_by_path ON clips (path)",
    ),
)
# What stands together on the page: the variations of one request, or a clip by itself.
_STACK = "COALESCE(variations, id)"
_SURROGATES = str.maketrans(dict.fromkeys(range(55296, 57344), "�"))


class UnknownClip(LookupError):
    """The owner has no such clip."""

    def __init__(self, clip_id: str):
        super().__init__(f"there is no clip {clip_id!r} in this gallery; it may have been deleted for good")


@dataclass(frozen=True)
class Clip:
    """One finished clip.

    id: its job's, or one made of its name. path: where it is, or was: see `missing`. created, deleted: seconds since
    1970; deleted is None while it is not. variations: what the clips that are variations of one another share.
    poster: a still, None while there is none.
    """

    id: str
    owner: str
    path: Path
    recipe: dict[str, Any]
    created: float
    favourite: bool = False
    deleted: float | None = None
    variations: str | None = None
    poster: Path | None = None

    @property
    def kind(self) -> Kind:
        return "wav" if self.path.suffix.lower() == ".wav" else "mp4"

    @property
    def missing(self) -> bool:
        """Whether the file was moved or deleted outside the app."""
        return not self.path.is_file()

    @property
    def prompt(self) -> str:
        return _text(self.recipe.get("prompt"))

    @property
    def original_prompt(self) -> str:
        """What a person wrote, where the prompt was made of it by rewriting; else nothing."""
        return _text(self.recipe.get("original_prompt"))

    @property
    def seed(self) -> int | None:
        seed = self.recipe.get("seed")
        return seed if isinstance(seed, int) and not isinstance(seed, bool) else None

    @property
    def model(self) -> str:
        return _text(self.recipe.get("model"))

    @property
    def seconds(self) -> float | None:
        """The clip's length."""
        seconds = self.recipe.get("seconds")
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
            return None
        return float(seconds)

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height in pixels; None for sound alone."""
        width, height = self.recipe.get("width"), self.recipe.get("height")
        if self.kind == "wav" or not isinstance(width, int) or not isinstance(height, int):
            return None
        return width, height


@dataclass(frozen=True)
class Stack:
    """Clips that stand together, the oldest first: a clip by itself, or the variations of one request."""

    id: str
    clips: tuple[Clip, ...]

    @property
    def cover(self) -> Clip:
        """The clip that stands for all: the newest favourite, else the newest one that is there."""
        ranked = sorted(self.clips, key=lambda clip: (clip.favourite, not clip.missing, clip.created))
        return ranked[-1]


class ClipIndex:
    """The database at `path`; clips are under `folder` and posters under `posters`. Any thread may use it.

    Raises ValueError where the database cannot be opened, or is of a newer version.
    """

    def __init__(self, path: Path, folder: Path, posters: Path):
        self._folder, self._posters = folder, posters
        self._lock = threading.RLock()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._connection = open_database(path, MIGRATIONS)
        except NewerDatabase as error:
            raise ValueError(f"the gallery {path} {error}") from error
        except sqlite3.Error as error:
            raise ValueError(f"the gallery's database {path} cannot be opened ({error}); move it away") from error
        self._version = 0

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @property
    def version(self) -> int:
        """A number that grows with every change."""
        return self._version

    # Reading

    def clip(self, owner: str, clip_id: str) -> Clip:
        """Raises UnknownClip."""
        rows = self._rows("SELECT * FROM clips WHERE id = ? AND owner = ?", _clean(clip_id), owner)
        if not rows:
            raise UnknownClip(clip_id)
        return self._clip(rows[0])

    def has(self, owner: str, clip_id: str) -> bool:
        return bool(self._rows("SELECT 1 FROM clips WHERE id = ? AND owner = ?", _clean(clip_id), owner))

    def has_file(self, owner: str, path: Path) -> bool:
        """Whether the owner has a clip in this file, which is not deleted."""
        if not path.is_relative_to(self._folder):
            return False
        where = "path = ? AND owner = ? AND deleted IS NULL"
        return bool(self._rows(f"SELECT 1 FROM clips WHERE {where}", self._relative(path), owner))

    def clips(self, owner: str, search: str, shown: Shown, offset: int, limit: int) -> list[Clip]:
        """The newest first."""
        where, values = _where(owner, search, shown)
        query = f"SELECT * FROM clips WHERE {where} ORDER BY created DESC, id LIMIT ? OFFSET ?"
        return [self._clip(row) for row in self._rows(query, *values, limit, offset)]

    def stacks(self, owner: str, search: str, shown: Shown, offset: int, limit: int) -> tuple[list[Stack], int]:
        """A page of stacks, the newest first, and how many there are in all."""
        where, values = _where(owner, search, shown)
        total = self._rows(f"SELECT COUNT(DISTINCT {_STACK}) AS total FROM clips WHERE {where}", *values)[0]["total"]
        names = [
            row["stack"]
            for row in self._rows(
                f"SELECT {_STACK} AS stack FROM clips WHERE {where} GROUP BY stack "
                "ORDER BY MAX(created) DESC, stack LIMIT ? OFFSET ?",
                *values,
                limit,
                offset,
            )
        ]
        marks = ", ".join("?" * len(names))
        query = f"SELECT *, {_STACK} AS stack FROM clips WHERE {where} AND {_STACK} IN ({marks}) ORDER BY created, id"
        found: dict[str, list[Clip]] = {name: [] for name in names}
        for row in self._rows(query, *values, *names):
            found[row["stack"]].append(self._clip(row))
        return [Stack(name, tuple(clips)) for name, clips in found.items()], total

    def stack(self, owner: str, stack_id: str) -> Stack:
        """All of a stack that is not deleted. Raises UnknownClip where there is nothing."""
        query = f"SELECT * FROM clips WHERE owner = ? AND deleted IS NULL AND {_STACK} = ? ORDER BY created, id"
        rows = self._rows(query, owner, _clean(stack_id))
        if not rows:
            raise UnknownClip(stack_id)
        return Stack(stack_id, tuple(self._clip(row) for row in rows))

    def knows(self, path: Path) -> bool:
        """Whether a file under the folder is somebody's clip, or was before it was deleted."""
        return bool(self._rows("SELECT 1 FROM clips WHERE path = ?", self._relative(path)))

    def _relative(self, path: Path) -> str:
        """A path as the index has it."""
        return _clean(path.relative_to(self._folder).as_posix())

    def everything(self, owner: str | None = None) -> list[Clip]:
        """Every clip, deleted ones too; of one owner, or of all."""
        if owner is None:
            return [self._clip(row) for row in self._rows("SELECT * FROM clips ORDER BY created DESC")]
        return [self._clip(row) for row in self._rows("SELECT * FROM clips WHERE owner = ?", owner)]

    def without_poster(self) -> list[Clip]:
        rows = self._rows("SELECT * FROM clips WHERE poster = 0 AND deleted IS NULL ORDER BY created DESC")
        return [self._clip(row) for row in rows]

    # Changing

    def add(self, clip: Clip) -> bool:
        """Whether it is new."""
        words = "\n".join((clip.prompt, clip.original_prompt, str(clip.recipe.get("seed", "")), clip.model))
        with self._changing() as database:
            cursor = database.execute(
                "INSERT OR IGNORE INTO clips (id, owner, path, recipe, words, created, variations) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    _clean(clip.id),
                    clip.owner,
                    _clean(clip.path.relative_to(self._folder).as_posix()),
                    json.dumps(clip.recipe),  # ASCII: half a surrogate pair is no text for a database
                    _clean(words.casefold()),
                    clip.created,
                    clip.variations,
                ),
            )
            return cursor.rowcount > 0

    def set_favourite(self, clip_id: str, favourite: bool) -> None:
        self._change("UPDATE clips SET favourite = ? WHERE id = ?", favourite, clip_id)

    def set_deleted(self, clip_id: str, deleted: bool) -> None:
        self._change("UPDATE clips SET deleted = ? WHERE id = ?", time.time() if deleted else None, clip_id)

    def set_path(self, clip_id: str, path: Path) -> None:
        self._change("UPDATE clips SET path = ? WHERE id = ?", path.relative_to(self._folder).as_posix(), clip_id)

    def set_poster(self, clip_id: str, made: bool) -> None:
        """Whether a poster was made; where not, none is tried again."""
        self._change("UPDATE clips SET poster = ? WHERE id = ?", 1 if made else -1, clip_id)

    def forget(self, clip_id: str) -> None:
        self._change("DELETE FROM clips WHERE id = ?", clip_id)

    def _change(self, statement: str, *values: Any) -> None:
        with self._changing() as database:
            database.execute(statement, values)

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            yield self._connection
            self._version += 1

    def _rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    def _clip(self, row: sqlite3.Row) -> Clip:
        return Clip(
            id=row["id"],
            owner=row["owner"],
            path=self._folder / row["path"],
            recipe=json.loads(row["recipe"]),
            created=row["created"],
            favourite=bool(row["favourite"]),
            deleted=row["deleted"],
            variations=row["variations"],
            poster=self._posters / f"{row['id']}.jpg" if row["poster"] == 1 else None,
        )


def _where(owner: str, search: str, shown: Shown) -> tuple[str, Sequence[Any]]:
    """Every word of the search has to be somewhere among the clip's; they are no patterns."""
    terms = _clean(search.casefold()).split()
    conditions = ["owner = ?", "deleted IS NOT NULL" if shown == "deleted" else "deleted IS NULL"]
    if shown == "favourites":
        conditions.append("favourite = 1")
    conditions += ["instr(words, ?) > 0"] * len(terms)
    return " AND ".join(conditions), [owner, *terms]


def _clean(text: str) -> str:
    """Without halves of surrogate pairs, which a browser may send and no database holds."""
    return text.translate(_SURROGATES)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
