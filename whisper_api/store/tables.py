"""The base of all parts of the job store: the database, and helpers for short statements."""

from __future__ import annotations

import time
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
