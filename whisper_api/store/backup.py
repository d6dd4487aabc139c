"""Backups of a job database: an SQLite file of its own, which may also hold uploads.

A backup holds one state of the database, also when the server writes meanwhile: SQLite's online backup
(https://www.sqlite.org/backup.html) runs inside one read transaction. Uploads are stored in pieces, in a table that
only backups have.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from whisper_api.errors import StorageError
from whisper_api.store.database import named_errors, sync_directory
from whisper_api.store.migrations import MIGRATIONS

BUSY_SECONDS = 30.0
PIECE_BYTES = 4 << 20
ATTEMPTS = 10


@dataclass(frozen=True)
class OpenUpload:
    """A file of an upload, open for reading. It can be read to its end even if the server removes it.

    Attributes:
        job_id: id of the job.
        name: name of the file in the directory of the upload.
        file: the open file.
    """

    job_id: str
    name: str
    file: BinaryIO


@dataclass(frozen=True)
class Written:
    """The contents of a backup.

    Attributes:
        version: version of the schema.
        unfinished: number of the unfinished jobs.
        with_audio: number of unfinished jobs whose upload is in the backup.
    """

    version: int
    unfinished: int
    with_audio: int


OpenUploads = Callable[[list[str]], list[OpenUpload]]
"""Opens the upload files of the jobs with these ids, as far as they exist."""


def write_backup(database: Path, target: Path, open_uploads: OpenUploads | None) -> Written:
    """Copy a job database while a server may use it.

    Args:
        database: path of the database.
        target: path of the backup, which must not exist; made with mode 0600.
        open_uploads: opens the files of the uploads of the unfinished jobs; None leaves them out.

    Returns:
        What was written.

    Raises:
        StorageError: the database or the target cannot be used.
    """
    if target.exists():
        raise StorageError(f"{target} exists already: choose another name for the backup")
    part = target.with_name(f"{target.name}.part")
    if part.exists():
        raise StorageError(f"{part} exists: another backup is being written; remove it if none is")
    _make_private(part)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(named_errors(f"{database}: "))
            source = _opened(stack, database, "rw")
            unfinished, uploads = begin_reading(source, database, open_uploads)
            version = _version(source)
            for upload in uploads:
                stack.enter_context(upload.file)
            copy = _opened(stack, part, "rw")
            source.backup(copy)
            source.execute("ROLLBACK")
            # One file, without a log beside it.
            copy.execute("PRAGMA journal_mode=DELETE").fetchall()
            _add_uploads(copy, uploads)
            _check_integrity(copy, part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.rename(target)
        sync_directory(target.absolute().parent)
    finally:
        for path in (part, part.with_name(f"{part.name}-journal")):
            path.unlink(missing_ok=True)
    return Written(version, len(unfinished), len({upload.job_id for upload in uploads}))


def begin_reading(
    source: sqlite3.Connection, database: Path, open_uploads: OpenUploads | None
) -> tuple[list[str], list[OpenUpload]]:
    """Begin to read one state of the database, and open the uploads of its unfinished jobs.

    A job may end after the state is read, and its upload is removed before it is opened. Then read a later state, in
    which the job has ended.

    Returns:
        The ids of the unfinished jobs, and the open files.
    """
    for attempt in range(1, ATTEMPTS + 1):
        source.execute("BEGIN")
        _check_schema(source, database)
        rows = source.execute("SELECT job_id FROM jobs WHERE finished_at IS NULL ORDER BY place").fetchall()
        unfinished = [row[0] for row in rows]
        uploads = [] if open_uploads is None else open_uploads(unfinished)
        if open_uploads is None or attempt == ATTEMPTS or {each.job_id for each in uploads} == set(unfinished):
            break
        for upload in uploads:
            upload.file.close()
        source.execute("ROLLBACK")
    return unfinished, uploads


class BackupFile:
    """A checked backup, made by :func:`open_backup`.

    Args:
        path: path of the backup.
        connection: a read-only connection to it.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path = path
        self._connection = connection

    def uploads(self) -> Iterator[tuple[str, str, Iterator[bytes]]]:
        """The files of uploads: id of the job, name and content in pieces. Read each content before the next file."""
        if self._connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'backup_uploads'").fetchone() is None:
            return
        with named_errors(f"{self._path}: "):
            files = self._connection.execute("SELECT DISTINCT job_id, name FROM backup_uploads").fetchall()
            for job_id, name in files:
                yield job_id, name, self._pieces(job_id, name)

    def copy_database(self, target: Path) -> None:
        """Write the database without the uploads.

        Args:
            target: a new file, made with mode 0600.

        Raises:
            StorageError: it cannot be written.
        """
        _make_private(target)
        with named_errors(f"{target}: "), contextlib.ExitStack() as stack:
            copy = _opened(stack, target, "rw")
            self._connection.backup(copy)
            copy.execute("DROP TABLE IF EXISTS backup_uploads")
            copy.executescript("PRAGMA incremental_vacuum")

    def _pieces(self, job_id: str, name: str) -> Iterator[bytes]:
        query = "SELECT content FROM backup_uploads WHERE job_id = ? AND name = ? ORDER BY piece"
        for row in self._connection.execute(query, (job_id, name)):
            yield row[0]


@contextlib.contextmanager
def open_backup(path: Path) -> Iterator[BackupFile]:
    """Open a backup that is whole, and of a version that this program knows.

    Args:
        path: path of the backup.

    Raises:
        StorageError: the file does not exist, is damaged, is no backup, or was written by a newer version.
    """
    with contextlib.ExitStack() as stack:
        with named_errors(f"{path}: "):
            connection = _opened(stack, path, "ro")
            _check_schema(connection, path)
            _check_integrity(connection, path)
        yield BackupFile(path, connection)


def _make_private(path: Path) -> None:
    """Make a new file that only its owner can read."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError as error:
        raise StorageError(f"Cannot write {path}: {error.strerror}") from error


def _opened(stack: contextlib.ExitStack, path: Path, mode: str) -> sqlite3.Connection:
    if not path.is_file():
        raise StorageError(f"There is no file {path}")
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
    return stack.enter_context(contextlib.closing(connection))


def _check_schema(connection: sqlite3.Connection, path: Path) -> None:
    version = _version(connection)
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not version or not {"jobs", "keys"} <= tables:
        raise StorageError(f"{path} is no job database of Whisper API")
    if version > len(MIGRATIONS):
        raise StorageError(
            f"{path} was written by a newer version of Whisper API (schema {version}, this one knows "
            f"{len(MIGRATIONS)}): install that version"
        )


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _check_integrity(connection: sqlite3.Connection, path: Path) -> None:
    found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if found != "ok":
        raise StorageError(f"{path} is damaged: {found}")


def _add_uploads(copy: sqlite3.Connection, uploads: list[OpenUpload]) -> None:
    if not uploads:
        return
    copy.execute("BEGIN")
    copy.execute(
        """
        CREATE TABLE backup_uploads (
            job_id TEXT NOT NULL,
            name TEXT NOT NULL,
            piece INTEGER NOT NULL,
            content BLOB NOT NULL,
            PRIMARY KEY (job_id, name, piece)
        )
        """
    )
    for upload in uploads:
        pieces = iter(functools.partial(upload.file.read, PIECE_BYTES), b"")
        copy.executemany(
            "INSERT INTO backup_uploads VALUES (?, ?, ?, ?)",
            ((upload.job_id, upload.name, number, piece) for number, piece in enumerate(pieces)),
        )
    copy.execute("COMMIT")
