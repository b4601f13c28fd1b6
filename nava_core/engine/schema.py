"""The tables of the queue's database."""

from __future__ import annotations

import sqlite3
from typing import get_args

from nava_core.engine.database import Migrations, NewerDatabase, open_database
from nava_core.engine.jobs import EngineError, JobState

MIGRATIONS: Migrations = (
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
    try:
        connection = open_database(name, MIGRATIONS)
    except NewerDatabase as error:
        raise EngineError(f"the queue {error}") from error
    connection.execute("PRAGMA synchronous = FULL")  # a job that was accepted outlives a power cut
    return connection
