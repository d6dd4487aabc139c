"""Locks on directories, of which only one server may use each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from whisper_api.errors import StorageError, StorageLocked

LOCK_NAME = "server.lock"


@contextmanager
def locked_directories(*directories: Path) -> Iterator[None]:
    """Lock directories while this is open, as :meth:`Database.lock_directories` does, without opening a database.

    Raises:
        StorageLocked: another process has locked one of them.
    """
    with ExitStack() as stack:
        for directory in dict.fromkeys(each.resolve() for each in directories):
            stack.callback(locked(directory).release)
        yield


def locked(directory: Path) -> FileLock:
    """Lock a directory for this process, until the lock is released or the process ends.

    Raises:
        StorageLocked: another process has locked it.
    """
    # Not local to a thread, since any thread may close the database.
    lock = FileLock(directory / LOCK_NAME, timeout=0, mode=0o600, thread_local=False)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise StorageLocked(
            f"Another server works on {directory}: stop it, or give this one directories of its own "
            "(WHISPER_DATA_DIR, WHISPER_TMP_FILES)"
        ) from None
    except (OSError, NotImplementedError) as error:
        raise StorageError(f"Cannot lock {directory}: {error}") from error
    return lock
