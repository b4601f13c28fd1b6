"""The queue on disk: one row for each job, and every step of a job's life one transaction that checks the one before.

SQLite in WAL mode; a commit is on the disk when it returns. One process owns a database (`OwnerLock`), any of its
threads may use it. Of the queued jobs the one with the smallest `place` is next.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nava_core.engine.disk import disk_full_explained
from nava_core.engine.files import FileVault, files_of, pack, unpack
from nava_core.engine.jobs import EngineError, JobError, JobState, JobStateError, UnknownJob
from nava_core.engine.lock import OwnerLock
from nava_core.engine.schema import connect
from nava_core.request import GenerationRequest

logger = logging.getLogger(__name__)

RUNS_KEPT = 500
CHANGEABLE: tuple[JobState, ...] = ("queued", "interrupted")
REVIVABLE: tuple[JobState, ...] = ("interrupted", "failed", "cancelled")
FORGETTABLE: tuple[JobState, ...] = ("done", "failed", "cancelled")
INTERRUPTED = JobError(
    "NAVA Studio ended while this clip was being made; let it go on to make it again from the same seed",
    kind="interrupted",
)

FindResult = Callable[["StoredJob"], tuple[Path, dict[str, Any]] | None]


@dataclass(frozen=True)
class StoredJob:
    """A row. `output` is where its clip goes, folder and stem; times are seconds since 1970, `seconds` a duration.

    model: the name of the model that it was asked of; None where the next one that is loaded may take it.
    """

    id: str
    state: JobState
    request: GenerationRequest
    created: float
    started: float | None
    ended: float | None
    attempts: int
    interruptions: int
    cancelling: bool
    output: Path | None
    result: Path | None
    recipe: dict[str, Any] | None
    error: JobError | None
    seconds: float
    model: str | None
    owner: str
    variations: str | None


class JobStore:
    """Jobs in the database at `path`, their files in `path`'s folder; None: in memory, gone with this object.

    Raises EngineError where the database cannot be opened, is another program's, or has another owner;
    every method may raise DiskFullError.
    """

    def __init__(self, path: Path | None = None):
        self.path = path
        self._lock = threading.RLock()
        self._owner: OwnerLock | None = None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        if path is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="nava-queue-", ignore_cleanup_errors=True)
            self.vault = FileVault(Path(self._temporary.name) / "files")
            self._connection = connect(":memory:")
        else:
            self.vault = FileVault(path.parent / "files")
            self._connection = self._open(path)

    def close(self) -> None:
        with self._lock:
            self._connection.close()
            if self._owner is not None:
                self._owner.release()
            if self._temporary is not None:
                self._temporary.cleanup()

    # Reading

    def jobs(self) -> list[StoredJob]:
        """Every job, the first submitted first."""
        return [_stored(row) for row in self._rows("SELECT * FROM jobs ORDER BY number")]

    def job(self, job_id: str) -> StoredJob:
        """Raises UnknownJob."""
        rows = self._rows("SELECT * FROM jobs WHERE id = ?", job_id)
        if not rows:
            raise UnknownJob(job_id)
        return _stored(rows[0])

    def order(self) -> list[str]:
        """The ids of the queued jobs, the next one first."""
        return [row["id"] for row in self._rows("SELECT id FROM jobs WHERE state = 'queued' ORDER BY place, number")]

    @property
    def paused(self) -> bool:
        return bool(self._rows("SELECT 1 FROM settings WHERE name = 'paused'"))

    # Transitions that people ask for

    def pack(self, request: GenerationRequest) -> str:
        """The request for `submit` or `edit`, its files copied. Raises RequestError."""
        return pack(request, self.vault)

    def submit(
        self, job_id: str, packed: str, model: str | None = None, owner: str = "", variations: str | None = None
    ) -> StoredJob:
        """Queue a new job at the end."""
        columns = "id, state, place, request, created, model, owner, variations"
        with self._transaction() as database:
            values = (job_id, "queued", self._end_place(database), packed, time.time(), model, owner, variations)
            database.execute(f"INSERT INTO jobs ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
        return self.job(job_id)

    def duplicate(self, job_id: str, new_id: str, model: str | None = None) -> StoredJob:
        """Queue a job's request once more, as a new job. Raises UnknownJob."""
        rows = self._rows("SELECT request, owner FROM jobs WHERE id = ?", job_id)
        if not rows:
            raise UnknownJob(job_id)
        return self.submit(new_id, rows[0]["request"], model, rows[0]["owner"])

    def edit(self, job_id: str, packed: str, model: str | None = None) -> StoredJob:
        """Replace the request of a job that waits or was interrupted; it keeps its place. Raises JobStateError."""
        with self._transaction() as database:
            # Without its output: what an earlier run may have left there is not this request's clip.
            self._change(database, job_id, CHANGEABLE, request=packed, output=None, attempts=0, model=model)
        return self.job(job_id)

    def move(self, job_id: str, neighbour: str | None, after: bool = False) -> None:
        """Put a queued job before (or after) another queued one, or with None at the front (after: the end)."""
        with self._transaction() as database:
            for named in (job_id, *([] if neighbour is None else [neighbour])):
                self._check(database, named, ("queued",))
            order = [queued for queued in self.order() if queued != job_id]
            if neighbour is None:
                index = len(order) if after else 0
            else:
                index = order.index(neighbour) + after if neighbour != job_id else self.order().index(job_id)
            order.insert(index, job_id)
            _number(database, order)

    def reorder(self, job_ids: Sequence[str]) -> None:
        """Put queued jobs into this order, within the places that they hold together. Raises JobStateError."""
        if len(set(job_ids)) != len(job_ids):
            raise ValueError(f"an id stands twice in {', '.join(job_ids)}; name each job once")
        with self._transaction() as database:
            for job_id in job_ids:
                self._check(database, job_id, ("queued",))
            following = iter(job_ids)
            _number(database, [next(following) if queued in job_ids else queued for queued in self.order()])

    def cancel(self, job_id: str) -> StoredJob:
        """End a job that waits or was interrupted; note the wish for one that runs; leave any other as it is."""
        with self._transaction() as database:
            state = self._state(database, job_id)
            if state in CHANGEABLE:
                self._change(database, job_id, CHANGEABLE, state="cancelled", ended=time.time(), error=None)
            elif state == "running":
                self._change(database, job_id, ("running",), cancelling=1)
        return self.job(job_id)

    def retry(self, job_id: str, model: str | None = None) -> StoredJob:
        """Queue an interrupted, failed or cancelled job again, at the end. Raises JobStateError."""
        with self._transaction() as database:
            self._queue_again(database, job_id, REVIVABLE, self._end_place(database))
            self._change(database, job_id, ("queued",), model=model)
        return self.job(job_id)

    def set_paused(self, paused: bool) -> None:
        with self._transaction() as database:
            if paused:
                database.execute("INSERT OR IGNORE INTO settings VALUES ('paused', 'yes')")
            else:
                database.execute("DELETE FROM settings WHERE name = 'paused'")

    def forget(self, keep: int) -> list[str]:
        """Drop the oldest finished jobs beyond `keep`, and the copies that nothing names any more. Their ids."""
        with self._transaction() as database:
            marks = ", ".join("?" * len(FORGETTABLE))
            rows = database.execute(
                f"SELECT id FROM jobs WHERE state IN ({marks}) ORDER BY ended DESC, number DESC LIMIT -1 OFFSET ?",
                (*FORGETTABLE, keep),
            ).fetchall()
            ids = [row["id"] for row in rows]
            database.executemany("DELETE FROM jobs WHERE id = ?", [(job_id,) for job_id in ids])
        if ids:
            self.vault.prune(self._named_files())
        return ids

    def adopt(self, model: str) -> None:
        """`model` is loaded: jobs that wait for any are asked of this one."""
        unclaimed = "state = 'queued' AND model IS NULL"
        if self._rows(f"SELECT 1 FROM jobs WHERE {unclaimed} LIMIT 1"):
            with self._transaction() as database:
                database.execute(f"UPDATE jobs SET model = ? WHERE {unclaimed}", (model,))

    # Transitions of a run

    def claim(self, job_id: str, output: Path) -> StoredJob:
        """queued -> running. A job that ran before keeps the `output` that it had then. Raises JobStateError."""
        with self._transaction() as database:
            self._change(database, job_id, ("queued",), state="running", started=time.time(), ended=None, cancelling=0)
            database.execute(
                "UPDATE jobs SET attempts = attempts + 1, output = COALESCE(output, ?) WHERE id = ?",
                (str(output), job_id),
            )
        return self.job(job_id)

    def again(self, job_id: str) -> None:
        """Note that a running job is started once more, because what ran it was lost."""
        with self._transaction() as database:
            self._check(database, job_id, ("running",))
            database.execute("UPDATE jobs SET attempts = attempts + 1 WHERE id = ?", (job_id,))

    def resolved(self, job_id: str, packed: str) -> None:
        """The running job's request, now that the model's defaults are known."""
        with self._transaction() as database:
            self._change(database, job_id, ("running",), request=packed)

    def finish(
        self,
        job_id: str,
        state: JobState,
        *,
        result: Path | None = None,
        recipe: dict[str, Any] | None = None,
        error: JobError | None = None,
        seconds: float = 0.0,
    ) -> None:
        """running -> `state`, which is any but queued and running. Raises JobStateError."""
        with self._transaction() as database:
            self._change(database, job_id, ("running",), state=state, cancelling=0, **_ending(result, recipe, error))
            database.execute("UPDATE jobs SET seconds = ? WHERE id = ?", (seconds, job_id))

    # After a crash

    def recover(self, find_result: FindResult, go_on: bool, limit: int = 1) -> None:
        """What a dead owner left running: done if `find_result` finds its clip, cancelled if that was asked, else
        interrupted; and, with `go_on`, those interrupted up to `limit` times back to the front of the queue.
        """
        found = {job.id: find_result(job) for job in self.jobs() if job.state in ("running", "interrupted")}
        with self._transaction() as database:
            for job_id, clip in found.items():
                row = _stored(database.execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone())
                if clip is not None:
                    self._change(database, job_id, ("running", "interrupted"), state="done", **_ending(*clip))
                elif row.state == "running" and row.cancelling:
                    self._change(database, job_id, ("running",), state="cancelled", cancelling=0, **_ending())
                elif row.state == "running":
                    times = row.interruptions + 1
                    ending = _ending(error=INTERRUPTED)
                    self._change(
                        database, job_id, ("running",), state="interrupted", interruptions=times, place=-1, **ending
                    )
            if go_on:
                self._go_on(database, limit)
        self.vault.prune(self._named_files(), spared_seconds=0.0)

    def _go_on(self, database: sqlite3.Connection, limit: int) -> None:
        rows = database.execute(
            "SELECT id FROM jobs WHERE state = 'interrupted' AND interruptions <= ? ORDER BY place DESC, number DESC",
            (limit,),
        ).fetchall()
        for row in rows:
            lowest = database.execute("SELECT MIN(place) FROM jobs WHERE state = 'queued'").fetchone()[0]
            self._queue_again(database, row["id"], ("interrupted",), 0 if lowest is None else lowest - 1)

    # Runs to learn from

    def add_run(self, model: str, times: dict[str, Any]) -> None:
        """Remember how long the parts of a run took; only the newest RUNS_KEPT of a model are kept."""
        with self._transaction() as database:
            values = (model, time.time(), json.dumps(times))
            database.execute("INSERT INTO runs (model, ended, times) VALUES (?, ?, ?)", values)
            database.execute(
                "DELETE FROM runs WHERE model = ?1 AND number NOT IN "
                "(SELECT number FROM runs WHERE model = ?1 ORDER BY number DESC LIMIT ?2)",
                (model, RUNS_KEPT),
            )

    def runs(self, model: str) -> list[dict[str, Any]]:
        """What `add_run` was given, the oldest first."""
        rows = self._rows("SELECT times FROM runs WHERE model = ? ORDER BY number", model)
        return [json.loads(row["times"]) for row in rows]

    # The database itself

    def _open(self, path: Path) -> sqlite3.Connection:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._owner = OwnerLock(path.with_name(path.name + ".lock"))
        except OSError as error:
            raise EngineError(
                f"the queue in {path.parent} cannot be opened ({error}); choose a folder with rights"
            ) from error
        try:
            with disk_full_explained(path.parent, "the queue"):
                return connect(str(path))
        except (sqlite3.Error, EngineError) as error:
            self._owner.release()
            if isinstance(error, EngineError):
                raise
            raise EngineError(
                f"{path} cannot be used as a queue ({error}); move it away to begin a new one, its clips stay"
            ) from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        place = Path("memory") if self.path is None else self.path.parent
        with self._lock, disk_full_explained(place, "the queue"):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._commit()
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _commit(self) -> None:
        self._connection.execute("COMMIT")

    def _rows(self, statement: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock:
            return self._connection.execute(statement, values).fetchall()

    def _state(self, database: sqlite3.Connection, job_id: str) -> JobState:
        row = database.execute("SELECT state FROM jobs WHERE id = ?", (job_id,)).fetchone()
        if row is None:
            raise UnknownJob(job_id)
        return row["state"]

    def _check(self, database: sqlite3.Connection, job_id: str, allowed: Sequence[JobState]) -> None:
        state = self._state(database, job_id)
        if state not in allowed:
            raise JobStateError(job_id, state, allowed)

    def _change(self, database: sqlite3.Connection, job_id: str, allowed: Sequence[JobState], **columns: Any) -> None:
        self._check(database, job_id, allowed)
        assignments = ", ".join(f"{name} = ?" for name in columns)
        database.execute(f"UPDATE jobs SET {assignments} WHERE id = ?", (*columns.values(), job_id))

    def _queue_again(self, database: sqlite3.Connection, job_id: str, allowed: Sequence[JobState], place: int) -> None:
        blank = {"started": None, "ended": None, "error": None, "cancelling": 0, "seconds": 0.0}
        self._change(database, job_id, allowed, state="queued", place=place, **blank)

    def _end_place(self, database: sqlite3.Connection) -> int:
        highest = database.execute("SELECT MAX(place) FROM jobs WHERE state = 'queued'").fetchone()[0]
        return 0 if highest is None else highest + 1

    def _named_files(self) -> set[Path]:
        return set().union(*(files_of(row["request"]) for row in self._rows("SELECT request FROM jobs")))


def _ending(
    result: Path | None = None, recipe: dict[str, Any] | None = None, error: JobError | None = None
) -> dict[str, Any]:
    return {
        "ended": time.time(),
        "result": None if result is None else str(result),
        "recipe": None if recipe is None else json.dumps(recipe),
        "error": None if error is None else json.dumps(asdict(error)),
    }


def _number(database: sqlite3.Connection, order: Sequence[str]) -> None:
    """Give the queued jobs their places, the next one first."""
    database.executemany("UPDATE jobs SET place = ? WHERE id = ?", list(enumerate(order)))


def _stored(row: sqlite3.Row) -> StoredJob:
    return StoredJob(
        id=row["id"],
        state=row["state"],
        request=unpack(row["request"]),
        created=row["created"],
        started=row["started"],
        ended=row["ended"],
        attempts=row["attempts"],
        interruptions=row["interruptions"],
        cancelling=bool(row["cancelling"]),
        output=None if row["output"] is None else Path(row["output"]),
        result=None if row["result"] is None else Path(row["result"]),
        recipe=None if row["recipe"] is None else json.loads(row["recipe"]),
        error=None if row["error"] is None else JobError(**json.loads(row["error"])),
        seconds=row["seconds"],
        model=row["model"],
        owner=row["owner"],
        variations=row["variations"],
    )
