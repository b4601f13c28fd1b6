"""The voice library: recordings that a person keeps, by name, until they delete them.

One SQLite file and two WAVs for each voice: the recording as it came (mono) and the part of it that is the voice. A WAV
is never changed: each cut is a new file, and the row that names it is the switch, so that a process that dies at any
moment leaves the old voice or the new one.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from nava_core.engine.disk import disk_full_explained
from nava_core.engine.jobs import EngineError
from nava_core.request import EMBEDDING_DIM, RequestError
from ui.library.recordings import LONGEST, Finding, Recording, check, peaks, read_recording

COLOURS = 8
NAME_LETTERS = 60
# A deleted voice can be brought back for so long; after that the next start takes its files away.
UNDO_SECONDS = 24 * 3600.0
DATABASE = "voices.sqlite3"
SCHEMA = """
CREATE TABLE IF NOT EXISTS voices (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, name TEXT NOT NULL, colour INTEGER NOT NULL, file TEXT NOT NULL,
    recording TEXT NOT NULL, start REAL NOT NULL, "end" REAL NOT NULL, length REAL NOT NULL, rate INTEGER NOT NULL,
    created REAL NOT NULL, consent REAL NOT NULL, notes TEXT NOT NULL, peaks TEXT NOT NULL,
    embedding BLOB, encoder TEXT NOT NULL DEFAULT '', deleted REAL
)"""

Rows = list[sqlite3.Row]
VOICES = Path(".studio") / "voices"
"""Where a library is by custom, within the folder of the clips."""


@dataclass(frozen=True)
class Voice:
    """A voice. path: its WAV, seconds `start` to `end` of a recording of `length` seconds.

    notes: what the checks found. peaks: the whole recording's, for drawing. consent: when somebody said that the person
    who speaks agrees, as created in seconds since 1970. embedding: what `encoder` (a model's name) heard, float32
    (192,), or None while nothing did.
    """

    id: str
    owner: str
    name: str
    colour: int
    path: Path
    start: float
    end: float
    length: float
    rate: int
    created: float
    consent: float
    notes: tuple[Finding, ...] = ()
    peaks: tuple[float, ...] = field(default=(), repr=False)
    embedding: np.ndarray | None = field(default=None, compare=False, repr=False)
    encoder: str = ""

    @property
    def seconds(self) -> float:
        return self.end - self.start

    def likeness(self, other: Voice) -> float | None:
        """The cosine of two embeddings of one encoder, 1 for the same voice; None where there are none."""
        if self.embedding is None or other.embedding is None or self.encoder != other.encoder:
            return None
        norms = float(np.linalg.norm(self.embedding) * np.linalg.norm(other.embedding))
        return float(self.embedding @ other.embedding) / norms if norms else None


class VoiceLibrary:
    """Every owner's voices in `folder`, which is made on first use. Any thread may use it; no two processes at once.

    Raises RequestError ("voice") for a person's mistakes, EngineError where the folder cannot be used or is full.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).absolute()
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    # Reading

    def list(self, owner: str) -> list[Voice]:
        """An owner's voices, the oldest first."""
        statement = "SELECT * FROM voices WHERE owner = ? AND deleted IS NULL ORDER BY created, rowid"
        return [self._voice(row) for row in self._rows(statement, owner)]

    def get(self, owner: str, voice_id: str) -> Voice:
        return self._voice(self._row(owner, voice_id))

    def colour(self, voice_id: str) -> int | None:
        """The colour of anybody's voice, deleted or not, for what was made with it; None where it is not known."""
        rows = self._rows("SELECT colour FROM voices WHERE id = ?", voice_id)
        return rows[0]["colour"] if rows else None

    # Changing

    def add(
        self,
        owner: str,
        source: str | Path,
        name: str,
        start: float | None = None,
        end: float | None = None,
        consent: bool = False,
    ) -> Voice:
        """Keep seconds `start` to `end` of a recording: all of it, or its first 30 s, where they are left out."""
        if not consent:
            raise RequestError(
                "voice", "a voice is kept only with the consent of the person who speaks; confirm it and add again"
            )
        name = checked_name(name)
        recording = read_recording(Path(source))
        start, end = _limits(recording, start or 0.0, end)
        part = recording.cut(start, end)
        notes = _checked(part)
        voice_id, now = secrets.token_hex(8), time.time()
        with self._changing() as database:
            columns = {
                "id": voice_id,
                "owner": owner,
                "name": name,
                "colour": self._free_colour(owner),
                "file": self._write(voice_id, part),
                "recording": self._write(voice_id, recording),
                "start": start,
                '"end"': end,
                "length": recording.seconds,
                "rate": recording.rate,
                "created": now,
                "consent": now,
                "notes": json.dumps([note.to_json() for note in notes]),
                "peaks": json.dumps(peaks(recording)),
            }
            marks = ", ".join("?" * len(columns))
            database.execute(f"INSERT INTO voices ({', '.join(columns)}) VALUES ({marks})", (*columns.values(),))
        return self.get(owner, voice_id)

    def rename(self, owner: str, voice_id: str, name: str) -> Voice:
        return self._update(owner, voice_id, name=checked_name(name))

    def recolour(self, owner: str, voice_id: str, colour: int) -> Voice:
        if isinstance(colour, bool) or not isinstance(colour, int) or not 1 <= colour <= COLOURS:
            raise RequestError("voice", f"the colour is {colour!r}; choose one from 1 to {COLOURS}")
        return self._update(owner, voice_id, colour=colour)

    def trim(self, owner: str, voice_id: str, start: float, end: float) -> Voice:
        """Take another part of the voice's recording; what was heard of the old one is forgotten."""
        row = self._row(owner, voice_id)
        recording = read_recording(self.folder / row["recording"])
        start, end = _limits(recording, start, end)
        part = recording.cut(start, end)
        notes = json.dumps([note.to_json() for note in _checked(part)])
        old = self.folder / row["file"]
        with self._lock, disk_full_explained(self.folder, "the voice"):
            file = self._write(voice_id, part)
            cut: dict[str, Any] = {"file": file, "start": start, '"end"': end, "notes": notes}
            trimmed = self._update(owner, voice_id, **cut, embedding=None, encoder="")
        old.unlink(missing_ok=True)
        return trimmed

    def delete(self, owner: str, voice_id: str) -> None:
        """Take a voice out of the list; `undelete` brings it back for a day, or until the next start after that."""
        self._update(owner, voice_id, deleted=time.time())

    def undelete(self, owner: str, voice_id: str) -> Voice:
        self._row(owner, voice_id, deleted=True)
        with self._changing() as database:
            database.execute("UPDATE voices SET deleted = NULL WHERE id = ?", (voice_id,))
        return self.get(owner, voice_id)

    def set_embedding(self, owner: str, voice_id: str, embedding: np.ndarray, encoder: str, heard: Path) -> None:
        """Remember what a model heard in `heard`; nothing where the voice was cut anew or deleted meanwhile."""
        array = np.asarray(embedding, np.float32)
        if array.shape != (EMBEDDING_DIM,) or not np.isfinite(array).all():
            raise RequestError("voice", f"the embedding is {array.shape}; it has {EMBEDDING_DIM} finite numbers")
        with self._changing() as database:
            database.execute(
                "UPDATE voices SET embedding = ?, encoder = ? WHERE id = ? AND owner = ? AND file = ?",
                (array.tobytes(), encoder, voice_id, owner, heard.name),
            )

    # The files and the database

    def _write(self, voice_id: str, recording: Recording) -> str:
        """The recording as a WAV that is on the disk, whole, under its name; returns the name."""
        name = f"{voice_id}.{secrets.token_hex(4)}.wav"
        partial = self.folder / f"{name}.part"
        try:
            with partial.open("wb") as file:
                soundfile.write(file, recording.samples, recording.rate, subtype="PCM_16", format="WAV")
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.folder / name)
        finally:
            partial.unlink(missing_ok=True)
        return name

    def _free_colour(self, owner: str) -> int:
        """The colour that fewest of the owner's voices have."""
        used = [voice.colour for voice in self.list(owner)]
        return min(range(1, COLOURS + 1), key=used.count)

    def _update(self, owner: str, voice_id: str, **columns: Any) -> Voice:
        self._row(owner, voice_id)
        assignments = ", ".join(f"{name} = ?" for name in columns)
        with self._changing() as database:
            database.execute(f"UPDATE voices SET {assignments} WHERE id = ?", (*columns.values(), voice_id))
            return self._voice(database.execute("SELECT * FROM voices WHERE id = ?", (voice_id,)).fetchone())

    def _row(self, owner: str, voice_id: str, deleted: bool = False) -> sqlite3.Row:
        state = "NOT NULL" if deleted else "NULL"
        rows = self._rows(
            f"SELECT * FROM voices WHERE id = ? AND owner = ? AND deleted IS {state}", str(voice_id), owner
        )
        if not rows:
            raise RequestError("voice", "this voice is not in the library any more; choose another one")
        return rows[0]

    def _voice(self, row: sqlite3.Row) -> Voice:
        return Voice(
            id=row["id"],
            owner=row["owner"],
            name=row["name"],
            colour=row["colour"],
            path=self.folder / row["file"],
            start=row["start"],
            end=row["end"],
            length=row["length"],
            rate=row["rate"],
            created=row["created"],
            consent=row["consent"],
            notes=tuple(Finding(**note) for note in json.loads(row["notes"])),
            peaks=tuple(json.loads(row["peaks"])),
            embedding=None if row["embedding"] is None else np.frombuffer(row["embedding"], np.float32),
            encoder=row["encoder"],
        )

    def _rows(self, statement: str, *values: Any) -> Rows:
        with self._lock:
            return self._database().execute(statement, values).fetchall()

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        with self._lock, disk_full_explained(self.folder, "the voice library"):
            database = self._database()
            with database:  # commits, or rolls back
                database.execute("BEGIN IMMEDIATE")
                yield database

    def _database(self) -> sqlite3.Connection:
        if self._connection is None:
            try:
                with disk_full_explained(self.folder, "the voice library"):
                    self._connection = self._open()
            except (OSError, sqlite3.Error) as error:
                raise EngineError(f"the voice library in {self.folder} cannot be used ({error})") from error
        return self._connection

    def _open(self) -> sqlite3.Connection:
        self.folder.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self.folder / DATABASE, check_same_thread=False, isolation_level=None, timeout=10)
        connection.row_factory = sqlite3.Row
        connection.execute(SCHEMA)
        self._tidy(connection)
        return connection

    def _tidy(self, connection: sqlite3.Connection) -> None:
        """Forget what was deleted long ago, and the files that no row names: a write was cut short."""
        connection.execute("DELETE FROM voices WHERE deleted < ?", (time.time() - UNDO_SECONDS,))
        named = {name for row in connection.execute("SELECT file, recording FROM voices") for name in row}
        for path in [*self.folder.glob("*.wav"), *self.folder.glob("*.wav.part")]:
            if path.name not in named:
                path.unlink(missing_ok=True)


def voice_id_of(path: str | Path) -> str:
    """The id of the voice whose WAV, or a copy of it, this may be: a job's recipe names such a copy."""
    return Path(path).name.partition(".")[0]


def checked_name(name: str) -> str:
    cleaned = " ".join(str(name or "").split())
    if not cleaned:
        raise RequestError("voice", "the voice has no name; give it one, such as the speaker's")
    if len(cleaned) > NAME_LETTERS:
        raise RequestError("voice", f"the name has {len(cleaned)} letters; give it up to {NAME_LETTERS}")
    return cleaned


def _limits(recording: Recording, start: float, end: float | None) -> tuple[float, float]:
    for value in (start, 0.0 if end is None else end):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise RequestError("voice", f"the cut is {start!r} to {end!r}; give two numbers of seconds")
    end = min(start + LONGEST, recording.seconds) if end is None else end
    if not 0 <= start < end <= recording.seconds + 0.05:
        raise RequestError(
            "voice",
            f"the cut is {start:.2f} to {end:.2f} s; the start comes before the end, and both lie within the "
            f"recording's {recording.seconds:.2f} s",
        )
    return float(start), float(min(end, recording.seconds))


def _checked(part: Recording) -> tuple[Finding, ...]:
    """Raises RequestError for a part that is no voice."""
    notes = check(part)
    worst = next((note for note in notes if note.serious), None)
    if worst is None:
        return notes
    words = {
        "short": f"is {worst.value:.2f} s long and a voice needs at least {worst.limit:g} s; take a longer part",
        "long": f"is {worst.value:.1f} s long and a voice has up to {worst.limit:g} s; take a shorter part",
        "silent": f"is silent ({worst.value:.0f} dBFS, a voice has at least {worst.limit:g}); record it louder",
    }
    raise RequestError("voice", f"the recording {words[worst.code]}")
