"""An SQLite file: opening, writing, reading and migrating it. ``migrations.py`` has its schema.

Write-ahead logging lets readers and the one writer work at the same time (https://www.sqlite.org/wal.html). A commit
survives a loss of power with ``synchronous=FULL``; with ``NORMAL`` it survives only the end of the process, but saves
an fsync. ``secure_delete`` overwrites deleted content, which also stays in the write-ahead log until
:meth:`Database.wipe` empties the log. ``texts.py`` explains what else a deletion needs.
"""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from whisper_api.errors import ForkedProcess, StorageError, StorageFull, StorageLocked
from whisper_api.store.locks import locked_directories
from whisper_api.store.texts import PAGE_BYTES

Migration = Sequence[str | Callable[[sqlite3.Connection], None]]
"""The steps from one version of the schema to the next: statements, and functions where SQL does not suffice."""

log = logging.getLogger("whisper_api.jobs")

BUSY_SECONDS = 5.0
# A thread waits this long for other threads of this process that write. Only a failing disk takes this long.
TURN_SECONDS = 30.0
RETRY_SECONDS = 0.02
# Emptying the write-ahead log waits this long for readers, while no thread can write. Readers of this process are
# faster; a slow reader of another process only delays the emptying to the next attempt.
WIPE_BUSY_SECONDS = 0.25
# With less free space than this the disk counts as full, since the next transcript may not fit.
MIN_FREE_BYTES = 16 << 20


class Database:
    """A file with one connection that writes, and one read-only connection for each thread that reads at the moment.

    Args:
        path: path of the file; made with mode 0600, and its directory with mode 0700, when they do not exist.
        migrations: all migrations of all versions, in order; their number is the version of the schema.
        busy_seconds: how long to wait while another process writes.

    Raises:
        StorageError: the file cannot be opened, is damaged, is no database, or was written by a newer version.
        StorageLocked: another process holds the file.
        StorageFull: there is no space for the file.
    """

    def __init__(self, path: Path, migrations: Sequence[Migration], *, busy_seconds: float = BUSY_SECONDS) -> None:
        self._path = path
        self._busy_seconds = busy_seconds
        self._process = os.getpid()
        self._turn = threading.Lock()
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._readers: list[sqlite3.Connection] = []
        self._witness: sqlite3.Connection | None = None
        self._closed = False
        self._locks = ExitStack()
        self._write_error: StorageError | None = None
        with named_errors(f"{path}: "):
            _create(path)
            # Guarded by _turn:
            self._writer = self._connect("rw")
            try:
                self._prepare()
                if self._migrate(migrations):
                    self._rewrite()
            except BaseException:
                self._writer.close()
                raise

    @contextmanager
    def write(self, *, synced: bool = True) -> Iterator[sqlite3.Connection]:
        """A transaction: committed when the context ends, rolled back when it ends with an exception.

        Args:
            synced: whether the commit must survive a loss of power. Otherwise the next synced commit makes it survive.

        Raises:
            StorageFull, StorageLocked, StorageError: the transaction has changed nothing.
            ForkedProcess: the database was opened before this process was forked.
        """
        with self._my_turn(), self._watched(), named_errors(), self._durability(synced), self._transaction():
            yield self._writer

    def changes(self) -> int:
        """A number that differs from the last one if anybody has committed a change meanwhile. Does not read the disk.

        Raises:
            StorageError: the database cannot be read.
        """
        self.check_process()
        with self._lock, named_errors():
            self._check_open()
            # The pragma counts the commits of other connections, so nothing else may use this one.
            if self._witness is None:
                self._witness = self._connect("ro")
            return int(self._witness.execute("PRAGMA data_version").fetchall()[0][0])

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A read-only connection for one thread. It never waits for the writer.

        Read every result to its end inside the context: an unfinished cursor keeps :meth:`wipe` waiting.

        Raises:
            StorageError: the database cannot be read.
            ForkedProcess: the database was opened before this process was forked.
        """
        self.check_process()
        with named_errors():
            reader = self._idle_reader() or self._connect("ro")
            try:
                yield reader
            finally:
                with self._lock:
                    if not self._closed:
                        self._readers.append(reader)
                    else:
                        reader.close()

    def compact(self) -> bool:
        """Give free pages back to the file system, then :meth:`wipe`."""
        with self._my_turn(), named_errors():
            # executescript(), because this pragma frees a page with every step, and execute() makes only one step.
            self._writer.executescript("PRAGMA incremental_vacuum")
        return self.wipe()

    def wipe(self) -> bool:
        """Empty the write-ahead log, which holds deleted and replaced content.

        Returns:
            Whether the log is empty. It cannot be emptied while another process reads an old state of the database.
        """
        log_file = self._path.with_name(f"{self._path.name}-wal")
        if not log_file.exists() or not log_file.stat().st_size:
            return True
        with self._my_turn(), named_errors():
            self._writer.execute(f"PRAGMA busy_timeout={int(1000 * WIPE_BUSY_SECONDS)}").fetchall()
            try:
                busy, _, _ = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                self._writer.execute(f"PRAGMA busy_timeout={int(1000 * self._busy_seconds)}").fetchall()
        return not busy

    def write_error(self) -> StorageError | None:
        """The reason why the database cannot be written now; None when none is known.

        It is the error of the last write, except for a lock of another process, or a disk without free space.
        """
        if self._write_error is not None:
            return self._write_error
        try:
            free = shutil.disk_usage(self._path.parent).free
        except OSError as error:
            return StorageError(f"The directory of the job database cannot be read: {error.strerror}")
        if free < MIN_FREE_BYTES:
            return StorageFull(
                f"Only {free >> 20} MB are left on the disk that holds the job database: free at least "
                f"{MIN_FREE_BYTES >> 20} MB"
            )
        return None

    def lock_directories(self, *others: Path) -> None:
        """Lock the database's directory and others for this process, until :meth:`close` or the end of the process.

        Raises:
            StorageLocked: another process has locked one of them.
        """
        self._locks.enter_context(locked_directories(self._path.parent, *others))

    def check_process(self) -> None:
        """Refuse to use the connections of the parent process: SQLite forbids it, and its file locks do not hold.

        Raises:
            ForkedProcess: the database was opened before this process was forked.
        """
        if self._process != os.getpid():
            raise ForkedProcess(
                f"the job database was opened in process {self._process} before it forked into this one "
                f"({os.getpid()}): make the application or the service after the fork, in the process that serves"
            )

    def close(self) -> None:
        """Close all connections after the current reads. Later calls raise StorageError."""
        if self._process != os.getpid():
            return
        with self._lock:
            self._closed = True
            readers, self._readers = [*self._readers, *filter(None, [self._witness])], []
            self._witness = None
        for reader in readers:
            reader.close()
        with self._turn:
            self._writer.close()
        self._locks.close()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Keep the error of a write until a write succeeds."""
        try:
            yield
        except StorageLocked:
            raise
        except StorageError as error:
            # An error that the code inside the transaction raised says nothing about the disk.
            if isinstance(error.__cause__, sqlite3.Error):
                self._write_error = error
            raise
        else:
            self._write_error = None

    @contextmanager
    def _my_turn(self) -> Iterator[None]:
        self.check_process()
        if not self._turn.acquire(timeout=TURN_SECONDS):
            raise StorageLocked("The job database is busy: try again later")
        try:
            with self._lock:
                self._check_open()
            yield
        finally:
            self._turn.release()

    def _idle_reader(self) -> sqlite3.Connection | None:
        with self._lock:
            self._check_open()
            return self._readers.pop() if self._readers else None

    def _check_open(self) -> None:
        if self._closed:
            raise StorageError("The job database is closed")

    def _connect(self, mode: str) -> sqlite3.Connection:
        uri = f"{self._path.absolute().as_uri()}?mode={mode}"
        connection = sqlite3.connect(
            uri, uri=True, timeout=self._busy_seconds, isolation_level=None, check_same_thread=False
        )
        connection.row_factory = sqlite3.Row
        # Sorted rows contain tokens, which must not get into a temporary file.
        connection.execute("PRAGMA temp_store=MEMORY")
        return connection

    def _prepare(self) -> None:
        # These two work only while the file is empty.
        self._writer.execute(f"PRAGMA page_size={PAGE_BYTES}")
        self._writer.execute("PRAGMA auto_vacuum=INCREMENTAL")
        mode = self._write_ahead()
        if mode != "wal":
            raise StorageError(
                f"{self._path}: its file system cannot hold a shared database (journal mode {mode}); "
                "choose a data directory on a local disk"
            )
        for pragma in ("synchronous=FULL", "secure_delete=ON", "foreign_keys=ON"):
            self._writer.execute(f"PRAGMA {pragma}").fetchall()

    def _write_ahead(self) -> str:
        """Change the journal mode, waiting for other processes, since SQLite does not wait there."""
        deadline = time.monotonic() + self._busy_seconds
        while True:
            try:
                return str(self._writer.execute("PRAGMA journal_mode=WAL").fetchone()[0])
            except sqlite3.OperationalError as error:
                if not _is_locked(error) or time.monotonic() > deadline:
                    raise
            time.sleep(RETRY_SECONDS)

    def _migrate(self, migrations: Sequence[Migration]) -> bool:
        """Migrate the schema, and return whether the database had an older one."""
        if self._version() == len(migrations):
            return False
        with self._transaction():
            # Read again, since another process may have migrated meanwhile.
            version = self._version()
            if version > len(migrations):
                raise StorageError(
                    f"{self._path} was written by a newer version of Whisper API (schema {version}, this one knows "
                    f"{len(migrations)}): install that version, or choose another data directory"
                )
            for migration in migrations[version:]:
                for step in migration:
                    if callable(step):
                        step(self._writer)
                    else:
                        self._writer.execute(step)
            self._writer.execute(f"PRAGMA user_version={len(migrations)}")
        return version > 0

    def _rewrite(self) -> None:
        """Rewrite the whole file, since content deleted by an older version may still be between its rows."""
        try:
            # The copy of the database goes into a file and not into memory. SQLite unlinks the file after opening it.
            self._writer.execute("PRAGMA temp_store=FILE")
            self._writer.execute("VACUUM")
        except sqlite3.Error as error:
            log.warning("content deleted before the update may still be in the job database: %s", error)
        finally:
            self._writer.execute("PRAGMA temp_store=MEMORY")

    def _version(self) -> int:
        return int(self._writer.execute("PRAGMA user_version").fetchone()[0])

    @contextmanager
    def _durability(self, synced: bool) -> Iterator[None]:
        if synced:
            yield
            return
        self._writer.execute("PRAGMA synchronous=NORMAL")
        try:
            yield
        finally:
            self._writer.execute("PRAGMA synchronous=FULL")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        # IMMEDIATE, so that no other process writes between the reads and the writes of one transaction.
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._writer.execute("COMMIT")
        except BaseException:
            # After some errors SQLite has rolled back already.
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            raise


def _create(path: Path) -> None:
    """Make the file private before SQLite opens it; SQLite gives the log files the same mode."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            sync_directory(path.parent)
        for each in (path, *(path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))):
            with suppress(FileNotFoundError):
                if each.stat().st_mode & 0o077:
                    each.chmod(0o600)
                    log.warning("%s was open to other users of this machine: its mode is 0600 now", each)
    except OSError as error:
        raise StorageError(f"Cannot open the job database {path}: {error.strerror or error}") from error


def sync_directory(directory: Path) -> None:
    """Write a directory to the disk, so that the names of new files in it survive a loss of power."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def named_errors(prefix: str = "") -> Iterator[None]:
    """Translate SQLite's errors. Error codes exist only since Python 3.11, so the messages decide."""
    try:
        yield
    except sqlite3.Error as error:
        text = str(error)
        if "disk is full" in text:
            raise StorageFull(f"{prefix}No space is left on the disk that holds the job database") from error
        if _is_locked(error):
            raise StorageLocked(f"{prefix}Another process holds the job database: try again later") from error
        if "not a database" in text or "malformed" in text:
            raise StorageError(
                f"{prefix}The job database is damaged, or is another program's: move it away, or put a copy back"
            ) from error
        raise StorageError(f"{prefix}The job database cannot be used: {text}") from error


def _is_locked(error: sqlite3.Error) -> bool:
    return isinstance(error, sqlite3.OperationalError) and ("locked" in str(error) or "busy" in str(error))
