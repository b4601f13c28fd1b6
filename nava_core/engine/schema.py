"""The tables of the queue's database, and how an older database comes to have them."""

from __future__ import annotations

import sqlite3
from typing import get_args

from nava_core.engine.jobs import EngineError, JobState

# Each entry takes a database from the version before it to its own; entries are never changed, only added.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        f"""CREATE TABLE jobs (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE,
            state TEXT NOT NULL CHECK (state IN ({", ".join(f"'{state}'" for state in get_args(JobState))})),
            place INTEGER NOT NULL,
            request TEXT NOT NULL,
            created REAL NOT NULL,
            started REAL,
            ended REAL,
            attempts INTEGER NOT NULL DEFAULT 0,
            interruptions INTEGER NOT NULL DEFAULT 0,
            cancelling INTEGER NOT NULL DEFAULT 0,
            output TEXT,
            result TEXT,
            recipe TEXT,
            error TEXT,
            seconds REAL NOT NULL DEFAULT 0
        )""",
        "CREATE INDEX jobs_by_place ON jobs (state, place, number)",
        "CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    ),
    (
        """CREATE TABLE runs (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            model TEXT NOT NULL,
            ended REAL NOT NULL,
            times TEXT NOT NULL
        )""",
        "CREATE INDEX runs_by_model ON runs (model, number)",
    ),
    ("ALTER TABLE jobs ADD COLUMN model TEXT",),
    (
        "ALTER TABLE jobs ADD COLUMN owner TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE jobs ADD COLUMN variations TEXT",
    ),
)


def connect(name: str) -> sqlite3.Connection:
    """The database in the file `name`, brought up to this version. Raises sqlite3.Error, EngineError."""
    connection = sqlite3.connect(name, isolation_level=None, check_same_thread=False, timeout=5.0)
    try:
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # a job that was accepted outlives a power cut
        _migrate(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _migrate(connection: sqlite3.Connection) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise EngineError(
            f"the queue was written by a newer NAVA Studio (version {version} of the database, this one knows "
            f"{len(MIGRATIONS)}); update NAVA Studio or choose another folder for the output"
        )
    for number, statements in enumerate(MIGRATIONS[version:], start=version + 1):
        connection.execute("BEGIN IMMEDIATE")
        for statement in statements:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {number}")
        connection.execute("COMMIT")
