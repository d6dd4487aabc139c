"""What all parts of the job store have: the database, and statements of one line."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from whisper_api.errors import StorageError
from whisper_api.store.database import Database

__all__ = ["Tables"]


class Tables:
    """The database of one data directory.

    Args:
        database: open.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    def exclusive(self, uploads_dir: Path | None = None) -> None:
        """Be the only server on this data directory, and on that of the uploads, until the store is closed.

        Two servers with one upload directory would each remove what the other has accepted.

        Raises:
            StorageLocked: another one is.
        """
        self.database.lock_directories(*([uploads_dir] if uploads_dir is not None else []))

    def compact(self) -> bool:
        """Give space back, and do as :meth:`wipe`."""
        return self.database.compact()

    def wipe(self) -> bool:
        """Remove what was deleted from the database's log of changes.

        Returns:
            False when another process keeps that from being done now.
        """
        return self.database.wipe()

    def trouble(self) -> StorageError | None:
        """Why the database cannot be written now; None when it can."""
        return self.database.trouble()

    def try_to_write(self) -> None:
        """Write something of no meaning, so that :meth:`trouble` ends when its reason has gone.

        Raises:
            StorageError: the database still cannot be written.
        """
        with self.database.write() as connection:
            connection.execute("INSERT OR REPLACE INTO facts (name, value) VALUES ('written', ?)", (str(time.time()),))

    def close(self) -> None:
        """Close the database. Calling it twice is fine."""
        self.database.close()

    def _change(self, statement: str, *values: object) -> bool:
        """Run one statement in a transaction of its own; whether it changed a row."""
        with self.database.write() as connection:
            return connection.execute(statement, values).rowcount > 0

    def _rows(self, query: str, *values: object) -> list[Any]:
        with self.database.read() as connection:
            return connection.execute(query, values).fetchall()

    def _column(self, query: str, *values: object) -> list[str]:
        return [row[0] for row in self._rows(query, *values)]
