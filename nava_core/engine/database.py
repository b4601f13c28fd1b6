"""SQLite databases that outlive a version: tables are given as the steps from each version to the next."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

# Each entry takes a database from the version before it to its own; entries are never changed, only added.
Migrations = Sequence[Sequence[str]]


class NewerDatabase(ValueError):
    """The database was written by a version that this one does not know."""

    def __init__(self, version: int, known: int):
        super().__init__(
            f"was written by a newer NAVA Studio (version {version} of the database, this one knows {known}); update "
            "NAVA Studio or choose another folder for the output"
        )


def open_database(path: str | Path, migrations: Migrations) -> sqlite3.Connection:
    """The database at `path`, in WAL mode and brought up to the last of `migrations`; any thread may use it.

    Raises sqlite3.Error, NewerDatabase.
    """
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
    try:
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode = WAL")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > len(migrations):
            raise NewerDatabase(version, len(migrations))
        for number, statements in enumerate(migrations[version:], start=version + 1):
            connection.execute("BEGIN IMMEDIATE")
            for statement in statements:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number}")
            connection.execute("COMMIT")
    except BaseException:
        connection.close()
        raise
    return connection
