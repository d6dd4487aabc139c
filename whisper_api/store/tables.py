"""The base of all parts of the job store: the database, and helpers for short statements."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from whisper_api.store.database import Database


class Tables:
    """The database of one data directory.

    Args:
        database: the open database.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    def exclusive(self, uploads_dir: Path | None = None) -> None:
        """Lock the data directory, and the upload directory, until the store is closed.

        Two servers with one upload directory would remove each other's uploads as orphans.

        Raises:
            StorageLocked: another server holds the lock.
        """
        self.database.lock_directories(*([uploads_dir] if uploads_dir is not None else []))

    def try_to_write(self) -> None:
        """Write a row without meaning, so that :meth:`Database.write_error` notices when writing works again.

        Raises:
            StorageError: the database still cannot be written.
        """
        with self.database.write() as connection:
            connection.execute("INSERT OR REPLACE INTO facts (name, value) VALUES ('written', ?)", (str(time.time()),))

    def close(self) -> None:
        """Close the database. Further calls do nothing."""
        self.database.close()

    def _change(self, statement: str, *values: object) -> bool:
        """Run one statement in its own transaction; whether it changed a row."""
        with self.database.write() as connection:
            return connection.execute(statement, values).rowcount > 0

    def _rows(self, query: str, *values: object) -> list[Any]:
        with self.database.read() as connection:
            return connection.execute(query, values).fetchall()

    def _column(self, query: str, *values: object) -> list[str]:
        return [row[0] for row in self._rows(query, *values)]


def insert(connection: sqlite3.Connection, table: str, values: Mapping[str, object], *, replacing: bool = False) -> int:
    """Add a row, and return its number.

    Args:
        connection: a connection in a transaction.
        table: name of the table.
        values: column to value.
        replacing: whether the row replaces one with the same key.
    """
    verb = "INSERT OR REPLACE" if replacing else "INSERT"
    statement = f"{verb} INTO {table} ({', '.join(values)}) VALUES ({marks(values)})"
    done = connection.execute(statement, tuple(values.values()))
    return done.lastrowid or 0


def update(connection: sqlite3.Connection, table: str, values: Mapping[str, object], key: str, of: object) -> None:
    """Change rows.

    Args:
        connection: a connection in a transaction.
        table: name of the table.
        values: column to new value.
        key: the column by which the rows are found.
        of: the value of that column.
    """
    columns = ", ".join(f"{name} = ?" for name in values)
    connection.execute(f"UPDATE {table} SET {columns} WHERE {key} = ?", (*values.values(), of))


def where(possible: Mapping[str, object]) -> tuple[str, list[object]]:
    """A WHERE clause and its values.

    Args:
        possible: condition to the value of its question mark, or to a tuple with the value of each. A condition whose
            value is None is left out.
    """
    given = {condition: value for condition, value in possible.items() if value is not None}
    values = [each for value in given.values() for each in (value if isinstance(value, tuple) else (value,))]
    return f"WHERE {' AND '.join(given)}" if given else "", values


def marks(values: Collection[object]) -> str:
    """A question mark for each value."""
    return ", ".join("?" * len(values))


def is_revoked(connection: sqlite3.Connection, owner: str) -> bool:
    """Whether the key of an owner was revoked."""
    revoked = "SELECT 1 FROM keys WHERE key_id = ? AND revoked_at IS NOT NULL"
    return connection.execute(revoked, (owner,)).fetchone() is not None
